"""The table that closes a run on the terminal: headline figures, one row a class, and the files to open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

ABSENT = "\N{EN DASH}"
"""What stands where a class does not occur: it has no score, not a score of 0."""

SCORE_NAMES = {
    **{"miou": "mIoU", "mpa": "mPA", "pixel_accuracy": "pixel accuracy"},
    **{"fwiou": "frequency-weighted IoU", "dice": "Dice"},
}
"""Key of ``metrics.json`` -> what a reader knows the figure as."""

_BAR_WIDTH = 20  # characters


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage without its sign, or a dash for an absent value.

    >>> percent(0.6667), percent(None) == percent(float("nan")) == ABSENT
    ('66.7', True)
    """
    return ABSENT if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f}"


def closing_table(metrics: Mapping[str, Any], paths: Mapping[str, Path]) -> RenderableType:
    """Lay out the figures of ``metrics.json`` and the paths worth opening.

    Args:
        metrics: the content of ``metrics.json``; what is missing is left out, null is a dash.
        paths: what each file is -> where it lies.

    Returns:
        Something for ``rich.print``, at most 100 columns wide, that reads well without colours too.
    """
    files = Table.grid(padding=(0, 2))
    files.add_column(style="bold", no_wrap=True)
    files.add_column(overflow="fold")  # folded, not cut: a path must stay whole to be of use
    for name, path in paths.items():
        files.add_row(Text(name), Text(str(path)))
    classes = [_class_table(metrics["per_class"])] if metrics.get("per_class") else []
    return Group(headline(metrics), *_details(metrics), *classes, files)


def headline(metrics: Mapping[str, Any]) -> Text:
    """The mIoU, and what it was taken on."""
    images = metrics.get("images")
    counted = f"{images} image{'' if images == 1 else 's'}" if images is not None else "the images"
    where = f" on {counted} of {metrics.get('dataset', 'the dataset')}"
    split = f", {metrics['split']} split" if metrics.get("split") else ""
    return Text.assemble(("mIoU ", "bold"), (_with_sign(metrics.get("miou")), "bold green"), where, split)


def _details(metrics: Mapping[str, Any]) -> list[Text]:
    """The other figures, one line each for scores, categories and cost; empty lines are left out."""
    named = [(name, metrics[key]) for key, name in SCORE_NAMES.items() if key in metrics and key != "miou"]
    scores = [f"{name} {_with_sign(value)}" for name, value in named]
    if metrics.get("loss") is not None:
        scores.append(f"loss {metrics['loss']:.4f}")
    categories = [f"{name} {percent(value)}" for name, value in (metrics.get("category_iou") or {}).items()]
    cost = []
    if parameters := metrics.get("parameters"):
        cost.append(f"{_count(parameters['total'])} parameters, {_count(parameters['trainable'])} trainable")
    if metrics.get("seconds") is not None:
        cost.append(duration(metrics["seconds"]))
    if categories:
        categories[0] = f"category IoU in %: {categories[0]}"
    return [Text(" · ".join(parts)) for parts in (scores, categories, cost) if parts]


def _class_table(per_class: Mapping[str, Mapping[str, Any]]) -> Table:
    total = sum(row.get("pixels") or 0 for row in per_class.values())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold", max_width=28)
    table.add_column("IoU %", justify="right", no_wrap=True)
    table.add_column("", width=_BAR_WIDTH)
    table.add_column("accuracy %", justify="right", no_wrap=True)
    table.add_column("pixels %", justify="right", no_wrap=True)
    for name, row in per_class.items():
        iou, share = percent(row.get("iou")), (row.get("pixels") or 0) / total if total else None
        table.add_row(
            Text(name),  # as text, since a class name may hold square brackets
            iou,
            "" if iou == ABSENT else Bar(1, 0, row["iou"], width=_BAR_WIDTH, color="cyan"),
            percent(row.get("accuracy")),
            percent(share, digits=2),
            style="dim" if iou == ABSENT else None,
        )
    return table


def _with_sign(fraction: float | None) -> str:
    text = percent(fraction)
    return text if text == ABSENT else f"{text} %"


def _count(number: float) -> str:
    """A parameter count in the unit people say it in.

    >>> _count(24_436_369), _count(1_900), _count(12)
    ('24.4 M', '1.9 k', '12')
    """
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return str(int(number))


def duration(seconds: float) -> str:
    """A time span in its two largest units.

    >>> duration(7384), duration(125), duration(3.21)
    ('2 h 3 min', '2 min 5 s', '3.2 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
