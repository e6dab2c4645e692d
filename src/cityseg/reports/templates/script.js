"use strict";
for (const figure of document.querySelectorAll(".confusion")) {
  const readout = figure.querySelector(".readout");
  const rows = [...figure.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const hint = readout.textContent;
  const say = (event) => {
    const cell = event.target.closest("td");
    readout.textContent = cell ? cell.title : hint;
  };
  for (const kind of ["mouseover", "focusin"]) figure.addEventListener(kind, say);
  figure.addEventListener("change", (event) => { figure.dataset.unit = event.target.value; });

  // One stop for Tab; the arrow keys walk the cells from there.
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  figure.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    const cell = event.target.closest("td");
    if (!step || !cell) return;
    event.preventDefault();
    const row = rows.findIndex((cells) => cells.includes(cell));
    const next = rows[row + step[0]]?.[rows[row].indexOf(cell) + step[1]];
    if (!next) return;
    cell.removeAttribute("tabindex");
    next.tabIndex = 0;
    next.focus();
  });
}

// Pictures of one image over each other: 0 shows the first, 1 the second, and what lies between them shows the second
// left of an edge and the first right of it.
for (const panel of document.querySelectorAll(".panel")) {
  const wipe = panel.querySelector(".wipe");
  if (!wipe) continue;
  const [input, button, tiles] = [wipe.querySelector("input"), wipe.querySelector("button"), panel.querySelector(".tiles")];
  const output = wipe.appendChild(document.createElement("output"));
  const names = [...tiles.querySelectorAll("figcaption")].map((caption) => caption.textContent);
  const show = (value) => {
    const last = names.length - 1;
    const v = Math.round(100 * Math.min(Math.max(value, 0), last)) / 100;
    const [right, left, x] = [Math.floor(v), Math.ceil(v), v % 1];
    input.value = v;
    panel.style.setProperty("--v", v);
    panel.style.setProperty("--x", x);
    panel.classList.toggle("whole", x === 0);
    output.textContent = x ? `left: ${names[left]}, right: ${names[right]}` : names[v];
    input.setAttribute("aria-valuetext", output.textContent + (x ? `, edge at ${Math.round(100 * x)} %` : ""));
  };
  const lay = (over) => {
    panel.classList.toggle("wiped", over);
    panel.classList.toggle("aside", !over);
    wipe.classList.toggle("off", !over);
    button.setAttribute("aria-pressed", !over);
  };
  const steps = { ArrowLeft: -0.1, ArrowDown: -0.1, ArrowRight: 0.1, ArrowUp: 0.1, PageDown: -1, PageUp: 1 };
  input.addEventListener("input", () => show(input.valueAsNumber));
  input.addEventListener("keydown", (event) => {
    if (!steps[event.key]) return;
    event.preventDefault();
    show(input.valueAsNumber + steps[event.key]);
  });
  button.addEventListener("click", () => lay(!panel.classList.contains("wiped")));

  // Dragging over the picture moves the edge between the two that show.
  let pair = 0;
  const drag = (event) => {
    const box = tiles.getBoundingClientRect();
    if (event.buttons && panel.classList.contains("wiped")) {
      show(pair + Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1));
    }
  };
  tiles.addEventListener("pointerdown", (event) => {
    pair = Math.min(Math.floor(input.valueAsNumber), names.length - 2);
    tiles.setPointerCapture(event.pointerId);
    drag(event);
  });
  tiles.addEventListener("pointermove", drag);
  tiles.addEventListener("dragstart", (event) => event.preventDefault());
  wipe.hidden = false;
  show(input.valueAsNumber);
  lay(true);
}
