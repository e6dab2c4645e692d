"""What the charts of a page show: lines, rows of points, matrices, and the axes that templates place them on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cityseg.reports.plots import row_shares

Points = Sequence[tuple[float, float]]

# Columns of the history that are drawn of several runs, with the title of their chart and the factor to its unit.
CURVES = (
    ("train/loss", "training loss", 1),
    ("val/loss", "validation loss", 1),
    ("val/miou", "validation mIoU %", 100),
)


class Axis(NamedTuple):
    """A linear axis with its ticks, each a position in percent and a text."""

    low: float
    high: float
    ticks: list[tuple[float, str]]

    def at(self, value: float) -> float:
        """Position of a value in percent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def axis(values: Iterable[float], *, ticks: int = 5, margin: float = 0.0, whole: bool = False) -> Axis:
    """An axis around all values with about `ticks` round ticks.

    Args:
        values: what has to fit.
        ticks: wanted number of ticks.
        margin: share of the range left free at each end.
        whole: ticks at whole numbers only.

    >>> axis([2, 9]).ticks
    [(0.0, '2'), (28.57, '4'), (57.14, '6'), (85.71, '8')]
    """
    present = list(values) or [0.0, 1.0]
    low, high = min(present), max(present)
    room = margin * (high - low) or (0.0 if high > low else abs(high) / 2 or 0.5)
    low, high = low - room, high + room
    rough = (high - low) / max(ticks - 1, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)
    if whole:
        step = max(1, round(step))
    made = Axis(low, high, [])
    for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        made.ticks.append((made.at(index * step), f"{round(index * step, 12):g}"))
    return made


class LineChart(NamedTuple):
    """Lines over epochs: label -> points, number of its colour, and the epoch whose weights were scored."""

    title: str
    x: Axis
    y: Axis
    lines: Mapping[str, Points]
    styles: Mapping[str, int]
    kept: Mapping[str, int | None]


def line_chart(
    title: str,
    series: Mapping[str, Points],
    styles: Mapping[str, int],
    kept: Mapping[str, int | None],
    *,
    zero: bool = False,
) -> LineChart | None:
    """A chart with 0 on its axis if `zero`, as for what is noisy and never negative; None if no line has a value."""
    drawn = {label: points for label, points in series.items() if points}
    if not drawn:
        return None
    epochs, values = zip(*(point for points in drawn.values() for point in points), strict=True)
    return LineChart(title, axis(epochs, whole=True), axis([*values, *[0.0] * zero], margin=0.04), drawn, styles, kept)


class Row(NamedTuple):
    """One row of a dot plot in the chart's unit: values, each with its tooltip and style; mean and its interval."""

    label: str
    text: str
    values: Sequence[tuple[float, str, int]]
    mean: float | None
    interval: Sequence[float] | None


class DotPlot(NamedTuple):
    """Rows of points over one axis, on which 0 is marked if `zero`."""

    x: Axis
    rows: Sequence[Row]
    zero: bool


def dot_plot(rows: Sequence[Row], *, differences: bool = False) -> DotPlot:
    """Scores in percent, whose intervals are drawn from 0 to 100 at most; or differences, with 0 on the axis."""
    if not differences:
        rows = [row._replace(interval=row.interval and np.clip(row.interval, 0, 100).tolist()) for row in rows]
    values = [value for row in rows for value, _, _ in row.values]
    ends = [end for row in rows for end in row.interval or ()]
    return DotPlot(axis([*values, *ends, *[0.0] * differences], margin=0.04, ticks=6), rows, differences)


class Confusion(NamedTuple):
    """The classes that occur, in truth or prediction, each with a row of cells, and the names of the others.

    A cell is its pixels and their share of the true class, None where that has no pixel.
    """

    names: list[str]
    rows: list[list[tuple[int, float | None]]]
    absent: list[str]


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Confusion:
    """Leave out classes that do not occur, and take shares of rows.

    Args:
        matrix: ``(C, C)`` counts, rows are the truth and columns the prediction.
        names: one for each class.

    >>> confusion([[3, 1, 0], [0, 0, 0], [0, 0, 0]], ["road", "car", "bus"])
    Confusion(names=['road', 'car'], rows=[[(3, 0.75), (1, 0.25)], [(0, None), (0, None)]], absent=['bus'])
    """
    occurs, shares = row_shares(matrix)
    rows = [
        [(matrix[i][j], None if math.isnan(share) else share) for j, share in zip(occurs, row, strict=True)]
        for i, row in zip(occurs, shares.tolist(), strict=True)
    ]
    absent = [name for index, name in enumerate(names) if index not in occurs]
    return Confusion([names[index] for index in occurs], rows, absent)
