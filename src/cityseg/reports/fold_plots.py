"""Plots of a sweep over folds: the validation curves of all folds, and the score of every fold by group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cityseg.files import fresh_file
from cityseg.reports.plots import History, literal

_CURVES = (("val/miou", "validation mIoU in %", 100), ("val/loss", "validation loss", 1))
_DPI = 120
_WIDTH = 0.32  # of a group's place that its folds are spread over


def plot_fold_curves(histories: Mapping[str, Mapping[int, History]], path: Path) -> None:
    """Draw validation mIoU and loss over the epochs, one line a fold and one row of charts a group.

    Args:
        histories: group -> fold -> rows of its ``history.csv``; a value may be missing, None or NaN.
        path: PNG file to write; missing folders are made.
    """
    figure = Figure(figsize=(10.4, 3.4 * len(histories)), layout="constrained")
    charts = figure.subplots(len(histories), len(_CURVES), squeeze=False)
    colors = _fold_colors(histories.values())
    for row, (group, folds) in zip(charts, histories.items(), strict=True):
        for axis, (key, title, factor) in zip(row, _CURVES, strict=True):
            for fold, history in folds.items():
                points = _points(history, key)
                marker = "." if len(points) < 30 else ""
                epochs, values = [point[0] for point in points], [factor * point[1] for point in points]
                axis.plot(epochs, values, color=colors[fold], marker=marker, label=f"fold {fold}")
            axis.set_title(f"{literal([group])[0]}: {title}", loc="left", fontsize=11)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(color="0.9", linewidth=0.8)
            axis.spines[["top", "right"]].set_visible(False)
        if folds:
            row[0].legend(frameon=False, fontsize=9, ncols=1 + (len(folds) - 1) // 5)
    _save(figure, path)


def plot_folds(
    scores: Mapping[str, Mapping[int, float | None]], spreads: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """Write :func:`folds_figure` to a PNG file; missing folders are made."""
    _save(folds_figure(scores, spreads), path)


def folds_figure(scores: Mapping[str, Mapping[int, float | None]], spreads: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the mIoU of every fold as a point, groups side by side, with their means and 95 % intervals.

    A grey line joins the points of one fold, so that paired differences show.

    Args:
        scores: group -> fold -> mIoU as a fraction, None where there is none.
        spreads: group -> ``{"mean": fraction or None, "interval": [low, high] or None}``.
    """
    colors = _fold_colors(scores.values())
    folds = list(colors)
    steps = len(folds) - 1
    offsets = {fold: _WIDTH * (2 * index - steps) / max(steps, 1) for index, fold in enumerate(folds)}
    figure = Figure(figsize=(max(5.2, 1.6 * len(scores) + 1.6), 4.2), layout="constrained")
    axis = figure.add_subplot()
    for fold in folds:
        values = [by_fold.get(fold) for by_fold in scores.values()]
        x = np.arange(len(values)) + offsets[fold]
        y = np.array([math.nan if value is None else 100 * value for value in values])  # NaN: a gap in the line
        axis.plot(x, y, color="0.8", linewidth=1, zorder=1)
        axis.scatter(x, y, color=[colors[fold]], label=f"fold {fold}", zorder=3)
    for place, group in enumerate(scores):
        mean, interval = spreads[group]["mean"], spreads[group]["interval"]
        if interval is not None:
            low, high = (100 * end for end in interval)
            axis.fill_between([place - 0.42, place + 0.42], low, high, color="0.5", alpha=0.15, linewidth=0, zorder=0)
        if mean is not None:
            axis.hlines(100 * mean, place - 0.42, place + 0.42, color="0.25", linewidth=1.6, zorder=2)
    axis.set_title("mIoU of every fold in %, mean and 95 % interval", loc="left", fontsize=11)
    axis.set_xticks(range(len(scores)), literal(scores), rotation=20 if len(scores) > 3 else 0)
    axis.set_xlim(-0.6, len(scores) - 0.4)
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if folds:
        figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    return figure


def _fold_colors(groups: Iterable[Mapping[int, Any]]) -> dict[int, Any]:
    """Fold -> colour, the same in every group, in the order of the folds."""
    folds = sorted({fold for by_fold in groups for fold in by_fold})
    return dict(zip(folds, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(folds))), strict=True))


def _points(history: History, key: str) -> Sequence[tuple[float, float]]:
    """``(epoch, value)`` of a column, without the rows that lack it."""
    rows = ((row.get("epoch"), row.get(key)) for row in history)
    return [(epoch, value) for epoch, value in rows if epoch is not None and value is not None and math.isfinite(value)]


def _save(figure: Figure, path: Path) -> None:
    with fresh_file(path) as fresh:
        figure.savefig(fresh, dpi=_DPI)
