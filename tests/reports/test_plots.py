import math

import numpy as np
import pytest
from PIL import Image

from cityseg.labels import label_space
from cityseg.reports.plots import confusion_figure, plot_class_iou, plot_confusion, plot_curves

NAMES = ("road", "sky", "car", "bus")


def drawn(path):
    """Pixels of a written plot that are not white."""
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape[0] > 100 < image.shape[1]
    return image[(image != 255).any(-1)]


def has_color(pixels, color):
    return (np.abs(pixels.astype(int) - color).max(-1) <= 2).any()


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_curves_draw_every_column_and_skip_missing_values(tmp_path):
    history = [
        {"epoch": 0, "train/loss": 2.0, "val/miou": None, "lr": 0.1},
        {"epoch": 1, "train/loss": math.nan, "val/miou": 0.4, "val/loss": 1.5, "lr": 0.1},
        {"epoch": 2, "train/loss": 1.0, "val/miou": 0.5, "images_per_second": 40.0},
    ]
    plot_curves(history, tmp_path / "new" / "plots" / "curves.png")
    pixels = drawn(tmp_path / "new" / "plots" / "curves.png")
    assert has_color(pixels, (0x00, 0x72, 0xB2))  # first line of a chart
    assert has_color(pixels, (0xD5, 0x5E, 0x00))  # second line: val/loss


def test_curves_treat_nan_and_none_like_a_missing_value(tmp_path):
    pictures = []
    for index, gap in enumerate(({}, {"val/miou": None}, {"val/miou": math.nan})):
        rows = [{"epoch": 0, "val/miou": 0.4}, {"epoch": 1, **gap}, {"epoch": 2, "val/miou": 0.5}]
        plot_curves(rows, tmp_path / f"{index}.png")
        pictures.append(np.asarray(Image.open(tmp_path / f"{index}.png")))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])


def test_curves_have_one_chart_for_each_kind_of_figure(tmp_path):
    plot_curves([{"epoch": 0, "train/loss": 1.0}], tmp_path / "one.png")
    plot_curves([{"epoch": 0, "train/loss": 1.0, "val/miou": 0.5, "lr": 0.1}], tmp_path / "three.png")
    one, three = (Image.open(tmp_path / name).size for name in ("one.png", "three.png"))
    assert three == (2 * one[0], 2 * one[1])


@pytest.mark.parametrize("history", [[], [{"epoch": 0, "train/loss": None}]])
def test_curves_of_no_epoch_say_so(tmp_path, history):
    plot_curves(history, tmp_path / "curves.png")
    assert drawn(tmp_path / "curves.png").size


def test_confusion_shows_row_percentages_without_absent_classes():
    confusion = np.array([[75, 25, 0, 0], [0, 50, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    figure = confusion_figure(confusion, NAMES)
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["road", "sky"]
    assert sorted(texts(figure)) == ["100", "25", "75"]
    places = {text.get_position(): text.get_text() for text in axis.texts}
    assert places[(1, 0)] == "25"  # x is the prediction, y the truth


def test_confusion_keeps_a_class_that_is_only_predicted_with_an_empty_row():
    confusion = np.array([[3, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    figure = confusion_figure(confusion, NAMES)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["road", "car"]
    assert sorted(texts(figure)) == ["25", "75"]


def test_confusion_of_nothing_says_so():
    assert texts(confusion_figure(np.zeros((4, 4)), NAMES)) == ["no valid pixel"]


def test_confusion_of_19_classes_is_written_large_enough_to_read(tmp_path):
    counts = np.random.default_rng(0).integers(1, 100, (19, 19))
    plot_confusion(counts, label_space("cityscapes19").class_names, tmp_path / "confusion.png")
    assert drawn(tmp_path / "confusion.png").size
    assert min(Image.open(tmp_path / "confusion.png").size) >= 19 * 45


def test_class_iou_bars_have_the_class_colors_and_absent_classes_none(tmp_path):
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    per_class = {"road": {"iou": 0.9}, "sky": {"iou": None}, "car": {"iou": 0.2}}
    plot_class_iou(per_class, colors, tmp_path / "iou.png")
    pixels = drawn(tmp_path / "iou.png")
    assert [has_color(pixels, color) for color in colors] == [True, False, True]


def test_class_iou_draws_bars_as_long_as_their_iou(tmp_path):
    colors = [(200, 30, 30), (30, 30, 200)]
    plot_class_iou({"road": {"iou": 0.8}, "car": {"iou": 0.2}}, colors, tmp_path / "iou.png")
    pixels = drawn(tmp_path / "iou.png").astype(int)
    road, car = ((np.abs(pixels - color).max(-1) <= 2).sum() for color in colors)
    assert road / car == pytest.approx(4, rel=0.1)
