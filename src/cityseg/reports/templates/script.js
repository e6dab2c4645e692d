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
