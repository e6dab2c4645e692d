"""Plots of a run: curves over the epochs, the confusion matrix, and the IoU of each class.

Figures are made through matplotlib's object interface, never pyplot, so that no global state changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cityseg.files import fresh_file
from cityseg.labels import Color
from cityseg.reports.summary import ABSENT, percent

History = Sequence[Mapping[str, float | None]]

# Okabe and Ito (2008): eight colours that people with any colour vision can tell apart; its yellow is too
# pale for lines.
_LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SCORES = ("miou", "mpa", "accuracy", "dice", "fwiou", "iou")
_DPI = 120
_CELL = 0.42  # inches a class takes in the confusion matrix


def _is_loss(key: str) -> bool:
    return "loss" in key.rsplit("/", 1)[-1]


def _is_score(key: str) -> bool:
    return key.rsplit("/", 1)[-1].endswith(_SCORES)


def _is_lr(key: str) -> bool:
    return key.startswith("lr")


def _is_speed(key: str) -> bool:
    return key == "images_per_second"


# Title of each chart, which columns of the history it shows, and the factor to the unit in the title.
_CHARTS: tuple[tuple[str, Callable[[str], bool], float], ...] = (
    ("loss", _is_loss, 1),
    ("score in %", _is_score, 100),
    ("learning rate", _is_lr, 1),
    ("images per second", _is_speed, 1),
)


def plot_curves(history: History, path: Path) -> None:
    """Draw losses, scores, learning rate and speed over the epochs, each where the history has it.

    Args:
        history: one mapping for each row of ``history.csv``; a value may be missing, None or NaN.
        path: PNG file to write; missing folders are made.
    """
    keys = list(dict.fromkeys(key for row in history for key in row))
    series = {key: points for key in keys if (points := _points(history, key))}
    charts = [
        (title, shown, factor)
        for title, wanted, factor in _CHARTS
        if (shown := {key: series[key] for key in series if wanted(key)})
    ]
    if not charts:
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        figure.text(0.5, 0.5, "no epoch was recorded", ha="center", va="center", color="0.4")
        _save(figure, path)
        return
    rows, columns = math.ceil(len(charts) / 2), min(len(charts), 2)
    figure = Figure(figsize=(5.2 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, shown, factor) in zip(axes, charts, strict=False):
        _draw_lines(axis, title, shown, factor)
    for unused in axes[len(charts) :]:
        unused.remove()
    _save(figure, path)


def confusion_figure(confusion: npt.ArrayLike, names: Sequence[str]) -> Figure:
    """Draw a confusion matrix in percent of each row's truth.

    Classes that neither truth nor prediction has are left out; a class that is only predicted has no
    percentages and its row stays empty.

    Args:
        confusion: ``(C, C)`` counts, rows are the truth and columns the prediction.
        names: one for each class.
    """
    counts = np.asarray(confusion, np.float64)
    assert counts.shape == (len(names), len(names)), (counts.shape, len(names))
    occurs = np.flatnonzero(counts.sum(0) + counts.sum(1))
    counts, shown = counts[np.ix_(occurs, occurs)], [names[index] for index in occurs.tolist()]
    totals = counts.sum(1, keepdims=True)
    rates = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    side = _CELL * len(shown)
    figure = Figure(figsize=(max(side + 2.4, 5.2), max(side + 2.0, 3.6)), layout="constrained")
    axis = figure.add_subplot()
    axis.set_title("confusion matrix, % of each true class")
    if not shown:
        axis.text(0.5, 0.5, "no valid pixel", ha="center", va="center", color="0.4")
        axis.set_axis_off()
        return figure
    image = axis.imshow(rates, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axis, shrink=0.8, aspect=30)
    shown = literal(shown)
    axis.set_xticks(range(len(shown)), shown, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(shown)), shown)
    axis.set(xlabel="prediction", ylabel="truth")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for row, column in np.argwhere(rates >= 0.5):  # smaller ones would all read "0"
        rate = rates[row, column]
        ink = "white" if rate > 55 else "0.15"
        axis.text(column, row, f"{rate:.0f}", ha="center", va="center", fontsize=8, color=ink)
    return figure


def plot_confusion(confusion: npt.ArrayLike, names: Sequence[str], path: Path) -> None:
    """Write :func:`confusion_figure` to a PNG file.

    Args:
        confusion: ``(C, C)`` counts, rows are the truth and columns the prediction.
        names: one for each class.
        path: PNG file to write; missing folders are made.
    """
    _save(confusion_figure(confusion, names), path)


def reliability_figure(calibration: Mapping[str, Any]) -> Figure:
    """Draw the accuracy of pixels over their confidence, and how many there are of each confidence.

    Args:
        calibration: as :meth:`cityseg.calibration.Calibration.scores` gives it.
    """
    bins = [row for row in calibration["reliability"] if row["pixels"]]
    total = sum(row["pixels"] for row in bins)
    figure = Figure(figsize=(4.8, 4.8), layout="constrained")
    axis = figure.add_subplot()
    axis.set_title(f"reliability, expected calibration error {percent(calibration['ece'])} %", fontsize=11)
    axis.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle="--", label="as confident as right")
    edges = [100 * row["above"] for row in bins]
    width = 100 / max(len(calibration["reliability"]), 1)
    axis.bar(edges, [100 * row["pixels"] / total for row in bins], width, align="edge", color="0.85", label="pixels")
    points = [(100 * row["confidence"], 100 * row["accuracy"]) for row in bins]
    axis.plot(*np.array(points).reshape(-1, 2).T, color=_LINE_COLORS[0], marker="o", markersize=4, label="accuracy")
    axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence in %", ylabel="% of pixels")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure


def plot_class_iou(per_class: Mapping[str, Mapping[str, Any]], colors: Sequence[Color], path: Path) -> None:
    """Draw the IoU of each class as a bar in the class's colour, absent classes as a dash.

    Args:
        per_class: as in ``metrics.json``: class name -> ``{"iou": fraction or None, ...}``.
        colors: RGB 0 to 255, one for each class in the same order.
        path: PNG file to write; missing folders are made.
    """
    figure = Figure(figsize=(6.4, 0.28 * len(per_class) + 1.1), layout="constrained")
    axis = figure.add_subplot()
    texts = [percent(row.get("iou")) for row in per_class.values()]
    values = [0.0 if text == ABSENT else float(text) for text in texts]
    places = range(len(values))
    paints = [tuple(channel / 255 for channel in color) for color in colors]
    axis.barh(places, values, color=paints, edgecolor="0.25", linewidth=0.6, height=0.72)
    for place, value, text in zip(places, values, texts, strict=True):
        label = axis.text(value + 1, place, text, va="center", fontsize=9, color="0.15")
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # above the line of the mean
    if occurring := [value for value, text in zip(values, texts, strict=True) if text != ABSENT]:
        mean = float(np.mean(occurring))
        axis.axvline(mean, color="0.35", linewidth=1, linestyle="--", zorder=0)
        axis.set_title(f"IoU of each class in %, mean {mean:.1f}")
    axis.set_yticks(places, literal(per_class))
    axis.set(xlim=(0, 108), ylim=(len(values) - 0.4, -0.6))
    axis.set_xticks(range(0, 101, 20))
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def literal(names: Iterable[str]) -> list[str]:
    """Names from files, so that Matplotlib takes none for a formula."""
    return [name.replace("$", r"\$") for name in names]


def _points(history: History, key: str) -> list[tuple[float, float]]:
    """``(epoch, value)`` of a column, without the rows that lack it."""
    points = []
    for index, row in enumerate(history):
        epoch, value = row.get("epoch"), row.get(key)
        if value is not None and math.isfinite(value):
            points.append((float(index if epoch is None else epoch), float(value)))
    return points


def _draw_lines(axis: Axes, title: str, series: Mapping[str, Sequence[tuple[float, float]]], factor: float) -> None:
    """Draw some columns of the history into one chart; the best mIoU gets a mark."""
    for color, (key, points) in zip(cycle(_LINE_COLORS), series.items(), strict=False):
        epochs, values = np.array(points).T
        values = values * factor
        label = key.replace("/", " ")
        if key.endswith("miou"):
            best = int(values.argmax())
            label += f", best {values[best]:.1f} in epoch {epochs[best]:g}"
            axis.plot(epochs[best], values[best], "o", color=color, markersize=7, mfc="none")
        marker = "." if len(points) < 30 else ""
        axis.plot(epochs, values, color=color, marker=marker, linewidth=1.6, label=label)
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    lowest, highest = axis.get_ylim()
    if lowest > 0:
        axis.set_ylim(0, 1.05 * highest)  # so that noise is not drawn as large as the chart
    if len(series) > 1 or any("/" in key for key in series):  # else the title says it
        axis.legend(frameon=False, fontsize=9)


def _save(figure: Figure, path: Path) -> None:
    with fresh_file(path) as fresh:
        figure.savefig(fresh, dpi=_DPI)
