"""Plots of a run and of a sweep over folds: curves, confusion matrix, IoU of each class, score of each fold.

Figures are made through matplotlib's object interface, never pyplot, so that no global state changes. What is called
``plot_...`` writes one to a PNG file, and makes the folders that are missing. In a history values may be missing, None
or NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
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
_CELL = 0.42  # inches a class takes in the confusion matrix
_WIDTH = 0.32  # of a group's place that its folds are spread over

# Title of each chart, which columns of the history it shows, and the factor to the unit in the title.
_CHARTS = (
    ("loss", r"(.*/)?[^/]*loss[^/]*", 1),
    ("score in %", r".*(iou|mpa|accuracy|dice)", 100),
    ("learning rate", r"lr.*", 1),
    ("images per second", r"images_per_second", 1),
)
_FOLD_CHARTS = (("val/miou", "validation mIoU in %", 100), ("val/loss", "validation loss", 1))


def column(history: History, key: str, factor: float = 1) -> list[tuple[float, float]]:
    """``(epoch, value)`` of a column of the history, without the rows that lack it."""
    rows = ((row["epoch"], row.get(key)) for row in history)
    return [
        (epoch, factor * value)
        for epoch, value in rows
        if epoch is not None and value is not None and math.isfinite(value)
    ]


def row_shares(confusion: npt.ArrayLike) -> tuple[list[int], npt.NDArray[np.float64]]:
    """The classes that occur, in truth or prediction, and the shares that rows of their matrix are made of.

    Args:
        confusion: ``(C, C)`` counts, rows are the truth and columns the prediction.

    Returns:
        ``(K,)`` indices of classes, and ``(K, K)`` fractions of each row; NaN where it has no pixel.
    """
    counts = np.asarray(confusion, np.float64)
    occurs = np.flatnonzero(counts.sum(0) + counts.sum(1))
    counts = counts[np.ix_(occurs, occurs)]
    totals = counts.sum(1, keepdims=True)
    return occurs.tolist(), np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def plot_curves(history: History, path: Path) -> None:
    """Draw losses, scores, learning rate and speed over the epochs, each where the history has it."""
    keys = dict.fromkeys(key for row in history for key in row)
    charts = []
    for title, pattern, factor in _CHARTS:
        shown = {key: column(history, key, factor) for key in keys if re.fullmatch(pattern, key)}
        if any(shown.values()):
            charts.append((title, {key: points for key, points in shown.items() if points}))
    columns, rows = 1 + (len(charts) > 1), max(math.ceil(len(charts) / 2), 1)
    figure = Figure(figsize=(5.2 * columns, 3.4 * rows), layout="constrained")
    if not charts:
        figure.text(0.5, 0.5, "no epoch was recorded", ha="center", va="center", color="0.4")
    for place, (title, shown) in enumerate(charts, start=1):
        _draw_lines(figure.add_subplot(rows, columns, place), title, shown)
    _save(figure, path)


def plot_fold_curves(histories: Mapping[str, Mapping[int, History]], path: Path) -> None:
    """Draw validation mIoU and loss of ``histories[group][fold]``, a line a fold and a row of charts a group."""
    figure = Figure(figsize=(10.4, 3.4 * len(histories)), layout="constrained")
    charts = figure.subplots(len(histories), len(_FOLD_CHARTS), squeeze=False)
    colors = _fold_colors(histories.values())
    for row, (group, folds) in zip(charts, histories.items(), strict=True):
        for axis, (key, title, factor) in zip(row, _FOLD_CHARTS, strict=True):
            for fold, history in folds.items():
                _draw_line(axis, column(history, key, factor), color=colors[fold], label=f"fold {fold}")
            _frame(axis, f"{_literal(group)}: {title}")
        if folds:
            row[0].legend(frameon=False, fontsize=9, ncols=1 + (len(folds) - 1) // 5)
    _save(figure, path)


def plot_folds(
    scores: Mapping[str, Mapping[int, float | None]], spreads: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """Write :func:`folds_figure`."""
    _save(folds_figure(scores, spreads), path)


def folds_figure(scores: Mapping[str, Mapping[int, float | None]], spreads: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the mIoU of every fold as a point, groups side by side, with their means and 95 % intervals.

    A grey line joins the points of one fold, so that paired differences show.

    Args:
        scores: group -> fold -> mIoU as a fraction, None where there is none.
        spreads: group -> ``{"mean": fraction or None, "interval": [low, high] or None}``.
    """
    colors = _fold_colors(scores.values())
    steps = len(colors) - 1
    figure = Figure(figsize=(max(5.2, 1.6 * len(scores) + 1.6), 4.2), layout="constrained")
    axis = figure.add_subplot()
    for index, (fold, color) in enumerate(colors.items()):
        values = [by_fold.get(fold) for by_fold in scores.values()]
        x = np.arange(len(values)) + _WIDTH * (2 * index - steps) / max(steps, 1)
        y = np.array([math.nan if value is None else 100 * value for value in values])  # NaN: a gap in the line
        axis.plot(x, y, color="0.8", linewidth=1, zorder=1)
        axis.scatter(x, y, color=[color], label=f"fold {fold}", zorder=3)
    for place, group in enumerate(scores):
        mean, interval = spreads[group]["mean"], spreads[group]["interval"]
        if interval is not None:
            low, high = (100 * end for end in interval)
            axis.fill_between([place - 0.42, place + 0.42], low, high, color="0.5", alpha=0.15, linewidth=0, zorder=0)
        if mean is not None:
            axis.hlines(100 * mean, place - 0.42, place + 0.42, color="0.25", linewidth=1.6, zorder=2)
    axis.set_title("mIoU of every fold in %, mean and 95 % interval", loc="left", fontsize=11)
    axis.set_xticks(range(len(scores)), list(map(_literal, scores)), rotation=20 if len(scores) > 3 else 0)
    axis.set_xlim(-0.6, len(scores) - 0.4)
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if colors:
        figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    return figure


def confusion_figure(confusion: npt.ArrayLike, names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, ``(C, C)`` counts as in :func:`row_shares`, in percent of each row's truth.

    Classes that neither truth nor prediction has are left out; a class that is only predicted has no
    percentages and its row stays empty.
    """
    occurs, shares = row_shares(confusion)
    rates, shown = 100 * shares, [_literal(names[index]) for index in occurs]
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
    axis.set_xticks(range(len(shown)), shown, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(shown)), shown)
    axis.set(xlabel="prediction", ylabel="truth")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for row, col in np.argwhere(rates >= 0.5):  # smaller ones would all read "0"
        ink = "white" if rates[row, col] > 55 else "0.15"
        axis.text(col, row, f"{rates[row, col]:.0f}", ha="center", va="center", fontsize=8, color=ink)
    return figure


def plot_confusion(confusion: npt.ArrayLike, names: Sequence[str], path: Path) -> None:
    """Write :func:`confusion_figure`."""
    _save(confusion_figure(confusion, names), path)


def reliability_figure(calibration: Mapping[str, Any]) -> Figure:
    """Draw what :meth:`cityseg.calibration.Calibration.scores` gives: accuracy of pixels over their confidence."""
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
        path: PNG file to write.
    """
    figure = Figure(figsize=(6.4, 0.28 * len(per_class) + 1.1), layout="constrained")
    axis = figure.add_subplot()
    texts = [percent(row.get("iou")) for row in per_class.values()]
    values = [0.0 if text == ABSENT else float(text) for text in texts]
    places = range(len(values))
    axis.barh(places, values, color=np.array(colors) / 255, edgecolor="0.25", linewidth=0.6, height=0.72)
    for place, value, text in zip(places, values, texts, strict=True):
        label = axis.text(value + 1, place, text, va="center", fontsize=9, color="0.15")
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # above the line of the mean
    if occurring := [float(text) for text in texts if text != ABSENT]:
        mean = float(np.mean(occurring))
        axis.axvline(mean, color="0.35", linewidth=1, linestyle="--", zorder=0)
        axis.set_title(f"IoU of each class in %, mean {mean:.1f}")
    axis.set_yticks(places, list(map(_literal, per_class)))
    axis.set(xlim=(0, 108), ylim=(len(values) - 0.4, -0.6))
    axis.set_xticks(range(0, 101, 20))
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _literal(name: str) -> str:
    """A name from a file, so that Matplotlib does not take it for a formula."""
    return name.replace("$", r"\$")


def _fold_colors(groups: Iterable[Mapping[int, Any]]) -> dict[int, Any]:
    """Fold -> colour, the same in every group, in the order of the folds."""
    folds = sorted({fold for by_fold in groups for fold in by_fold})
    return dict(zip(folds, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(folds))), strict=True))


def _draw_lines(axis: Axes, title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw some columns of the history into one chart; the best mIoU gets a mark."""
    for color, (key, points) in zip(cycle(_LINE_COLORS), series.items(), strict=False):
        label = key.replace("/", " ")
        if key.endswith("miou"):
            epoch, best = max(points, key=lambda point: point[1])
            label += f", best {best:.1f} in epoch {epoch:g}"
            axis.plot(epoch, best, "o", color=color, markersize=7, mfc="none")
        _draw_line(axis, points, color=color, linewidth=1.6, label=label)
    _frame(axis, title)
    lowest, highest = axis.get_ylim()
    if lowest > 0:
        axis.set_ylim(0, 1.05 * highest)  # so that noise is not drawn as large as the chart
    if len(series) > 1 or any("/" in key for key in series):  # else the title says it
        axis.legend(frameon=False, fontsize=9)


def _draw_line(axis: Axes, points: Sequence[tuple[float, float]], **look: Any) -> None:
    axis.plot(*np.array(points).reshape(-1, 2).T, marker="." if len(points) < 30 else "", **look)


def _frame(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    with fresh_file(path) as fresh:
        figure.savefig(fresh, dpi=120)
