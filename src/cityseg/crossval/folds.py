"""The run folders of a sweep over folds: which there are, how each ended, and what sets the groups apart."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
import yaml  # type: ignore[import-untyped]

from cityseg.errors import DataError, Problems
from cityseg.image_counts import FILE_NAME, ImageCounts, read_image_counts

FAILED = "failed.json"
"""The note of a run that failed: why, under ``error``."""
FINAL: Final = "final"
"""In place of a fold's number: the run that trains on all training files and is scored on val."""

Status = Literal["finished", "failed", "unfinished", "not started"]

_NEEDED = ("miou", "mpa", "per_class", "confusion_matrix", "images", "train_images")


@dataclass(frozen=True)
class FoldRun:
    """One run folder of a sweep."""

    folder: Path
    fold: int | Literal["final"]  # which one is held out
    overrides: Mapping[str, str]  # what the command line gave beside the fold, key -> value as typed
    folds: int | None  # that the run's config asks for, all repeats counted; None where it does not say
    figures: Mapping[str, Any]  # content of metrics.json; empty unless finished
    status: Status
    error: str | None  # why it failed, if it did

    @cached_property
    def image_counts(self) -> ImageCounts:
        """As :func:`read_scored_counts`."""
        return read_scored_counts(self.folder, self.figures)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the fold."""

    name: str  # what sets the group apart, as typed ("model=unet"); of a lone group, the sweep's name
    overrides: Mapping[str, str]  # the same as key -> value
    expected: tuple[int, ...]  # every fold that should be there
    runs: Mapping[int, FoldRun]  # in the order of the folds
    final: FoldRun | None  # the run on all training files, if there is one

    @property
    def finished(self) -> dict[int, FoldRun]:
        """The runs that have figures."""
        return {fold: run for fold, run in self.runs.items() if run.status == "finished"}

    @property
    def own_classes(self) -> bool:
        """Whether folds have classes of their own, as K-means finds in the labels of each."""
        return len({tuple(run.figures["per_class"]) for run in self.finished.values()}) > 1


class Sweep(NamedTuple):
    """A sweep folder."""

    folder: Path
    name: str  # what its runs were called
    common: Mapping[str, str]  # overrides that all runs share
    groups: tuple[Group, ...]  # in the order of their names


def read_sweep(folder: Path) -> Sweep:
    """Read every run folder below a sweep folder, ``outputs/NAME/multirun/TIMESTAMP``.

    Raises:
        DataError: if no run of a fold is in it, a fold is there twice, or the folds of a group have other classes.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one of a sweep (outputs/NAME/multirun/TIMESTAMP)")
    with_final = _read_runs(folder)
    runs = [run for run in with_final if run.fold != FINAL]
    if not runs:
        raise DataError(
            f"{folder}: found {sum(1 for _ in run_folders(folder))} run folders and none of a fold, expected a sweep "
            "over folds. Fix: give outputs/NAME/multirun/TIMESTAMP of python train.py -m fold=0,1,2,3,4"
        )
    name = folder.name
    if "multirun" in (folder.name, folder.parent.name):  # outputs/NAME/multirun, or a folder for each time in it
        name = (folder.parent if folder.name == "multirun" else folder.parent.parent).name
    common = dict(set.intersection(*(set(run.overrides.items()) for run in runs)))
    grouped: dict[tuple[tuple[str, str], ...], list[FoldRun]] = {}
    for run in with_final:
        differing = tuple(sorted((key, value) for key, value in run.overrides.items() if key not in common))
        grouped.setdefault(differing, []).append(run)
    problems = Problems(str(folder))
    seen = {run.fold for run in runs if run.fold != FINAL}
    groups = [_group(dict(key), members, seen, name, problems) for key, members in sorted(grouped.items())]
    problems.raise_if_any(DataError)
    return Sweep(folder, name, dict(sorted(common.items())), tuple(groups))


def read_scored_counts(folder: Path, figures: Mapping[str, Any]) -> ImageCounts:
    """Pixel counts of each image that a run was scored on.

    Raises:
        DataError: if there are none, or others than those of the run's figures.
    """
    path = folder / FILE_NAME
    found = read_image_counts(path)
    matrix = np.array(figures.get("confusion_matrix", ()), np.int64)
    fits = matrix.shape == (len(found.class_names),) * 2 and np.array_equal(
        found.counts.sum(axis=0), [matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)]
    )
    if not fits:
        raise DataError(f"{path} does not add up to the confusion matrix of metrics.json. Fix: score the fold again")
    return found


def siblings(sweep: Path, final: Path) -> Group | None:
    """The folds of a sweep that differ from the final run in nothing but the fold; None if there are none.

    Raises:
        DataError: as :func:`read_sweep`.
    """
    if all(run.fold == FINAL for run in _read_runs(sweep)):
        return None
    for group in read_sweep(sweep).groups:
        if group.runs and group.final is not None and group.final.folder.resolve() == final.resolve():
            return group
    return None


def _group(overrides: Mapping[str, str], runs: list[FoldRun], seen: set[int], name: str, problems: Problems) -> Group:
    by_fold: dict[int | Literal["final"], FoldRun] = {}
    for run in sorted(runs, key=lambda run: str(run.fold).zfill(9)):  # numbers first
        if run.fold in by_fold:
            problems.add(
                "a fold that is there twice",
                f"{by_fold[run.fold].folder} and {run.folder}",
                fix="give the folder of one sweep, and keep one run of each fold in it",
            )
        by_fold[run.fold] = run
    expected = seen.union(*(range(run.folds) for run in runs if run.folds is not None))
    label = ",".join(f"{key}={value}" for key, value in overrides.items()) or name
    final = by_fold.pop(FINAL, None)
    group = Group(label, overrides, tuple(sorted(expected)), cast(dict[int, FoldRun], by_fold), final)
    spaces = {str(run.figures.get("label_space")) for run in group.finished.values()}
    if group.own_classes and not (len(spaces) == 1 and spaces.pop().startswith("kmeans")):
        problems.add(
            "folds with different classes", label, fix="give runs of one label space, or sweep over what differs"
        )
    return group


def run_folders(folder: Path) -> Iterator[Path]:
    """Every folder with a run's overrides in it: a value with a slash in it nests them."""
    for parent, children, _ in os.walk(folder):
        if (Path(parent) / ".hydra" / "overrides.yaml").is_file():
            children.clear()
            yield Path(parent)
        children.sort()


def _read_runs(folder: Path) -> list[FoldRun]:
    """All runs below a folder that have a fold."""
    return [run for path in run_folders(folder) if (run := _read_run(path)) is not None]


def _read_run(folder: Path) -> FoldRun | None:
    """One run; None if it has no fold."""
    typed: list[str] = read_yaml(folder / ".hydra" / "overrides.yaml") or []
    overrides = {key.lstrip("+"): value for key, _, value in (str(text).partition("=") for text in typed)}
    config: dict[str, Any] = read_yaml(folder / ".hydra" / "config.yaml") or {}
    given = overrides.pop("fold", config.get("fold"))
    fold: int | Literal["final"] | None = FINAL if given == FINAL else _whole_number(given)
    if fold is None:
        return None
    cv = config.get("cv") or {}
    folds, repeats = _whole_number(cv.get("folds")), _whole_number(cv.get("repeats")) or 1
    return FoldRun(folder, fold, overrides, folds and folds * repeats, *outcome(folder))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; None where there is none.

    Raises:
        DataError: if it is none, or says anything by way of aliases: a few lines of those unfold without end.
    """
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise DataError(f"{path}: found an alias (*NAME), expected plain values")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not YAML: {error}") from error


def _whole_number(value: Any) -> int | None:
    """A whole number from 0, typed or parsed; None for anything else, as ``null`` or an interpolation."""
    return int(value) if str(value).isdecimal() else None


def outcome(folder: Path) -> tuple[dict[str, Any], Status, str | None]:
    """Figures, status and error of a run folder; figures decide, since they are written last."""
    if (folder / "metrics.json").is_file():
        try:
            figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        except ValueError as error:
            return {}, "failed", f"metrics.json cannot be read: {error}"
        if lacking := [key for key in _NEEDED if key not in figures]:
            return {}, "failed", f"metrics.json has no {', '.join(lacking)}: the fold was not scored"
        return figures, "finished", None
    if not (folder / FAILED).is_file():
        return {}, "unfinished", None
    text = (folder / FAILED).read_text(encoding="utf-8")
    try:
        return {}, "failed", str(json.loads(text)["error"])
    except (ValueError, TypeError, KeyError):  # any text in it is better than none
        return {}, "failed", text.strip()
