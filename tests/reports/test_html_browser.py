"""The page in a real browser: no errors, no requests, and usable by keyboard and on a phone."""

import shutil

import pytest
from tests.crossval.sweeps import pictures, write_overrides, write_run

from cityseg.crossval.output import write_summary

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


@pytest.fixture(params=["light", "dark"])
def page(request, browser, report):
    """The page, opened; what went wrong and what was asked for is in its `problems`."""
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    problems = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("dialog", lambda dialog: problems.append(dialog.message))
    opened.on("request", lambda request: request.url.startswith("data:") or problems.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    assert problems == [report.as_uri()]
    context.close()


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


def contrast(*colors):
    """Contrast ratio of WCAG 2.2, of two ``rgb(r, g, b)``."""

    def luminance(color):
        channels = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(color) for color in colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)
