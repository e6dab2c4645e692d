"""The pages in a real browser: no errors, no requests, and usable by keyboard and on a phone."""

import shutil

import numpy as np
import pytest
from PIL import Image
from tests.crossval.sweeps import SPACE, pictures, write_overrides, write_run

from cityseg.compare import write_comparison
from cityseg.crossval.output import write_summary
from cityseg.reports.html.run import write_run_page
from cityseg.reports.panels import panel

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LONG = "optimizer.weight_decay=0.000123456789012345678901234567890"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    for model in ("unet", "manet"):
        for fold in range(2):
            write_run(folder, [f"fold={fold}", f"model={model}", LONG], pictures(fold))
    write_run(folder, ["fold=0", f"model=pan_{'x' * 80}", LONG], pictures(3))
    write_overrides(folder / "failed", ["fold=1", "model=fpn", LONG])
    (folder / "failed" / "failed.json").write_text('{"error": "<script>alert(1)</script>' + "x" * 200 + '"}')
    write_summary(folder, resamples=5)
    return folder / "cv" / "report.html"


@pytest.fixture(scope="module")
def run_pages(tmp_path_factory):
    """``report.html`` of a run and of a comparison of two."""
    folder = tmp_path_factory.mktemp("outputs")
    runs = []
    for name, error in (("a", 0.2), ("b", 0.6)):
        made = pictures(3, error=error)
        full = {"above": 0.5, "to": 1.0, "pixels": 9, "confidence": 0.9, "accuracy": 0.7}
        calibration = {"ece": 0.2, "reliability": [full]}
        config = {"x" * 60: "y" * 90}
        run = write_run(folder, [f"name={name}", LONG], made, config=config, calibration=calibration)
        (run / "history.csv").write_text("epoch,train/loss,val/miou,lr\n1,2.0,0.2,1e-3\n2,1.0,0.4,1e-4\n")
        (run / "split.csv").write_text("file,part\na,train\nb,val\n")
        for index in range(3):
            truth, prediction = (np.kron(each[index], np.ones((8, 8), np.uint8)) for each in made)
            photo = np.repeat(truth[..., None], 3, axis=2)
            Image.fromarray(panel(photo, truth, prediction, SPACE)).save(run / "predictions" / f"{index}.png")
        write_run_page(run)
        runs.append(run)
    write_comparison(runs, folder / "compared")
    return {"run": runs[0] / "report.html", "comparison": folder / "compared" / "report.html"}


@pytest.fixture
def open_page(browser):
    """Opens a page; whatever it says on the console or asks for beside itself fails the test."""
    problems, addresses, contexts = [], [], []

    def opened(path, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: request.url.startswith("data:") or problems.append(request.url))
        addresses.append(path.as_uri())
        page.goto(addresses[-1])
        return page

    yield opened
    assert problems == addresses
    for context in contexts:
        context.close()


@pytest.fixture(params=["light", "dark"])
def page(request, open_page, report):
    return open_page(report, color_scheme=request.param)


@pytest.fixture(params=["light", "dark"])
def run_page(request, open_page, run_pages):
    return open_page(run_pages["run"], color_scheme=request.param)


def texts(page, selector):
    return page.eval_on_selector_all(selector, "found => found.map(each => each.innerText.trim())")


def focused(page):
    return page.evaluate("[document.activeElement.tagName, document.activeElement.value ?? '']")


def test_matrix_switches_between_shares_and_pixels(page):
    cells = ".confusion:first-of-type td.hit"
    shares = texts(page, cells)
    assert all(0 <= int(share) <= 100 for share in shares)
    page.locator(".confusion input[value=count]").first.check()
    assert [cell for cell in texts(page, cells) if cell in shares] == []
    page.locator(".confusion input[value=rate]").first.check()
    assert texts(page, cells) == shares


def test_matrix_is_reached_and_walked_by_keyboard(page):
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(focused(page)[0])
        if seen[-1] == "INPUT":
            break
    assert {"A", "INPUT"} <= set(seen)
    page.keyboard.press("ArrowRight")
    assert focused(page) == ["INPUT", "count"]
    assert page.locator(".confusion").first.get_attribute("data-unit") == "count"
    while focused(page)[0] != "TD":
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    readout = page.locator(".readout").first.inner_text()
    assert readout.startswith("sky predicted as sky: ")
    assert readout == page.evaluate("document.activeElement.title")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.title") == readout  # one stop, where one left it


def test_a_phone_shows_the_whole_width(page):
    page.set_viewport_size({"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_pictures_are_decoded_and_text_stands_out_from_the_paper(page):
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    colors = page.evaluate(
        """['body', '.muted', 'a', '.alert h2'].map(name => {
            const found = document.querySelector(name);
            const paper = document.querySelector(name.startsWith('.alert') ? '.alert' : 'body');
            return [getComputedStyle(found).color, getComputedStyle(paper).backgroundColor];
        })"""
    )
    for ink, paper in colors:
        assert contrast(ink, paper) >= 4.5, (ink, paper)  # WCAG 2 AA


def shown_at(page, share):
    """What lies at a height in the middle of the first panel's picture, and so far from its left edge."""
    return page.evaluate(
        """share => {
            const tiles = document.querySelector('.tiles');
            tiles.scrollIntoView({ block: 'center', behavior: 'instant' });
            const box = tiles.getBoundingClientRect();
            const found = document.elementsFromPoint(box.left + share * box.width, box.top + box.height / 2);
            return found.find(each => each.tagName === 'IMG').alt.split(' of ')[0];
        }""",
        share,
    )


def test_slider_goes_from_photo_to_errors_by_keyboard(run_page):
    slider = run_page.locator(".wipe input").first
    slider.focus()
    assert (shown_at(run_page, 0.25), shown_at(run_page, 0.75)) == ("prediction", "truth")
    assert slider.get_attribute("aria-valuetext") == "left: prediction, right: truth, edge at 50 %"
    run_page.keyboard.press("ArrowRight")
    assert "edge at 60 %" in slider.get_attribute("aria-valuetext")
    run_page.keyboard.press("Home")
    assert (shown_at(run_page, 0.25), slider.get_attribute("aria-valuetext")) == ("photo", "photo")
    for expected in ("truth", "prediction", "errors", "errors"):
        run_page.keyboard.press("PageUp")
        assert shown_at(run_page, 0.25) == shown_at(run_page, 0.75) == expected
    run_page.keyboard.press("End")
    assert texts(run_page, ".wipe output")[0] == "errors"


def test_slider_follows_a_finger_on_the_picture(open_page, run_pages):
    page = open_page(run_pages["run"], has_touch=True, viewport={"width": 375, "height": 800})
    tiles = page.locator(".tiles").first
    tiles.scroll_into_view_if_needed()
    box = tiles.bounding_box()
    page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2)
    assert "edge at 25 %" in page.locator(".wipe input").first.get_attribute("aria-valuetext")
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 20, steps=4)
    page.mouse.up()
    assert "edge at 80 %" in page.locator(".wipe input").first.get_attribute("aria-valuetext")
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 20)
    assert "edge at 80 %" in page.locator(".wipe input").first.get_attribute("aria-valuetext")
    assert (shown_at(page, 0.7), shown_at(page, 0.9)) == ("prediction", "truth")


def test_pictures_stand_side_by_side_when_asked_for_and_without_scripts(open_page, run_pages):
    def apart(page):
        boxes = page.evaluate(  # in one step: the page may be scrolling
            """[...document.querySelector('.panel').querySelectorAll('.tiles img')].map(
                each => [each.getBoundingClientRect().left, each.getBoundingClientRect().top].map(Math.round))"""
        )
        return len({*map(tuple, boxes)}) == len(boxes) == 4

    page = open_page(run_pages["run"])
    assert not apart(page)
    button = page.locator(".wipe button").first
    button.focus()
    page.keyboard.press("Enter")
    assert apart(page)
    assert button.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Enter")
    assert not apart(page)
    still = open_page(run_pages["run"], java_script_enabled=False)
    assert apart(still)
    assert not still.locator(".wipe").first.is_visible()


@pytest.mark.parametrize("which", ["run", "comparison"])
@pytest.mark.parametrize("width", [1280, 375])
def test_pages_of_runs_show_all_their_parts_in_the_width_there_is(open_page, run_pages, which, width):
    page = open_page(run_pages[which], viewport={"width": width, "height": 800}, color_scheme="dark")
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    headings = {"run": "Classes, Confusion matrix, Calibration, Split", "comparison": "Scores, Classes, Curves, Facts"}
    assert set(headings[which].split(", ")) <= set(texts(page, "h2"))
    assert all(box["width"] > 0 for box in (each.bounding_box() for each in page.locator(".tiles, table").all()))


def contrast(*colors):
    """Contrast ratio of WCAG 2.2, of two ``rgb(r, g, b)``."""

    def luminance(color):
        channels = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(color) for color in colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)
