"""The content of ``cv/summary.json``: figures of every fold, their spread, the pooled scores, and the comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from cityseg import __version__
from cityseg.crossval.comparison import Comparison, ImageInterval, compare, pooled_interval
from cityseg.crossval.folds import FoldRun, Group, Sweep
from cityseg.crossval.statistics import RESAMPLES, Spread, spread
from cityseg.errors import DataError
from cityseg.labels import LabelSpace
from cityseg.scores import ClassScores, Scores, scores_from_confusion

SCORES = ("miou", "mpa", "pixel_accuracy", "fwiou", "dice")
CLASS_SCORES = ("iou", "accuracy", "dice")

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


class FoldFigures(TypedDict):
    """A finished fold; fractions, None where nothing was there to score. Paths are relative to the sweep folder."""

    fold: int
    run: str
    scores: dict[str, float | None]
    per_class: dict[str, ClassScores]
    images: int
    best_epoch: int | None
    seconds: float | None
    panels: list[str]


class Unfinished(TypedDict):
    """A fold without figures; ``run`` is None if it has no folder."""

    fold: int
    run: str | None
    status: str
    error: str | None


class FinalModel(TypedDict):
    """The run on all training images, scored once on the split that no epoch was chosen by."""

    run: str
    status: str
    error: str | None
    split: str | None
    scores: dict[str, float | None]
    per_class: dict[str, ClassScores]
    images: int | None
    epochs: int | None


class GroupSummary(TypedDict):
    """Runs that differ in nothing but the fold; ``best`` and ``worst`` are folds by mIoU.

    Where folds have classes of their own (``own_classes``), there is nothing per class and nothing pooled.
    """

    name: str
    overrides: dict[str, str]
    dataset: str | None
    split: str | None
    label_space: str | None
    parameters: dict[str, int]
    expected: list[int]
    folds: list[FoldFigures]
    unfinished: list[Unfinished]
    scores: dict[str, Spread]
    own_classes: bool
    per_class: dict[str, dict[str, Spread]]
    pooled: Scores | None
    pooled_interval: ImageInterval | None
    pooled_interval_note: str | None
    best: int | None
    worst: int | None
    final: FinalModel | None


class Summary(TypedDict):
    """The content of ``cv/summary.json``."""

    name: str
    cityseg: str
    overrides: dict[str, str]
    finished: int
    expected: int
    groups: list[GroupSummary]
    comparison: Comparison | None
    methods: dict[str, str]


def summarize(sweep: Sweep, *, resamples: int = RESAMPLES) -> Summary:
    """Everything that a sweep's run folders tell.

    Args:
        sweep: as :func:`cityseg.crossval.folds.read_sweep` reads it.
        resamples: of the bootstrap over images.
    """
    groups = [_summarize_group(group, sweep.folder, resamples) for group in sweep.groups]
    return {
        "name": sweep.name,
        "cityseg": __version__,
        "overrides": dict(sweep.common),
        "finished": sum(len(group["folds"]) for group in groups),
        "expected": sum(len(group["expected"]) for group in groups),
        "groups": groups,
        "comparison": compare(sweep.groups, resamples=resamples) if len(sweep.groups) > 1 else None,
        "methods": METHODS,
    }


def exit_code(summary: Summary) -> int:
    """1 if a run failed or was left unfinished, else 0; a fold that was never started is named, but no failure."""
    statuses = [row["status"] for group in summary["groups"] for row in group["unfinished"]]
    statuses += [group["final"]["status"] for group in summary["groups"] if group["final"] is not None]
    return int(any(status not in ("finished", "not started") for status in statuses))


def _summarize_group(group: Group, folder: Path, resamples: int) -> GroupSummary:
    runs = group.finished
    folds = [_fold_figures(fold, run, folder) for fold, run in runs.items()]
    by_miou = sorted((row["scores"]["miou"], row["fold"]) for row in folds if row["scores"]["miou"] is not None)
    first: Mapping[str, Any] = next(iter(runs.values())).figures if runs else {}
    interval, note = None, None
    try:
        interval = None if group.own_classes else pooled_interval(runs.values(), resamples=resamples)
    except DataError as error:
        note = str(error)
    return {
        "name": group.name,
        "overrides": dict(group.overrides),
        "dataset": first.get("dataset"),
        "split": first.get("split"),
        "label_space": first.get("label_space"),
        "parameters": first.get("parameters") or {},
        "expected": list(group.expected),
        "folds": folds,
        "unfinished": [_unfinished(group, fold, folder) for fold in group.expected if fold not in runs],
        "scores": {key: spread(row["scores"][key] for row in folds) for key in SCORES},
        "own_classes": group.own_classes,
        "per_class": {name: _class_spread(name, folds) for name in first.get("per_class", ()) if not group.own_classes},
        "pooled": None if group.own_classes or not runs else _pooled(runs.values()),
        "pooled_interval": interval,
        "pooled_interval_note": note,
        "best": by_miou[-1][1] if by_miou else None,
        "worst": by_miou[0][1] if by_miou else None,
        "final": None if group.final is None else _final_model(group.final, folder),
    }


def _final_model(run: FoldRun, folder: Path) -> FinalModel:
    return {
        "run": _relative(run.folder, folder),
        "status": run.status,
        "error": run.error,
        "split": run.figures.get("split"),
        "scores": {key: run.figures.get(key) for key in SCORES},
        "per_class": run.figures.get("per_class", {}),
        "images": run.figures.get("images"),
        "epochs": run.figures.get("epochs"),
    }


def _fold_figures(fold: int, run: FoldRun, folder: Path) -> FoldFigures:
    figures = run.figures
    return {
        "fold": fold,
        "run": _relative(run.folder, folder),
        "scores": {key: figures.get(key) for key in SCORES},
        "per_class": figures["per_class"],
        "images": figures["images"],
        "best_epoch": figures.get("best_epoch"),
        "seconds": figures.get("seconds"),
        "panels": [_relative(path, folder) for path in sorted((run.folder / "predictions").glob("*.png"))],
    }


def _unfinished(group: Group, fold: int, folder: Path) -> Unfinished:
    run = group.runs.get(fold)
    if run is None:
        return {"fold": fold, "run": None, "status": "not started", "error": None}
    return {"fold": fold, "run": _relative(run.folder, folder), "status": run.status, "error": run.error}


def _class_spread(name: str, folds: list[FoldFigures]) -> dict[str, Spread]:
    rows: list[Mapping[str, Any]] = [row["per_class"][name] for row in folds]
    return {key: spread(row.get(key) for row in rows) for key in CLASS_SCORES}


def _pooled(runs: Iterable[FoldRun]) -> Scores:
    figures = [run.figures for run in runs]
    names = tuple(figures[0]["per_class"])
    matrix = np.array([row["confusion_matrix"] for row in figures], np.int64).sum(axis=0)
    # The scores want names alone; a space must have colours that differ.
    space = LabelSpace("folds", names, colors=tuple((index, 0, 0) for index in range(len(names))))
    return scores_from_confusion(matrix, space)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
