import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import jaccard_score
from tests.crossval import sweeps
from tests.crossval.sweeps import pictures, write_run
from tests.reports.test_html import DASH, EVIL, Page, percent

from cityseg.image_counts import read_image_counts, write_image_counts
from cityseg.labels import custom_label_space
from cityseg.reports.html.run import write_run_page
from cityseg.reports.panels import panel

HISTORY = """epoch,train/loss,train/discriminator_loss,train/void_batches,val/loss,val/miou,lr,images_per_second,odd
1,2.0,1.5,0.0,1.0,0.3,0.001,4.0,7
2,1.0,,0.0,0.5,0.5,0.0005,4.5,8
3,0.5,1.0,0.0,0.6,0.4,0.0,5.0,9
"""
CONFIG = {
    "data": {"root": "/data", "batch_size": 8, "scenes": {"train": 4}},
    "model": {"encoder": "resnet34", "rates": [1, 2]},
    "optimizer": {"_target_": "Adam", "lr": 1e-4},
    "loss": {"gamma": 2.0},
    "seed": 42,
}
TYPED = ["experiment=e1", "data.scenes={train: 4}", "optimizer.lr=1e-4", "loss=focal", "model=unet", "seed=42"]


def write_drawn_run(folder, made, *, names=("fold0/4", "fold0/1"), **figures):
    """A run with a split, curves of an adversarial model, and pictures of some of its images."""
    run = write_run(folder, TYPED, made, config=CONFIG, **{"split": "val", "protocol": "whole images", **figures})
    (run / "split.csv").write_text("file,part\na,train\nb,train\nc,train\nd,val\n")
    (run / "history.csv").write_text(HISTORY)
    for name in names:
        index = int(name[-1])
        truth, prediction = (np.kron(each[index], np.ones((4, 4), np.uint8)) for each in made)
        photo = np.full((*truth.shape, 3), index, np.uint8)
        Image.fromarray(panel(photo, truth, prediction, sweeps.SPACE)).save(run / "predictions" / f"{name[-1]}.png")
    (run / "predictions" / "a street.png").unlink()
    return run


def written(run, *arguments):
    write_run_page(run, *arguments)
    return json.loads((run / "metrics.json").read_text()), Page(run / "report.html")


@pytest.fixture(scope="module")
def made():
    """The last class lacks."""
    return pictures(3, classes=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory, made):
    return write_drawn_run(tmp_path_factory.mktemp("outputs"), made)


@pytest.fixture(scope="module")
def report(run):
    return written(run)


def test_headline_is_that_of_metrics_json_with_dataset_split_and_protocol(report):
    figures, page = report
    for key, name in (("miou", "mIoU"), ("mpa", "mPA"), ("pixel_accuracy", "pixel accuracy"), ("dice", "Dice")):
        assert f"{name} {percent(figures[key])} %" in page.text
    assert "On 6 images of made , split val . Protocol: whole images." in page.text
    assert "1,234,567, 1,000 trainable" in page.text


def test_class_table_is_that_of_metrics_json(report):
    figures, page = report
    total = sum(row["pixels"] for row in figures["per_class"].values())
    table = page.table("classes")
    for name, row in figures["per_class"].items():
        scores = [percent(row[key]) for key in ("iou", "accuracy", "dice")]
        assert table[name] == [*scores, f"{100 * row['pixels'] / total:.2f}"]
    assert table["bus"] == [DASH, DASH, DASH, "0.00"]


def test_confusion_matrix_is_that_of_metrics_json(report):
    figures, page = report
    titles = [found["title"] for tag, found in page.tags if tag == "td" and "predicted as" in found.get("title", "")]
    counts = [int(re.search(r"([\d,]+) pixels", title)[1].replace(",", "")) for title in titles]
    assert counts == np.array(figures["confusion_matrix"])[:3, :3].ravel().tolist()


def test_reliability_is_drawn_over_the_confidence_of_the_bins(tmp_path, made):
    cells = [(0.0, 0.25, 0, None, None), (0.25, 0.5, 10, 0.4, 0.1), (0.5, 1.0, 30, 0.875, 1.0)]
    table = [dict(zip(("above", "to", "pixels", "confidence", "accuracy"), cell, strict=True)) for cell in cells]
    run = write_drawn_run(tmp_path, made, calibration={"ece": 0.16875, "reliability": table})
    page = written(run)[1]
    section = page.source[page.source.index('<h2 id="calibration">') : page.source.index('<h2 id="curves">')]
    assert "16.88 %" in section
    assert re.findall(r'<circle class="mark s1" cx="([\d.]+)%" cy="([\d.]+)%" r="4">', section) == [
        ("40.0", "90.0"),
        ("87.5", "0.0"),
    ]
    assert re.findall(r'<rect class="share" x="(.+?)%" y="(.+?)%" width="(.+?)%" height="(.+?)%"/>', section) == [
        ("25.0", "75.0", "25.0", "25.0"),
        ("50.0", "25.0", "50.0", "75.0"),
    ]
    assert '<line class="line diagonal" y1="100%" x2="100%"/>' in section
    assert "confidence 87.5 %, accuracy 100.0 %, 75 % of the pixels" in section


def test_a_table_without_pixels_is_not_drawn(tmp_path, made):
    nothing = {"above": 0.0, "to": 1.0, "pixels": 0, "confidence": None, "accuracy": None}
    run = write_drawn_run(tmp_path, made, calibration={"ece": None, "reliability": [nothing]})
    assert "Calibration" not in written(run)[1].text


def test_every_column_of_the_history_is_in_one_chart_or_said_to_be_0(report):
    _, page = report
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.source)
    drawn = ["loss", "validation scores in %", "adversarial losses", "learning rate", "images per second", "odd"]
    assert [caption for caption in captions if caption in drawn] == drawn
    assert "0 in every epoch: train void batches." in page.text
    titles = re.findall(r"<title>(.*?epoch.*?)</title>", page.source)
    assert {"train loss, epoch 1: 2", "val mIoU, epoch 2: 50, kept", "train discriminator loss, epoch 3: 1"} <= {
        *titles
    }
    assert not [title for title in titles if "discriminator loss, epoch 2" in title]


def test_split_is_counted(report):
    assert report[1].table("parts") == {"train": ["3", "75.0", ""], "val": ["1", "25.0", ""]}


def test_worst_images_come_first_with_scores_and_a_link_to_their_picture(report, made):
    _, page = report
    scores = {}
    for index, (truth, prediction) in enumerate(zip(*made, strict=True)):
        valid = truth != sweeps.VOID
        true, predicted = truth[valid], prediction[valid]
        labels = sorted({*true.tolist(), *predicted.tolist()})
        miou = jaccard_score(true, predicted, labels=labels, average="macro")
        scores[f"foldNone/{index}.png"] = [percent(miou), percent((true != predicted).mean())]
    rows = page.table("worst")
    assert {name: row[:2] for name, row in rows.items()} == scores
    assert list(rows) == sorted(scores, key=lambda name: float(scores[name][0]))
    shown = [name for name, row in rows.items() if row[2] == "shown"]
    assert shown == [name for name in rows if name[9] in "14"]
    captions = [found["id"] for tag, found in page.tags if tag == "figure" and "id" in found]
    assert captions == ["picture-1", "picture-2"]
    first = page.source.index('id="picture-1"')
    assert page.source[first : first + 200].count(f"<figcaption>{shown[0][9]} ") == 1  # the worse of the two


def test_all_worst_images_are_shown_and_some_of_the_others(tmp_path):
    run = write_drawn_run(tmp_path, pictures(3, images=60), names=[])
    for number in range(60):
        Image.new("RGB", (8, 8)).save(run / "predictions" / f"{number}.png")
    page = written(run)[1]
    shown = [found["alt"].removeprefix("panel of ") for tag, found in page.tags if tag == "img"]
    worst = [name.removeprefix("foldNone/").removesuffix(".png") for name in page.table("worst")]
    assert shown[:20] == worst
    assert len(shown) == 36


def test_pictures_are_apart_and_named(report):
    alts = [found["alt"] for tag, found in report[1].tags if tag == "img"]
    assert sorted(alts) == sorted(
        f"{what} of {image}" for image in "14" for what in ("photo", "truth", "prediction", "errors")
    )


def test_what_was_chosen_is_marked(report):
    _, page = report
    assert page.table("choices")["data.scenes"] == ["{train: 4}", "typed"]
    table = page.table("config")
    marked = {"data.scenes.traintyped", "model.encodertyped", "optimizer.lrtyped", "loss.gammatyped", "seedtyped"}
    assert marked <= {*table}
    assert {"data.root", "optimizer._target_"} <= {*table}
    assert table["model.ratestyped"] == ["[1, 2]"]
    assert "The file of the experiment was not found" in page.text


def test_an_experiment_is_marked_and_a_default_choice_is_not(tmp_path, made):
    run = write_drawn_run(tmp_path / "runs", made)
    conf = tmp_path / "conf"
    (conf / "experiment").mkdir(parents=True)
    (conf / "train.yaml").write_text(yaml.safe_dump({"defaults": [{"model": "unet"}, {"loss": "dice"}, "_self_"]}))
    experiment = {"defaults": [{"override /optimizer": "adam"}], "optimizer": {"lr": 1}, "data": {"batch_size": 8}}
    (conf / "experiment" / "e1.yaml").write_text(yaml.safe_dump(experiment))
    sources = [{"path": "x", "schema": "pkg"}, {"path": str(conf), "schema": "file"}]
    hydra = {"hydra": {"runtime": {"config_sources": sources}, "job": {"config_name": "train"}}}
    (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))
    page = written(run)[1]
    table, choices = page.table("config"), page.table("choices")
    assert {"model.encoder", "loss.gammatyped", "optimizer._target_experiment", "data.batch_sizeexperiment"} <= {*table}
    assert choices["optimizer.lr"] == ["1e-4", "typed"]  # typed over what the experiment says
    assert "model" not in choices
    assert "was not found" not in page.text


def test_environment_is_shown(run):
    figures = json.loads((run / "metrics.json").read_text())
    found = {"python": "3.11.7", "device": "CPU, one", "git_commit": "a" * 40, "git_dirty": True}
    (run / "metrics.json").write_text(json.dumps(figures | {"environment": found}))
    text = written(run)[1].text
    assert "Python 3.11.7 device CPU, one" in text
    assert f"git commit {'a' * 40}, with changes that are not committed" in text


def test_a_run_without_labels_or_anything_else_has_a_page(tmp_path):
    figures = {"dataset": "made", "split": "test", "images": 1, "checkpoint": "/a/best.ckpt", "cityseg": "1"}
    (tmp_path / "metrics.json").write_text(json.dumps(figures))
    page = written(tmp_path)[1]
    assert "there are no scores" in page.text
    assert page.text.count("Evaluation") == 1
    assert page.tables == []


def test_counts_that_do_not_fit_the_figures_are_left_out(tmp_path, made):
    run = write_drawn_run(tmp_path, made)
    counts = read_image_counts(run / "per_image.npz")
    counts.counts[0, 0, 0] += 1
    write_image_counts(run / "per_image.npz", counts)
    assert "Worst images" not in written(run)[1].text


def test_names_are_escaped_everywhere_and_nothing_is_fetched(tmp_path, monkeypatch, made):
    names = (EVIL, *sweeps.CLASSES[1:])
    space = custom_label_space({name: (i, 0, 0) for i, name in enumerate(names)})
    monkeypatch.setattr(sweeps, "CLASSES", names)
    monkeypatch.setattr(sweeps, "SPACE", space)
    run = write_drawn_run(tmp_path, made, dataset=EVIL, protocol=EVIL, environment={"device": EVIL})
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump({EVIL: EVIL}))
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"{EVIL}={EVIL}"]))
    (run / "split.csv").write_text(f"file,part\na,{EVIL}\n")
    (run / "history.csv").write_text(f"epoch,{EVIL}\n1,1.0\n")
    (run / "predictions" / "1.png").rename(run / "predictions" / f"{EVIL.replace('/', '')}.png")
    page = written(run, space)[1]
    for table in ("classes", "matrix", "parts", "choices", "config"):
        assert any(row.startswith(EVIL) for row in page.table(table)), table
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    assert all(address.startswith("data:") for address in page.attributes("src"))
    links = {address[1:] for address in page.attributes("href") if address.startswith("#")}
    assert links <= set(page.attributes("id"))
    assert 'style="background: rgb(0, 0, 0)"' in page.source
