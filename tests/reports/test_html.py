import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from tests.crossval import sweeps
from tests.crossval.sweeps import pictures, write_overrides, write_run

from cityseg.crossval.output import write_summary
from cityseg.labels import custom_label_space, label_space
from cityseg.reports.html.charts import Row, dot_plot, line_chart
from cityseg.reports.html.images import MAX_WIDTH, embed, read_panels
from cityseg.reports.html.page import environment
from cityseg.reports.panels import panel, read_tiles

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
EVIL = "<script>alert('class')</script>"
ERROR = '<img src="x" onerror="alert(1)"> & so on\nsecond line'
SCORES = ("miou", "mpa", "pixel_accuracy", "fwiou", "dice")


class Page(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, its text, and the cells of its tables."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.tables, self.ids = [], [], [], set()
        self._cell = None
        self._code = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._code = tag in ("script", "style")
        if tag == "table":
            self.tables.append((dict(attributes)["class"].split()[-1], []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        self._code = False
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell.append(data)
        if not self._code:
            self.words.append(data)

    def table(self, name, number=0):
        """Rows of a table without its header, by their first cell."""
        rows = [rows for found, rows in self.tables if found == name][number]
        return {row[0]: row[1:] for row in rows[1:]}

    def attributes(self, name):
        return [found[name] for _, found in self.tags if found.get(name)]


def percent(value):
    return DASH if value is None else f"{100 * value:.1f}"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One model, five folds; the last class lacks in fold 3."""
    folder = tmp_path_factory.mktemp("outputs") / "unet-gtfine" / "multirun" / "now"
    for fold in range(5):
        write_run(folder, [f"fold={fold}", "seed=1"], pictures(fold, classes=3 if fold == 3 else 4), seconds=90.0)
    write_summary(folder, resamples=20)
    return json.loads((folder / "cv" / "summary.json").read_text()), Page(folder / "cv" / "report.html")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Three models, one of which lacks fold 2: it failed with an error that looks like HTML."""
    folder = tmp_path_factory.mktemp("outputs")
    for model, error in (("unet", 0.2), ("manet", 0.3), ("pan", 0.25)):
        for fold in range(4):
            if (model, fold) != ("manet", 2):
                write_run(folder, [f"fold={fold}", f"model={model}"], pictures(fold + round(1000 * error), error=error))
    write_overrides(folder / "fold=2,model=manet", ["fold=2", "model=manet"])
    (folder / "fold=2,model=manet" / "failed.json").write_text(json.dumps({"error": ERROR}))
    write_summary(folder, resamples=20)
    return json.loads((folder / "cv" / "summary.json").read_text()), Page(folder / "cv" / "report.html")


def test_headline_is_that_of_summary_json(one):
    summary, page = one
    group = summary["groups"][0]
    low, high = group["pooled_interval"]["interval"]
    for key, name in (("miou", "mIoU"), ("mpa", "mPA")):
        spread = group["scores"][key]
        assert (
            f"{name}, mean ± std {percent(spread['mean'])} ± {percent(spread['std'])} % over 5 of 5 folds" in page.text
        )
    assert (
        f"pooled mIoU {percent(group['pooled']['miou'])} % 95 % over 30 images: {percent(low)} to {percent(high)}"
        in (page.text)
    )
    assert "unet-gtfine" in page.text
    assert "1,234,567, 1,000 trainable" in page.text


def test_fold_table_is_that_of_summary_json_with_the_best_and_the_worst_marked(one):
    summary, page = one
    group = summary["groups"][0]
    marks = {group["best"]: "best", group["worst"]: "worst"}
    table = page.table("folds")
    for row in group["folds"]:
        figures = table[f"{row['fold']}{marks.get(row['fold'], '')}"]
        assert figures == [*(percent(row["scores"][key]) for key in SCORES), "6", "2", "1.5"]
    assert table["mean ± std"][2].startswith(percent(group["scores"]["pixel_accuracy"]["mean"]))


def test_class_table_is_that_of_summary_json(one):
    summary, page = one
    group = summary["groups"][0]
    for name, spreads in group["per_class"].items():
        iou, bar, interval, accuracy, dice, pooled, folds = page.table("classes")[name]
        for text, spread in ((iou, spreads["iou"]), (accuracy, spreads["accuracy"]), (dice, spreads["dice"])):
            assert text == f"{percent(spread['mean'])} ± {percent(spread['std'])}"
        assert bar == percent(spreads["iou"]["mean"])  # its tooltip
        assert interval == " to ".join(percent(end) for end in spreads["iou"]["interval"])
        assert pooled == percent(group["pooled"]["per_class"][name]["iou"])
        assert folds == ("4 of 5" if name == "bus" else "5 of 5")


def test_confusion_matrix_has_counts_and_row_shares(one):
    summary, page = one
    matrix = np.array(summary["groups"][0]["pooled"]["confusion_matrix"])
    titles = [found["title"] for tag, found in page.tags if tag == "td" and "title" in found]
    shares = 100 * matrix / matrix.sum(axis=1, keepdims=True)
    assert titles == [
        f"{truth} predicted as {predicted}: {matrix[i, j]:,} pixels, {shares[i, j]:.1f} % of {truth}"
        for i, truth in enumerate(sweeps.CLASSES)
        for j, predicted in enumerate(sweeps.CLASSES)
    ]


def test_comparison_is_that_of_summary_json(several):
    summary, page = several
    comparison = summary["comparison"]
    for row in comparison["ranking"]:
        assert page.table("ranking")[row["group"]][:2] == [
            str(row["rank"]),
            f"{percent(row['miou']['mean'])} ± {percent(row['miou']['std'])}",
        ]
    for pair in comparison["pairs"]:
        test, cells = pair["test"], page.table("pairs")[f"{pair['a']} {MINUS} {pair['b']}"]
        assert cells[0] == f"{100 * test['mean']:+.1f} ± {percent(test['std'])}"
        assert cells[1] == " to ".join(f"{100 * end:+.1f}" for end in test["interval"])
        assert cells[2] == f"{test['t']:.2f}"
        for cell, p in zip(cells[3:5], (test["p"], pair["p_holm"]), strict=True):
            assert cell == ("< 0.001" if p < 0.001 else f"{p:.3f}")
        for fold, difference in zip(pair["folds"], pair["differences"], strict=True):
            assert f"<title>fold {fold}: {100 * difference:+.1f}</title>" in page.source
    assert len([name for name, _ in page.tables if name == "folds"]) == 3
    assert "Ranked by mean ± std over the folds that all have: 0, 1, 3." in page.text


def test_a_fold_that_failed_is_named_above_everything_with_its_escaped_error(several):
    _, page = several
    assert page.text.index("11 of 12 folds finished") < page.text.index("Comparison")
    assert f"fold 2 of model=manet: failed, fold=2,model=manet {' '.join(ERROR.split())}" in page.text
    assert not [found for tag, found in page.tags if tag == "img" and found["src"] == "x"]


def test_names_of_classes_are_escaped_everywhere(tmp_path, monkeypatch):
    names = (EVIL, *sweeps.CLASSES[1:])
    monkeypatch.setattr(sweeps, "CLASSES", names)
    monkeypatch.setattr(sweeps, "SPACE", custom_label_space({name: (i, 0, 0) for i, name in enumerate(names)}))
    for fold in range(2):
        write_run(tmp_path, [f"fold={fold}", f"name='{EVIL}'"], pictures(fold), dataset=EVIL)
    write_summary(tmp_path, resamples=5)
    page = Page(tmp_path / "cv" / "report.html")
    assert EVIL in page.table("classes")
    assert EVIL in page.table("matrix")
    assert f"name='{EVIL}'" in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]


def test_nothing_on_the_page_is_fetched_and_every_link_leads_to_a_part_of_it(one, several):
    for _, page in (one, several):
        assert all(address.startswith("data:") for address in page.attributes("src"))
        assert all(address.startswith(("#", "data:,")) for address in page.attributes("href"))
        links = {address[1:] for address in page.attributes("href") if address.startswith("#")}
        assert links <= set(page.attributes("id"))
        assert not re.search(r"@import|url\(", page.source)
        assert "default-src 'none'" in page.source


def test_pictures_of_the_best_and_the_worst_fold_are_on_the_page(one):
    summary, page = one
    assert len(page.attributes("src")) == 2
    for which in ("best", "worst"):
        fold = summary["groups"][0][which]
        score = next(row["scores"]["miou"] for row in summary["groups"][0]["folds"] if row["fold"] == fold)
        assert f"{which.capitalize()} fold: {fold} , mIoU {percent(score)} % a street" in page.text


def test_curves_that_no_fold_has_are_said_to_be_absent(tmp_path):
    run = write_run(tmp_path, ["fold=0"], pictures(0))
    (run / "history.csv").write_text("epoch,train/loss\n1,1.5\n2,1.0\n")
    write_summary(tmp_path, resamples=5)
    page = Page(tmp_path / "cv" / "report.html")
    assert "<figcaption>training loss</figcaption>" in page.source
    assert "<figcaption>validation" not in page.source
    assert "Not recorded: validation loss, validation mIoU %" in page.text


def test_a_sweep_without_a_finished_fold_has_a_page(tmp_path):
    write_overrides(tmp_path / "fold=0", ["fold=0"])
    write_summary(tmp_path, resamples=5)
    page = Page(tmp_path / "cv" / "report.html")
    assert "0 of 1 folds finished" in page.text
    assert "fold 0 : unfinished" in page.text
    assert page.tables == []


def test_the_final_model_is_shown_with_its_scores_or_with_its_error(tmp_path):
    write_run(tmp_path, ["fold=0"], pictures(0))
    run = write_run(tmp_path, ["fold=final"], pictures(7), split="val", epochs=12)
    (final,) = (group["final"] for group in write_summary(tmp_path, resamples=5)["groups"])
    text = Page(tmp_path / "cv" / "report.html").text
    assert f"( fold=final , 12 epochs): mIoU {percent(final['scores']['miou'])} %" in text
    (run / "metrics.json").unlink()
    (run / "failed.json").write_text('{"error": "no memory"}')
    write_summary(tmp_path, resamples=5)
    assert "final model : failed, fold=final no memory" in Page(tmp_path / "cv" / "report.html").text


def decoded(picture):
    return Image.open(io.BytesIO(base64.b64decode(picture.uri.removeprefix("data:image/webp;base64,"))))


def test_pictures_are_embedded_smaller_and_broken_ones_left_out(tmp_path):
    Image.effect_noise((3000, 600), 90).convert("RGB").save(tmp_path / "wide.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "wide.png").read_bytes()[:200])
    (found,) = read_panels([tmp_path / "cut.png", tmp_path / "wide.png"], 2)
    (tile,) = found.tiles
    assert (found.name, tile.label) == ("wide", "panel")
    assert decoded(tile).size == (tile.width, tile.height) == (MAX_WIDTH, MAX_WIDTH // 5)


@pytest.mark.parametrize("width", [40, 300, 1100])
def test_panels_are_taken_apart_as_they_were_put_together(tmp_path, width):
    photo = np.random.default_rng(0).integers(256, size=(width // 2, width, 3)).astype(np.uint8)
    truth = np.tile(np.arange(width, dtype=np.uint8) % 7, (width // 2, 1))
    shown = label_space("cityscapes19")
    for prediction, true, labels in ((truth // 2, truth, "photo truth prediction errors"), (truth, None, None)):
        Image.fromarray(panel(photo, true, prediction, shown)).save(tmp_path / "a.png")
        tiles = read_tiles(tmp_path / "a.png")
        assert " ".join(tiles) == (labels or "photo prediction overlay")
        assert {tile.size for tile in tiles.values()} == {(min(width, 512), min(width, 512) // 2)}
        if width <= 512:
            np.testing.assert_array_equal(tiles["photo"], photo)
            np.testing.assert_array_equal(tiles["prediction"], shown.colorize(prediction))


def test_label_maps_are_embedded_without_loss():
    train_ids = np.random.default_rng(0).integers(19, size=(40, 60)).astype(np.uint8)
    painted = label_space("cityscapes19").colorize(train_ids)
    (tile,) = embed({"truth": Image.fromarray(painted)}, "a").tiles
    np.testing.assert_array_equal(decoded(tile), painted)


def drawn(macro, *arguments):
    """The HTML of a chart."""
    return str(getattr(environment().get_template("macros.html").module, macro)(*arguments))


def test_lines_lie_where_their_values_are():
    chart = line_chart("loss", {"a": [(1, 2.0), (2, 0.0), (3, 1.0)], "b": []}, {"a": 1, "b": 2}, {"a": 2})
    source = drawn("line_chart", chart)
    circles = re.findall(r'<circle class="mark s1( kept)?" cx="(.+?)%" cy="(.+?)%"', source)
    assert [float(x) for _, x, _ in circles] == [0, 50, 100]
    ys = [float(y) for _, _, y in circles]
    assert re.findall(r'points="(.+?)"', source) == [f"0,{ys[0]:g} 50,{ys[1]:g} 100,{ys[2]:g}"]
    assert (ys[1] - ys[0], ys[2] - ys[0]) == pytest.approx((2 * (ys[2] - ys[0]), (ys[1] - ys[0]) / 2), abs=0.02)
    assert ys[0] < 50 < ys[1]  # larger values lie higher
    assert [bool(kept) for kept, _, _ in circles] == [False, True, False]
    assert line_chart("loss", {"b": []}, {"b": 0}, {}) is None


def test_a_line_that_never_changes_has_an_axis_around_it():
    chart = line_chart("lr", {"lr": [(1, 1e-4), (2, 1e-4)]}, {"lr": 0}, {})
    assert chart.y.low > 0
    assert line_chart("lr", {"lr": [(1, 1e-4), (2, 1e-4)]}, {"lr": 0}, {}, zero=True).y.at(0) < 10


def test_dots_share_an_axis_and_intervals_end_where_a_score_can():
    rows = [Row("a", "", [(90, "", 0), (95, "", 1)], 92.5, [61, 124]), Row("b", "", [], None, None)]
    plot = dot_plot(rows)
    a, b = plot.rows
    assert plot.x.high < 103
    assert a.interval == [61, 100]
    assert (b.values, b.mean, b.interval) == ([], None, None)
    source = drawn("dot_plot", plot, "")
    assert re.findall(r'<circle .*?cx="(.+?)%"', source) == [str(plot.x.at(value)) for value in (90, 95)]
    assert f'<rect class="span" x="{plot.x.at(61)}%"' in source
    assert 0 < dot_plot([Row("d", "", [(2, "", 0)], 2, None)], differences=True).x.at(0) < 50
