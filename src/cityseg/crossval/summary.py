"""The content of ``cv/summary.json``: figures of every fold, their spread, the pooled scores, and the comparison."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cityseg import __version__
from cityseg.crossval.folds import FoldRun, Group, Sweep
from cityseg.crossval.statistics import (
    RESAMPLES,
    bootstrap_mean_iou,
    corrected_t_test,
    holm,
    mean_iou,
    percentile_interval,
    spread,
)
from cityseg.errors import DataError
from cityseg.image_counts import merge
from cityseg.labels import LabelSpace
from cityseg.reports.summary import SCORE_NAMES
from cityseg.scores import Scores, scores_from_confusion

METHODS = {
    "std": "standard deviation over folds, ddof=1",
    "interval": "95 % interval of the mean by Student's t over folds; optimistic, since folds share training data",
    "pooled": "one confusion matrix summed over the held-out parts of all finished folds; "
    "with repeats an image counts in each",
    "test": "corrected resampled t-test (Nadeau and Bengio 2003): variance times 1/J + n_test/n_train, J - 1 degrees "
    "of freedom, two-sided; p_holm corrects for the number of pairs (Holm 1979)",
    "images": "percentile bootstrap over images, pixels pooled in each resample, both models on the same images; "
    "frames of one drive resemble each other, so this too is optimistic; it does not vary the training",
}


def summarize(sweep: Sweep, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Everything that a sweep's run folders tell.

    Scores are fractions, None where nothing was there to score; each spread over folds is a
    :class:`cityseg.crossval.statistics.Spread`. Paths are relative to the sweep folder.
    """
    groups = [_summarize_group(group, sweep.folder, resamples) for group in sweep.groups]
    return {
        "name": sweep.name,
        "cityseg": __version__,
        "overrides": dict(sweep.common),
        "finished": sum(len(group["folds"]) for group in groups),
        "expected": sum(len(group["expected"]) for group in groups),
        "groups": groups,
        "comparison": _compare(sweep.groups, resamples) if len(sweep.groups) > 1 else None,
        "methods": METHODS,
    }


def _summarize_group(group: Group, folder: Path, resamples: int) -> dict[str, Any]:
    """Runs that differ in nothing but the fold; ``best`` and ``worst`` are folds by mIoU.

    Where folds have classes of their own, there is nothing per class and nothing pooled.
    """
    runs = group.finished
    folds = [{"fold": fold, **_figures(run, folder)} for fold, run in runs.items()]
    by_miou = sorted((row["scores"]["miou"], row["fold"]) for row in folds if row["scores"]["miou"] is not None)
    first: Mapping[str, Any] = next(iter(runs.values())).figures if runs else {}
    shared = () if group.own_classes else first.get("per_class", ())
    interval, note = (None, None) if group.own_classes else _over_images([list(runs.values())], resamples)
    return {
        "name": group.name,
        "overrides": dict(group.overrides),
        "dataset": first.get("dataset"),
        "split": first.get("split"),
        "label_space": first.get("label_space"),
        "parameters": first.get("parameters") or {},
        "expected": list(group.expected),
        "folds": folds,
        "unfinished": [
            {"fold": fold, **_state(group.runs.get(fold), folder)} for fold in group.expected if fold not in runs
        ],
        "scores": {key: spread(row["scores"][key] for row in folds) for key in SCORE_NAMES},
        "own_classes": group.own_classes,
        "per_class": {
            name: {key: spread(row["per_class"][name].get(key) for row in folds) for key in ("iou", "accuracy", "dice")}
            for name in shared
        },
        "pooled": _pooled(runs.values(), tuple(shared)) if shared else None,
        "pooled_interval": interval,
        "pooled_interval_note": note,
        "best": by_miou[-1][1] if by_miou else None,
        "worst": by_miou[0][1] if by_miou else None,
        "final": None if group.final is None else _figures(group.final, folder),
    }


def _figures(run: FoldRun, folder: Path) -> dict[str, Any]:
    figures, panels = run.figures, sorted((run.folder / "predictions").glob("*.png"))
    return {
        **_state(run, folder),
        "split": figures.get("split"),
        "scores": {key: figures.get(key) for key in SCORE_NAMES},
        "per_class": figures.get("per_class", {}),
        **{key: figures.get(key) for key in ("images", "epochs", "best_epoch", "seconds")},
        "panels": [path.relative_to(folder).as_posix() for path in panels],
    }


def _state(run: FoldRun | None, folder: Path) -> dict[str, str | None]:
    if run is None:
        return {"run": None, "status": "not started", "error": None}
    return {"run": run.folder.relative_to(folder).as_posix(), "status": run.status, "error": run.error}


def _pooled(runs: Iterable[FoldRun], names: tuple[str, ...]) -> Scores:
    matrix = np.array([run.figures["confusion_matrix"] for run in runs], np.int64).sum(axis=0)
    # The scores want names alone; a space must have colours that differ.
    space = LabelSpace("folds", names, colors=tuple((index, 0, 0) for index in range(len(names))))
    return scores_from_confusion(matrix, space)


def _compare(groups: Sequence[Group], resamples: int) -> dict[str, Any]:
    """Rank groups and test each pair of them.

    Groups are ranked by their mean mIoU over the folds that all of them have: a mean over other folds would also tell
    how hard those are. Where they share none, each is ranked by its own. A pair is compared on the folds that both
    have. With more than two groups the p-values are corrected for their number.
    """
    shared = set.intersection(*map(_scored_folds, groups))
    ranked: list[tuple[float, Group, dict[str, Any]]] = []
    for group in groups:
        figures = [run.figures for fold, run in group.finished.items() if not shared or fold in shared]
        scores = {key: spread(row[key] for row in figures) for key in ("miou", "mpa")}
        mean = scores["miou"]["mean"]
        ranked.append((-1.0 if mean is None else mean, group, {"group": group.name, **scores}))
    ranked.sort(key=lambda row: row[0], reverse=True)
    pairs = [_pair(a, b, resamples) for (_, a, _), (_, b, _) in itertools.combinations(ranked, 2)]
    if len(groups) > 2:
        for pair, p in zip(pairs, holm([pair["test"]["p"] for pair in pairs]), strict=True):
            pair["p_holm"] = p
    return {
        "folds": sorted(shared),
        "ranking": [{"rank": rank, **row} for rank, (_, _, row) in enumerate(ranked, start=1)],
        "pairs": pairs,
    }


def _scored_folds(group: Group) -> set[int]:
    """Finished folds that have an mIoU: one without a valid pixel has none."""
    return {fold for fold, run in group.finished.items() if run.figures["miou"] is not None}


def _pair(a: Group, b: Group, resamples: int) -> dict[str, Any]:
    """Two groups: differences are ``a - b``, one for each of ``folds``."""
    both = sorted(_scored_folds(a) & _scored_folds(b))
    sides = [[group.runs[fold] for fold in both] for group in (a, b)]
    ours, theirs = ([run.figures for run in side] for side in sides)
    differences = [float(one["miou"]) - float(other["miou"]) for one, other in zip(ours, theirs, strict=True)]
    held_out, trained_on = (sum(row[key] for row in ours + theirs) for key in ("images", "train_images"))
    ratio = held_out / trained_on if trained_on else 0.0
    images, note = _over_images(sides, resamples)
    return {
        "a": a.name,
        "b": b.name,
        "folds": both,
        "left_out": sorted({*a.expected, *b.expected}.difference(both)),
        "differences": differences,
        "test": corrected_t_test(differences, ratio),
        "p_holm": None,
        "test_train_ratio": ratio,
        "images": images,
        "images_note": note,
    }


def _over_images(sides: Sequence[Sequence[FoldRun]], resamples: int) -> tuple[dict[str, Any] | None, str | None]:
    """The pooled mIoU of a group, or the difference of two, with its bootstrap interval; or why there is none.

    The images are drawn once for both.
    """
    try:
        _check_images(sides)
        merged = [merge([run.image_counts for run in runs]) for runs in sides]
    except DataError as error:
        return None, str(error)
    pooled = np.stack([mean_iou(counts.sum(axis=0)) for counts in merged])
    drawn = bootstrap_mean_iou(merged, resamples=resamples)
    value, samples = (mious[0] - mious[1:].sum(axis=0) for mious in (pooled, drawn))
    return {
        "value": None if np.isnan(value) else float(value),
        "interval": percentile_interval(samples) if len(merged[0]) > 1 else None,
        "images": len(merged[0]),
        "resamples": resamples,
    }, None


def _check_images(sides: Sequence[Sequence[FoldRun]]) -> None:
    """Raise a DataError where runs have no pixel counts, or such of other classes or images."""
    if not sides[0]:
        raise DataError("no fold finished" if len(sides) == 1 else "the groups have no fold in common")
    for runs in zip(*sides, strict=True):
        first, last = runs[0].image_counts, runs[-1].image_counts
        if first.class_names != last.class_names:
            raise DataError(f"fold {runs[0].fold} has other classes in the two groups")
        if first.class_names != sides[0][0].image_counts.class_names:
            raise DataError("each fold has classes of its own")
        if set(first.images) != set(last.images):
            raise DataError(
                f"fold {runs[0].fold} holds out other images in the two groups: differences are not of the models alone"
            )
