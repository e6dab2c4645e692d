import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import jaccard_score

from cityseg.compare import main
from cityseg.labels import custom_label_space
from cityseg.reports.panels import panel
from tests.crossval import sweeps
from tests.crossval.sweeps import CLASSES, VOID, pictures, write_run
from tests.reports.test_html import DASH, EVIL, MINUS, Page, percent

SCORES = ("miou", "mpa", "pixel_accuracy", "fwiou", "dice")


def points(value):
    return DASH if value is None else f"{100 * value:+.1f}"


def draw(run, made, index, name):
    truth, prediction = (np.kron(each[index], np.ones((4, 4), np.uint8)) for each in made)
    photo = np.repeat(truth[..., None] + index, 3, axis=2)
    Image.fromarray(panel(photo, truth, prediction, sweeps.SPACE)).save(run / "predictions" / f"{name}.png")


def run_folder(folder, name, made, config=None, **figures):
    return write_run(folder, [f"name={name}"], made, config=config, **{"protocol": "whole", **figures})


def compared(output, *runs):
    assert main([*map(str, runs), f"output={output}"]) == 0
    return json.loads((output / "compare.json").read_text()), Page(output / "report.html")


@pytest.fixture(scope="module")
def made():
    """Predictions of two runs on the same pictures; the last class lacks."""
    return pictures(3, classes=3, images=8), pictures(203, classes=3, images=8, error=0.5)


@pytest.fixture(scope="module")
def two(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("outputs")
    configs = [{"optimizer": {"lr": 0.1}, "model": {"encoder": "a"}}, {"optimizer": {"lr": 0.2, "beta": 1}}]
    runs = [run_folder(folder, name, *each) for name, each in zip("xy", zip(made, configs, strict=True), strict=True)]
    for run, each in zip(runs, made, strict=True):
        draw(run, each, 5, 5)
    figures = [json.loads((run / "metrics.json").read_text()) for run in runs]
    return figures, *compared(folder / "compared", *runs)


def test_scores_and_differences_are_those_of_metrics_json(two):
    (a, b), comparison, page = two
    assert [run["scores"] for run in comparison["runs"]] == [{key: each[key] for key in SCORES} for each in (a, b)]
    rows = list(page.table("scores").values())
    assert rows[0][:5] == [percent(a[key]) for key in SCORES]
    assert rows[1][:5] == [f"{percent(b[key])} {points(b[key] - a[key])}" for key in SCORES]
    low, high = comparison["differences"][0]["interval"]
    assert low < b["miou"] - a["miou"] < high
    assert rows[1][5] == f"{points(low)} to {points(high)}"


def test_class_table_is_that_of_metrics_json_with_bars_to_either_side(two):
    (a, b), comparison, page = two
    differences = comparison["differences"][0]["per_class"]
    for name, cells in page.table("classes").items():
        ours, theirs = (each["per_class"][name]["iou"] for each in (a, b))
        difference = None if ours is None else theirs - ours
        assert differences[name] == difference
        assert cells == [percent(ours), percent(theirs), points(difference)]
    table = page.source[page.source.index('id="classes"') : page.source.index('id="images"')]
    assert table.count('class="loss"') == sum(value < 0 for value in differences.values() if value is not None)
    assert differences["bus"] is None


def test_images_that_changed_most_come_first(two, made):
    _, comparison, page = two

    def miou(each, index):
        valid = each.truth[index] != VOID
        true, predicted = each.truth[index][valid], each.prediction[index][valid]
        return jaccard_score(true, predicted, labels=sorted({*true, *predicted}), average="macro")

    changes = {f"foldNone/{index}.png": [miou(each, index) for each in made] for index in range(8)}
    ordered = sorted(changes.items(), key=lambda item: -abs(item[1][1] - item[1][0]))
    assert [row["image"] for row in comparison["differences"][0]["images"]] == [name for name, _ in ordered]
    assert list(page.table("changed").items()) == [
        (name, [percent(first), percent(other), points(other - first)]) for name, (first, other) in ordered
    ]


def test_pictures_of_both_runs_are_laid_over_each_other(two):
    alts = [found["alt"] for tag, found in two[2].tags if tag == "img"]
    tiles = ["photo", "truth", "prediction of A", "prediction of B", "errors of A", "errors of B"]
    assert [f"{what} of 5" for what in tiles] == [alt for alt in alts if alt.endswith(" of 5")]


def test_keys_that_differ_are_listed(two):
    _, comparison, page = two
    assert comparison["config"] == {
        "optimizer.lr": {"A": "0.1", "B": "0.2"},
        "model.encoder": {"A": "a", "B": None},
        "optimizer.beta": {"A": None, "B": "1"},
    }
    assert page.table("of-keys") == {
        key: [value or DASH for value in row.values()] for key, row in comparison["config"].items()
    }


def test_curves_are_over_each_other(two):
    titles = re.findall(r"<title>(.*?, epoch.*?)</title>", two[2].source)
    assert {"A, epoch 3: 50", "B, epoch 3: 50"} <= {*titles}


def test_runs_of_the_same_kind_give_no_warning(two):
    assert two[1]["warnings"] == []
    assert "Mind when comparing" not in two[2].text


def test_what_makes_scores_incomparable_is_said(tmp_path, made):
    a = run_folder(tmp_path, "x", made[0])
    other = pictures(4, classes=3, images=7)
    b = run_folder(tmp_path, "y", other, split="val", protocol="crops", dataset="others", label_space="five")
    c = run_folder(tmp_path, "z", made[1], counts=False)
    draw(a, made[0], 2, 2)
    draw(b, other, 2, 2)
    draw(c, made[1], 2, 2)
    comparison, page = compared(tmp_path / "out", a, b, c)
    told = "\n".join(comparison["warnings"])
    for what in ("data", "split", "number of images", "protocol", "label space"):
        assert re.search(rf"^the {what} differs: A, C: .*; B: ", told, re.MULTILINE), what
    assert "A and B: their truth has other pixels" in told
    assert "A and B: no image has the same name and truth" in told
    assert "A and C: no comparison of images" in told
    assert all(" ".join(text.split()) in page.text for text in comparison["warnings"])
    assert comparison["differences"][0]["interval"] is None
    assert f"C {MINUS} A" in page.text
    captions = {found["alt"].partition(" of ")[2] for tag, found in page.tags if tag == "img"}
    assert {"A: 2", "B: 2", "C: 2"} <= captions  # not of the same picture: each by itself


def test_only_images_that_both_were_scored_on_are_compared(tmp_path, made):
    a, b = (run_folder(tmp_path, name, each) for name, each in zip("xy", made, strict=True))
    part = write_run(tmp_path, ["name=z"], sweeps.Pictures(*(each[:6] for each in made[1])), protocol="whole")
    comparison, page = compared(tmp_path / "out", a, b, part)
    assert "A and C: 6 of 8 images have the same name and truth; only they are compared" in comparison["warnings"]
    assert [len(each["images"]) for each in comparison["differences"]] == [8, 6]
    assert "Of 6 images" in page.text


def test_a_comparison_that_would_mean_nothing_is_refused(tmp_path, made, monkeypatch, capsys):
    a = run_folder(tmp_path, "x", made[0])
    monkeypatch.setattr(sweeps, "CLASSES", ("lane", *CLASSES[1:]))
    monkeypatch.setattr(sweeps, "SPACE", custom_label_space({name: (i, 0, 0) for i, name in enumerate(sweeps.CLASSES)}))
    b = run_folder(tmp_path, "y", made[0])
    unscored = tmp_path / "unscored"
    unscored.mkdir()
    (unscored / "metrics.json").write_text('{"dataset": "made", "split": "test", "images": 3}')
    for runs, message in (
        ((a, b), "other classes.*lane, sky, car, bus"),
        ((a, a), "the same run twice"),
        ((a, unscored), "runs without scores"),
        ((a, tmp_path / "none"), "found no .*metrics.json"),
        ((a,), "found 1 runs, expected 2"),
    ):
        assert main([*map(str, runs), "-o", str(tmp_path / "out")]) == 1
        assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "out").exists()


def test_names_are_escaped_and_nothing_is_fetched(tmp_path, made, monkeypatch):
    evil = EVIL.replace("/", "")
    names = (EVIL, *CLASSES[1:])
    monkeypatch.setattr(sweeps, "CLASSES", names)
    monkeypatch.setattr(sweeps, "SPACE", custom_label_space({name: (i, 0, 0) for i, name in enumerate(names)}))
    runs = [run_folder(tmp_path, name, each, dataset=EVIL) for name, each in zip((evil, "y"), made, strict=True)]
    (runs[0] / ".hydra" / "config.yaml").write_text(yaml.safe_dump({EVIL: EVIL}))
    for run, each in zip(runs, made, strict=True):
        draw(run, each, 1, evil)
    page = compared(tmp_path / "out", *runs)[1]
    assert EVIL in page.table("classes")
    assert page.table("of-keys")[EVIL] == [EVIL, DASH]
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    assert all(address.startswith("data:") for address in page.attributes("src"))
    links = {address[1:] for address in page.attributes("href") if address.startswith("#")}
    assert links <= set(page.attributes("id"))


def test_the_command_tells_the_scores_and_where_the_report_is(tmp_path, made, capsys, monkeypatch):
    runs = [run_folder(tmp_path, name, each) for name, each in zip("xy", made, strict=True)]
    a, b = (json.loads((run / "metrics.json").read_text())["miou"] for run in runs)
    monkeypatch.chdir(tmp_path)
    assert main([str(run) for run in runs]) == 0
    (report,) = (tmp_path / "outputs" / "compare").glob("*/report.html")
    printed = capsys.readouterr().out
    assert f"A  mIoU {percent(a)} %  " in printed
    assert f"B  mIoU {percent(b)} % ({points(b - a)})  " in printed
    assert str(report.relative_to(tmp_path)) in printed
