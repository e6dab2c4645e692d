"""Geometry of the charts that templates draw: positions in percent of the axes, so that nothing but lines stretches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cityseg.reports.plots import History

_STEPS = (1, 2, 5, 10)
_MOST_MARKS = 50  # points of a line that get a mark of their own

Points = Sequence[tuple[float, float]]


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
    step = power * next(factor for factor in _STEPS if factor * power >= 0.999 * rough)
    if whole:
        step = max(1, round(step))
    made = Axis(low, high, [])
    for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        made.ticks.append((made.at(index * step), f"{round(index * step, 12):g}"))
    return made


class Mark(NamedTuple):
    """A point of a chart; ``style`` tells folds or runs apart, ``special`` is the epoch whose weights were kept."""

    x: float
    y: float
    title: str
    style: int
    special: bool = False


class Line(NamedTuple):
    """One line: an SVG path's points in percent, and the marks on it."""

    label: str
    style: int
    path: str
    marks: list[Mark]


class LineChart(NamedTuple):
    """Lines over epochs."""

    title: str
    x: Axis
    y: Axis
    lines: list[Line]


def line_chart(
    title: str,
    series: Mapping[str, Points],
    styles: Mapping[str, int],
    kept: Mapping[str, int | None],
    *,
    zero: bool = False,
) -> LineChart | None:
    """Lay out lines over the epochs.

    Args:
        title: of the chart.
        series: label of a line -> ``(epoch, value)``.
        styles: label -> number of its colour.
        kept: label -> epoch whose weights were scored; its point is marked.
        zero: 0 is on the axis, as for what is noisy and never negative.

    Returns:
        The chart; None if no line has a value.
    """
    drawn = {label: points for label, points in series.items() if points}
    if not drawn:
        return None
    x = axis((epoch for points in drawn.values() for epoch, _ in points), whole=True)
    values = [value for points in drawn.values() for _, value in points]
    y = axis([*values, *([0.0] if zero else [])], margin=0.04)
    lines = []
    for label, points in drawn.items():
        every = math.ceil(len(points) / _MOST_MARKS)
        marks = [
            Mark(
                x.at(epoch),
                round(100 - y.at(value), 2),
                f"{label}, epoch {epoch:g}: {value:.4g}" + (", kept" if epoch == kept.get(label) else ""),
                styles[label],
                epoch == kept.get(label),
            )
            for index, (epoch, value) in enumerate(points)
            if index % every == 0 or epoch == kept.get(label)
        ]
        path = " ".join(f"{x.at(epoch):g},{100 - y.at(value):g}" for epoch, value in points)
        lines.append(Line(label, styles[label], path, marks))
    return LineChart(title, x, y, lines)


def column(history: History, key: str, factor: float = 1) -> list[tuple[float, float]]:
    """``(epoch, value)`` of a column of the history, without the rows that lack it."""
    rows = ((row.get("epoch"), row.get(key)) for row in history)
    return [
        (epoch, factor * value)
        for epoch, value in rows
        if epoch is not None and value is not None and math.isfinite(value)
    ]


class ReliabilityBin(NamedTuple):
    """Where a bin begins, how wide it is, its share of the pixels, and the place of its point; all in percent."""

    left: float
    width: float
    share: float
    x: float
    y: float
    title: str


class Reliability(NamedTuple):
    """Accuracy over confidence: a point for each bin with pixels, over bars of the bins' shares of the pixels."""

    axis: Axis  # of both directions
    bins: list[ReliabilityBin]


def reliability(table: Sequence[Mapping[str, Any]]) -> Reliability | None:
    """Lay out the rows of :class:`cityseg.calibration.Bin`; None if they have no pixels."""
    total = sum(row["pixels"] for row in table)
    bins = []
    for row in table:
        if row["pixels"]:
            left, right, x, y = (round(100 * row[key], 2) for key in ("above", "to", "confidence", "accuracy"))
            share = 100 * row["pixels"] / total
            title = f"confidence {x:.1f} %, accuracy {y:.1f} %, {share:.3g} % of the pixels"
            bins.append(ReliabilityBin(left, round(right - left, 2), round(share, 2), x, round(100 - y, 2), title))
    return Reliability(axis((0, 100), ticks=6), bins) if bins else None


class Row(NamedTuple):
    """Values of one row of a dot plot in the chart's unit, each with its tooltip and style; mean and its interval."""

    label: str
    text: str
    values: Sequence[tuple[float, str, int]]
    mean: float | None
    interval: Sequence[float] | None


class PlacedRow(NamedTuple):
    """A row as it is drawn: positions in percent."""

    label: str
    text: str
    marks: list[Mark]
    mean: float | None
    interval: tuple[float, float] | None


class DotPlot(NamedTuple):
    """Rows of points over one axis; ``zero`` is where 0 lies, if it shows."""

    x: Axis
    rows: list[PlacedRow]
    zero: float | None


def dot_plot(
    rows: Sequence[Row], *, limits: tuple[float, float] = (-math.inf, math.inf), zero: bool = False
) -> DotPlot:
    """Lay out values, means and intervals over a common axis.

    Args:
        rows: from top to bottom.
        limits: intervals are drawn no farther than this, as a score's cannot be.
        zero: 0 is on the axis, as for differences.
    """
    clipped = [tuple(min(max(end, limits[0]), limits[1]) for end in row.interval or ()) for row in rows]
    values = [value for row in rows for value, _, _ in row.values]
    x = axis([*values, *(end for ends in clipped for end in ends), *([0.0] if zero else [])], margin=0.04, ticks=6)
    placed = [
        PlacedRow(
            row.label,
            row.text,
            [Mark(x.at(value), 50, title, style) for value, title, style in row.values],
            None if row.mean is None else x.at(row.mean),
            (x.at(ends[0]), x.at(ends[1])) if ends else None,
        )
        for row, ends in zip(rows, clipped, strict=True)
    ]
    return DotPlot(x, placed, x.at(0) if zero else None)


class Cell(NamedTuple):
    """Pixels of a confusion matrix, and their share of the true class; None where that has no pixel."""

    pixels: int
    rate: float | None


class Confusion(NamedTuple):
    """The classes of a confusion matrix that occur, in truth or prediction, and the names of the others."""

    names: list[str]
    rows: list[list[Cell]]
    absent: list[str]


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Confusion:
    """Leave out classes that do not occur, and take shares of rows.

    Args:
        matrix: ``(C, C)`` counts, rows are the truth and columns the prediction.
        names: one for each class.

    >>> confusion([[3, 1, 0], [0, 0, 0], [0, 0, 0]], ["road", "car", "bus"])
    Confusion(names=['road', 'car'], rows=[[Cell(pixels=3, rate=0.75), Cell(pixels=1, rate=0.25)], \
[Cell(pixels=0, rate=None), Cell(pixels=0, rate=None)]], absent=['bus'])
    """
    truth, predicted = [sum(row) for row in matrix], [sum(column) for column in zip(*matrix, strict=True)]
    occur = [index for index in range(len(names)) if truth[index] or predicted[index]]
    rows = [[Cell(matrix[i][j], matrix[i][j] / truth[i] if truth[i] else None) for j in occur] for i in occur]
    return Confusion([names[i] for i in occur], rows, [name for i, name in enumerate(names) if i not in occur])
