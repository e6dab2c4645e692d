"""Runs against the first of them: scores, classes, images and configs."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from cityseg import __version__
from cityseg.crossval.statistics import bootstrap_mean_iou, percentile_interval
from cityseg.errors import DataError, Problems
from cityseg.image_counts import IntArray
from cityseg.reports.html.text import SCORE_NAMES
from cityseg.reports.run_files import RunFiles

# What has to be the same for a difference of scores to be one of the networks.
_SAME = {
    "dataset": "data",
    "split": "split",
    "fold": "fold",
    "images": "number of images",
    "protocol": "protocol",
    "label_space": "label space",
}


class ComparedRun(TypedDict):
    """A run under its letter; scores are fractions, None where nothing was there to score."""

    letter: str
    name: str
    folder: str
    scores: dict[str, float | None]
    per_class: dict[str, float | None]
    facts: dict[str, Any]


class ImageChange(TypedDict):
    """mIoU of one image in the first run and in another."""

    image: str
    first: float
    other: float
    difference: float


class Difference(TypedDict):
    """A run minus the first; the 95 % interval of the mIoU is over images, ``images`` are the most changed first."""

    letter: str
    scores: dict[str, float | None]
    per_class: dict[str, float | None]
    interval: list[float] | None
    images: list[ImageChange]


class Comparison(TypedDict):
    """The content of ``compare.json``; ``config`` has the keys that differ, None where a run lacks one."""

    cityseg: str
    warnings: list[str]
    runs: list[ComparedRun]
    differences: list[Difference]
    config: dict[str, dict[str, str | None]]


def compare_runs(runs: Sequence[RunFiles]) -> Comparison:
    """Compare runs with the first one.

    Args:
        runs: two at least.

    Raises:
        DataError: if there is nothing that could be compared: a run without scores, other classes, the same run twice.
    """
    _check(runs)
    letters = string.ascii_uppercase[: len(runs)]
    compared = [_compared(letter, run) for letter, run in zip(letters, runs, strict=True)]
    warnings = list(_warnings(letters, runs))
    differences = []
    for run, entry in zip(runs[1:], compared[1:], strict=True):
        difference, notes = _difference(compared[0], entry, runs[0], run)
        differences.append(difference)
        warnings += notes
    keys = dict.fromkeys(key for run in runs for key in run.config)
    values = {key: {letter: run.config.get(key) for letter, run in zip(letters, runs, strict=True)} for key in keys}
    return {
        "cityseg": __version__,
        "warnings": warnings,
        "runs": compared,
        "differences": differences,
        "config": {key: row for key, row in values.items() if len(set(row.values())) > 1},
    }


def _check(runs: Sequence[RunFiles]) -> None:
    problems = Problems("the comparison")
    if not 2 <= len(runs) <= len(string.ascii_uppercase):
        problems.add(f"found {len(runs)} runs, expected 2 to {len(string.ascii_uppercase)}")
    for index, run in enumerate(runs):
        if run.folder.resolve() in (other.folder.resolve() for other in runs[:index]):
            problems.add("the same run twice", str(run.folder))
        if "confusion_matrix" not in run.figures:
            problems.add(
                "runs without scores", str(run.folder), fix="score them on a split with labels: python evaluate.py"
            )
    problems.raise_if_any(DataError)
    if len({tuple(run.figures["per_class"]) for run in runs}) > 1:
        for run in runs:
            names = list(run.figures["per_class"])
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            problems.add(
                "other classes: a mean over other classes is another figure",
                f"{run.folder}: {len(names)} classes of {run.figures.get('label_space')} ({shown})",
                fix="compare runs of one label space",
            )
    problems.raise_if_any(DataError)


def _compared(letter: str, run: RunFiles) -> ComparedRun:
    facts = (*_SAME, "parameters", "epochs", "best_epoch", "seed", "seconds", "environment")
    return {
        "letter": letter,
        "name": run.name,
        "folder": str(run.folder),
        "scores": {key: run.figures.get(key) for key in SCORE_NAMES},
        "per_class": {name: row["iou"] for name, row in run.figures["per_class"].items()},
        "facts": {key: run.figures[key] for key in facts if key in run.figures},
    }


def _warnings(letters: str, runs: Sequence[RunFiles]) -> Iterator[str]:
    for key, what in _SAME.items():
        members: dict[str, list[str]] = {}
        for letter, run in zip(letters, runs, strict=True):
            members.setdefault(str(run.figures.get(key, "not recorded")), []).append(letter)
        if len(members) > 1:
            told = "; ".join(f"{', '.join(group)}: {value}" for value, group in members.items())
            yield f"the {what} differs: {told}"


def _difference(
    first: ComparedRun, other: ComparedRun, first_run: RunFiles, run: RunFiles
) -> tuple[Difference, list[str]]:
    letters = f"{first['letter']} and {other['letter']}"
    notes = []
    truths = [[row["pixels"] for row in each.figures["per_class"].values()] for each in (first_run, run)]
    if truths[0] != truths[1]:
        notes.append(f"{letters}: their truth has other pixels, so part of each difference is not of the networks")
    names, counts, total = _common_counts(first_run, run)
    images: list[ImageChange] = []
    interval = None
    if not total:
        notes.append(f"{letters}: no comparison of images, for want of a per_image.npz that fits the figures")
    elif not names:
        notes.append(f"{letters}: no image has the same name and truth in both, so none are compared")
    elif len(names) < total:
        notes.append(f"{letters}: {len(names)} of {total} images have the same name and truth; only they are compared")
    elif total > 1:
        drawn = bootstrap_mean_iou(counts)
        interval = percentile_interval(drawn[1] - drawn[0])
    if names:
        ours, theirs = ({score.image: score.miou for score in each.image_scores} for each in (first_run, run))
        images = [
            {"image": name, "first": ours[name], "other": theirs[name], "difference": theirs[name] - ours[name]}
            for name in names
            if name in ours
        ]
        images.sort(key=lambda change: -abs(change["difference"]))
    return {
        "letter": other["letter"],
        "scores": _minus(other["scores"], first["scores"]),
        "per_class": _minus(other["per_class"], first["per_class"]),
        "interval": interval,
        "images": images,
    }, notes


def _minus(scores: Mapping[str, float | None], first: Mapping[str, float | None]) -> dict[str, float | None]:
    pairs = ((key, score, first[key]) for key, score in scores.items())
    return {key: None if one is None or two is None else one - two for key, one, two in pairs}


def _common_counts(first: RunFiles, other: RunFiles) -> tuple[list[str], list[IntArray], int]:
    """Images of the same name and truth, their counts in both runs, and how many images there are in all."""
    if first.images is None or other.images is None:
        return [], [], 0
    rows = {name: row for row, name in enumerate(other.images.images)}
    pairs = [
        (mine, rows[name])
        for mine, name in enumerate(first.images.images)
        if name in rows and np.array_equal(first.images.counts[mine, 1], other.images.counts[rows[name], 1])
    ]
    mine, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    names = [first.images.images[row] for row in mine]
    total = len({*first.images.images, *other.images.images})
    return names, [first.images.counts[mine], other.images.counts[theirs]], total
