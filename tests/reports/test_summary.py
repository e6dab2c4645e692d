import doctest
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from cityseg.reports import summary
from cityseg.reports.summary import closing_table, percent

DASH = "\N{EN DASH}"
METRICS = {
    "dataset": "pairs",
    "split": "val",
    "miou": 0.66666,
    "mpa": 0.75,
    "pixel_accuracy": 0.912,
    "fwiou": None,
    "dice": 0.78,
    "loss": 0.31234,
    "per_class": {
        "road": {"iou": 0.5, "accuracy": 0.6, "dice": 0.66, "pixels": 300},
        "truck": {"iou": None, "accuracy": None, "dice": None, "pixels": 0},
        "car [parked]": {"iou": 0.99, "accuracy": 0.995, "dice": 0.99, "pixels": 100},
    },
    "images": 101,
    "parameters": {"total": 12_345_678, "trainable": 3_400},
    "seconds": 125.3,
}


def printed(metrics, paths=None, width=100):
    stream = io.StringIO()
    Console(file=stream, width=width).print(closing_table(metrics, paths or {}))
    return stream.getvalue()


def row(text, name):
    return next(line for line in text.splitlines() if line.strip().startswith(name))


def test_headline_and_details_are_percentages_with_one_decimal():
    text = printed(METRICS)
    assert "mIoU 66.7 % on 101 images of pairs, val split" in text
    assert f"mPA 75.0 % · pixel accuracy 91.2 % · frequency-weighted IoU {DASH} · Dice 78.0 % · loss 0.3123" in text
    assert "12.3 M parameters, 3.4 k trainable · 2 min 5 s" in text


def test_class_rows_show_iou_bar_accuracy_and_share_of_pixels():
    assert row(printed(METRICS), "road").split() == ["road", "50.0", "█" * 10, "60.0", "75.00"]


def test_absent_class_is_a_dash_and_never_zero():
    assert row(printed(METRICS), "truck").split() == ["truck", DASH, DASH, "0.00"]


def test_class_names_are_not_read_as_markup():
    assert row(printed(METRICS), "car [parked]").split()[2] == "99.0"


def test_category_iou_is_shown_where_there_is_one():
    assert "category" not in printed(METRICS)
    text = printed({**METRICS, "category_iou": {"flat": 0.9512, "human": None}})
    assert f"category IoU in %: flat 95.1 · human {DASH}" in text


def test_paths_are_whole_and_plain_output_fits_100_columns():
    paths = {"report": Path("outputs") / ("long-name-" * 12) / "report.html", "log": Path("train.log")}
    text = printed(METRICS, paths)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\x1b" not in text
    assert str(paths["report"]) in "".join(line.strip().removeprefix("report  ") for line in text.splitlines())
    assert row(text, "log").split() == ["log", "train.log"]


def test_missing_figures_are_left_out():
    text = printed({"miou": math.nan, "per_class": {}})
    assert text.split("\n")[0].startswith(f"mIoU {DASH} on ")
    assert "loss" not in text
    assert "class" not in text


@pytest.mark.parametrize(("value", "text"), [(0.0, "0.0"), (1.0, "100.0"), (None, DASH), (math.nan, DASH)])
def test_percent(value, text):
    assert percent(value) == text


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(summary) == doctest.TestResults(failed=0, attempted=3)
