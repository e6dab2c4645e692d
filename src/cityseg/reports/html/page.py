"""From a template and figures to the text of a page; figures as people read them, with a dash where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cityseg.reports.summary import ABSENT, SCORE_NAMES, percent

OWN_CLASSES = (
    "Each fold has found classes of its own in its training labels: there is nothing to say per class over folds, and "
    "no matrix of all. The figures of each are in its own report."
)


def render(template: str, **content: Any) -> str:
    """Fill a template of ``reports/templates``."""
    return environment().get_template(template).render(content)


def environment() -> Environment:
    """What templates are filled in: a name that is missing is an error, and in HTML every value is escaped."""
    made = Environment(
        loader=PackageLoader("cityseg.reports"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"score_names": SCORE_NAMES, "absent": ABSENT, "own_classes": OWN_CLASSES}
    filters = (
        *(percent, breakable, compact, interval, mean_and_std, minutes, parameters, p_value),
        *(points, points_and_std, points_interval, pair_notes),
    )
    made.filters |= {function.__name__: function for function in filters}
    return made


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


def points_and_std(test: Mapping[str, Any]) -> str:
    """Mean and deviation of differences over folds in percentage points: ``+1.2 ± 0.4``."""
    return points(test["mean"]) + ("" if test["std"] is None else f" ± {percent(test['std'])}")


def points_interval(ends: Sequence[float] | None) -> str:
    """Both ends in percentage points: ``-0.4 to +2.9``."""
    return ABSENT if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def p_value(p: float | None) -> str:
    """Three decimals, or that it is smaller."""
    return ABSENT if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def pair_notes(pair: Mapping[str, Any]) -> list[str]:
    """What has to be said of the comparison of two groups of a sweep."""
    common, left_out, note = len(pair["folds"]), pair["left_out"], pair["images_note"]
    outside = ", ".join(map(str, left_out))
    notes = (
        (left_out, f"compared on {common} of {common + len(left_out)} folds; not in both: {outside}"),
        (pair["test"]["p"] is None, "no test: it needs two common folds whose differences are not all the same"),
        (note, f"no interval over images: {note}"),
    )
    return [text for holds, text in notes if holds]


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
    return ABSENT if seconds is None else f"{seconds / 60:.{1 if seconds < 600 else 0}f}"


def compact(count: int) -> str:
    """A count in at most four characters, for narrow cells.

    >>> [compact(count) for count in (0, 999, 1234, 45_678, 999_600, 4_741_240, 2_000_000_000)]
    ['0', '999', '1.2k', '46k', '1.0M', '4.7M', '2.0G']
    """
    value, units = float(count), iter("kMGT")
    unit = ""
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"
