"""Figures as people read them: percentages, points, intervals and counts; a dash where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from cityseg.reports.summary import ABSENT, percent

OWN_CLASSES = (
    "Each fold has found classes of its own in its training labels: there is nothing to say per class over folds, and "
    "no matrix of all. The figures of each are in its own report."
)
SCORE_NAMES = {"miou": "mIoU", "mpa": "mPA", "pixel_accuracy": "pixel accuracy", "fwiou": "fwIoU", "dice": "Dice"}


def breakable(name: str) -> Markup:
    """A name that may be broken after its commas, as a group's overrides are."""
    return Markup(",<wbr>").join(name.split(","))


def mean_and_std(spread: Mapping[str, Any]) -> str:
    """Mean and deviation over folds in percent; without the second where there is one fold.

    >>> mean_and_std({"mean": 0.612, "std": 0.0134}), mean_and_std({"mean": 0.612, "std": None})
    ('61.2 ± 1.3', '61.2')
    """
    return percent(spread["mean"]) + ("" if spread["std"] is None else f" ± {percent(spread['std'])}")


def interval(ends: Sequence[float] | None) -> str:
    """Both ends in percent: ``58.1 to 64.3``."""
    return ABSENT if ends is None else f"{percent(ends[0])} to {percent(ends[1])}"


def points(difference: float | None) -> str:
    """A difference of fractions in percentage points, with its sign.

    >>> points(0.0123)
    '+1.2'
    """
    return ABSENT if difference is None else f"{100 * difference:+.1f}"


def points_interval(ends: Sequence[float] | None) -> str:
    """Both ends in percentage points: ``-0.4 to +2.9``."""
    return ABSENT if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def p_value(p: float | None) -> str:
    """Three decimals, or that it is smaller."""
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def parameters(counts: Mapping[str, int]) -> str:
    """How many there are, how many are trained, and how many the parts have.

    >>> parameters({"total": 1234567, "trainable": 1000, "encoder": 20000})
    '1,234,567, 1,000 trainable, 20,000 in the encoder'
    """
    parts = dict(counts)
    total, trainable = parts.pop("total"), parts.pop("trainable")
    told = [f"{total:,}", f"{'all' if trainable == total else f'{trainable:,}'} trainable"]
    return ", ".join([*told, *(f"{count:,} in the {part}" for part, count in parts.items())])


def minutes(seconds: float | None) -> str:
    """A time span in minutes, with a decimal below ten.

    >>> minutes(90), minutes(3928.6)
    ('1.5', '65')
    """
    if seconds is None:
        return ABSENT
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"


def compact(count: int) -> str:
    """A count in at most four characters, for narrow cells.

    >>> [compact(count) for count in (0, 999, 1234, 45_678, 999_600, 4_741_240, 2_000_000_000)]
    ['0', '999', '1.2k', '46k', '1.0M', '4.7M', '2.0G']
    """
    if count < 1000:
        return str(count)
    value, unit = next(
        (count / size, unit) for size, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")) if count / size < 999.5
    )
    return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
