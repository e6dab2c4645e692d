"""Groups of a sweep against each other: ranking, paired differences and tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np

from cityseg.crossval.folds import FoldRun, Group
from cityseg.crossval.statistics import (
    RESAMPLES,
    PairedTest,
    Spread,
    bootstrap_mean_iou,
    corrected_t_test,
    holm,
    mean_iou,
    percentile_interval,
    spread,
)
from cityseg.errors import DataError
from cityseg.image_counts import merge


class Ranked(TypedDict):
    """A row of the ranking, over the folds that are compared."""

    rank: int
    group: str
    miou: Spread
    mpa: Spread


class ImageInterval(TypedDict):
    """A pooled mIoU, or the difference of two, with its bootstrap interval over images."""

    value: float | None
    interval: list[float] | None
    images: int
    resamples: int


class Pair(TypedDict):
    """Two groups: differences are ``a - b``, one for each of ``folds``."""

    a: str
    b: str
    folds: list[int]
    left_out: list[int]
    differences: list[float]
    test: PairedTest
    p_holm: float | None
    test_train_ratio: float
    test_train_ratio_counted: bool
    images: ImageInterval | None
    images_note: str | None


class Comparison(TypedDict):
    """All groups by their mIoU; ``folds`` are those that every group has a score for."""

    folds: list[int]
    ranking: list[Ranked]
    pairs: list[Pair]


def scored_folds(group: Group) -> set[int]:
    """Finished folds that have an mIoU: one without a valid pixel has none."""
    return {fold for fold, run in group.finished.items() if run.figures["miou"] is not None}


def compare(groups: Sequence[Group], *, resamples: int = RESAMPLES) -> Comparison:
    """Rank groups and test each pair of them.

    Groups are ranked by their mean mIoU over the folds that all of them have: a mean over other folds would also tell
    how hard those are. Where they share none, each is ranked by its own. A pair is compared on the folds that both
    have. With more than two groups the p-values are corrected for their number.

    Args:
        groups: at least two.
        resamples: of the bootstrap over images.
    """
    shared = set.intersection(*(scored_folds(group) for group in groups))
    rows = [
        (group, [run.figures for fold, run in group.finished.items() if not shared or fold in shared])
        for group in groups
    ]
    scored = [
        (group, spread(row["miou"] for row in figures), spread(row["mpa"] for row in figures))
        for group, figures in rows
    ]
    scored.sort(key=lambda row: -1.0 if row[1]["mean"] is None else row[1]["mean"], reverse=True)
    ranking: list[Ranked] = [
        {"rank": rank, "group": group.name, "miou": miou, "mpa": mpa}
        for rank, (group, miou, mpa) in enumerate(scored, start=1)
    ]
    ordered = [group for group, _, _ in scored]
    pairs = [_pair(a, b, resamples) for a, b in itertools.combinations(ordered, 2)]
    if len(groups) > 2:
        corrected = holm([pair["test"]["p"] for pair in pairs])
        for pair, p in zip(pairs, corrected, strict=True):
            pair["p_holm"] = p
    return {"folds": sorted(shared), "ranking": ranking, "pairs": pairs}


def _pair(a: Group, b: Group, resamples: int) -> Pair:
    both = sorted(scored_folds(a) & scored_folds(b))
    runs_a, runs_b = [a.runs[fold] for fold in both], [b.runs[fold] for fold in both]
    differences = [
        float(run_a.figures["miou"]) - float(run_b.figures["miou"]) for run_a, run_b in zip(runs_a, runs_b, strict=True)
    ]
    ratio, counted = test_train_ratio([*runs_a, *runs_b], len(a.expected))
    images, note = None, None
    try:
        images = _image_difference(runs_a, runs_b, resamples)
    except DataError as error:
        note = str(error)
    return {
        "a": a.name,
        "b": b.name,
        "folds": both,
        "left_out": sorted({*a.expected, *b.expected}.difference(both)),
        "differences": differences,
        "test": corrected_t_test(differences, ratio),
        "p_holm": None,
        "test_train_ratio": ratio,
        "test_train_ratio_counted": counted,
        "images": images,
        "images_note": note,
    }


def test_train_ratio(runs: Sequence[FoldRun], expected: int) -> tuple[float, bool]:
    """Images held out over images trained on, and whether they were counted.

    Without ``train_images`` in every run's figures the folds are taken for equal, and all but one for trained on:
    ``1 / (K - 1)``.

    Args:
        runs: the runs that are compared.
        expected: ``K`` where no config says it.
    """
    trained = [int(run.figures.get("train_images") or 0) for run in runs]
    if trained and all(trained):
        return sum(run.figures["images"] for run in runs) / sum(trained), True
    folds = next((run.folds_a_repeat for run in runs if run.folds_a_repeat), expected)
    return 1 / max(folds - 1, 1), False


def pooled_interval(runs: Iterable[FoldRun], *, resamples: int = RESAMPLES) -> ImageInterval:
    """Pooled mIoU of a group's folds with its bootstrap interval over images.

    Raises:
        DataError: if a run has no pixel counts of its images, or there is no run.
    """
    parts = [run.image_counts for run in runs]
    if not parts:
        raise DataError("no fold finished")
    counts = merge(parts)
    drawn = bootstrap_mean_iou([counts], resamples=resamples)[0]
    return _image_interval(float(mean_iou(counts.sum(axis=0))), drawn, len(counts))


def _image_difference(runs_a: Sequence[FoldRun], runs_b: Sequence[FoldRun], resamples: int) -> ImageInterval:
    """Difference of the pooled mIoUs; the images are drawn once for both.

    Raises:
        DataError: if pixel counts are missing, or classes or images are not the same.
    """
    if not runs_a:
        raise DataError("the groups have no fold in common")
    for run_a, run_b in zip(runs_a, runs_b, strict=True):
        if run_a.image_counts.class_names != run_b.image_counts.class_names:
            raise DataError(f"fold {run_a.fold} has other classes in the two groups")
        if run_a.image_counts.class_names != runs_a[0].image_counts.class_names:
            raise DataError("each fold has classes of its own")
        if set(run_a.image_counts.images) != set(run_b.image_counts.images):
            raise DataError(
                f"fold {run_a.fold} holds out other images in the two groups: differences are not of the models alone"
            )
    merged = [merge([run.image_counts for run in runs]) for runs in (runs_a, runs_b)]
    drawn_a, drawn_b = bootstrap_mean_iou(merged, resamples=resamples)
    miou_a, miou_b = (float(mean_iou(counts.sum(axis=0))) for counts in merged)
    return _image_interval(miou_a - miou_b, drawn_a - drawn_b, len(merged[0]))


def _image_interval(
    value: float, drawn: np.ndarray[tuple[int, ...], np.dtype[np.float64]], images: int
) -> ImageInterval:
    return {
        "value": None if np.isnan(value) else value,
        "interval": percentile_interval(drawn) if images > 1 else None,
        "images": images,
        "resamples": drawn.size,
    }
