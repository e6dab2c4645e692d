"""The run folders of a sweep over folds: which there are, how each ended, and what sets the groups apart."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, cast

import yaml  # type: ignore[import-untyped]

from cityseg.errors import DataError, Problems
from cityseg.image_counts import FILE_NAME, ImageCounts, read_image_counts

FAILED = "failed.json"
"""The note of a run that failed: why, under ``error``."""
FINAL: Final = "final"
"""In place of a fold's number: the run that trains on all training files and is scored on val."""

Status = Literal["finished", "failed", "unfinished", "not started"]

_NEEDED = ("miou", "mpa", "per_class", "confusion_matrix", "images")
_RECORD = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ (?P<level>[A-Z]+) [\w.]+: (?P<message>.*)$")


@dataclass(frozen=True)
class FoldRun:
    """One run folder of a sweep.

    Attributes:
        folder: the run folder.
        fold: which fold is held out; ``final`` for the run without one.
        overrides: what the command line gave beside the fold, key -> value as typed.
        folds: folds that the run's config asks for, all repeats counted; None where it does not say.
        folds_a_repeat: the same for one repeat.
        figures: content of ``metrics.json``; empty unless finished.
        status: how the run ended.
        error: why it failed, if it did.
    """

    folder: Path
    fold: int | Literal["final"]
    overrides: Mapping[str, str]
    folds: int | None
    folds_a_repeat: int | None
    figures: Mapping[str, Any]
    status: Status
    error: str | None

    @cached_property
    def image_counts(self) -> ImageCounts:
        """Pixel counts of each image.

        Raises:
            DataError: if there are none, or others than those of ``metrics.json``.
        """
        path = self.folder / FILE_NAME
        found = read_image_counts(path)
        matrix = self.figures["confusion_matrix"]
        hits, truth, predicted = found.counts.sum(axis=0).tolist()
        rows, columns = [sum(row) for row in matrix], [sum(column) for column in zip(*matrix, strict=True)]
        if (hits, truth, predicted) != ([row[i] for i, row in enumerate(matrix)], rows, columns):
            raise DataError(
                f"{path} does not add up to the confusion matrix of metrics.json. Fix: score the fold again"
            )
        return found


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the fold.

    Attributes:
        name: what sets the group apart, as typed (``"model=unet"``); of a lone group, the sweep's name.
        overrides: the same as key -> value.
        expected: every fold that should be there.
        runs: fold -> run, in the order of the folds.
        final: the run on all training files, if there is one.
    """

    name: str
    overrides: Mapping[str, str]
    expected: tuple[int, ...]
    runs: Mapping[int, FoldRun]
    final: FoldRun | None = None

    @property
    def finished(self) -> dict[int, FoldRun]:
        """The runs that have figures."""
        return {fold: run for fold, run in self.runs.items() if run.status == "finished"}

    @property
    def own_classes(self) -> bool:
        """Whether folds have classes of their own, as K-means finds in the labels of each."""
        return len({tuple(run.figures["per_class"]) for run in self.finished.values()}) > 1


@dataclass(frozen=True)
class Sweep:
    """A sweep folder.

    Attributes:
        folder: the folder.
        name: what its runs were called.
        common: overrides that all runs share.
        groups: in the order of their names.
    """

    folder: Path
    name: str
    common: Mapping[str, str]
    groups: tuple[Group, ...]


def read_sweep(folder: Path) -> Sweep:
    """Read every run folder below a sweep folder.

    Args:
        folder: ``outputs/NAME/multirun/TIMESTAMP``.

    Raises:
        DataError: if no run of a fold is in it, a fold is there twice, or the folds of a group have other classes.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one of a sweep (outputs/NAME/multirun/TIMESTAMP)")
    found = [_read_run(path) for path in run_folders(folder)]
    with_final = [run for run in found if run is not None]
    runs = [run for run in with_final if run.fold != FINAL]
    if not runs:
        raise DataError(
            f"{folder}: found {len(found)} run folders and none of a fold, expected a sweep over folds. "
            "Fix: give outputs/NAME/multirun/TIMESTAMP of python train.py -m fold=0,1,2,3,4"
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
    groups = [_group(dict(key), members, _numbers(runs), name, problems) for key, members in sorted(grouped.items())]
    problems.raise_if_any(DataError)
    return Sweep(folder, name, dict(sorted(common.items())), tuple(groups))


def siblings(sweep: Path, run: Path) -> Group | None:
    """The folds that differ from a run of their sweep in nothing but the fold; None if there are none.

    Args:
        sweep: the sweep's folder.
        run: a run folder in it, of a fold or the final one.

    Raises:
        DataError: if a fold is there twice.
    """
    own = _read_run(run)
    found = [other for path in run_folders(sweep) if (other := _read_run(path)) is not None and other.fold != FINAL]
    alike = [other for other in found if own is not None and other.overrides == own.overrides]
    if not alike:
        return None
    problems = Problems(str(sweep))
    group = _group(alike[0].overrides, alike, _numbers(found), sweep.name, problems)
    problems.raise_if_any(DataError)
    return group


def _numbers(runs: Iterable[FoldRun]) -> set[int]:
    return {run.fold for run in runs if run.fold != FINAL}


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


def _read_run(folder: Path) -> FoldRun | None:
    """One run; None if it has no fold."""
    typed: list[str] = _read_yaml(folder / ".hydra" / "overrides.yaml") or []
    overrides = {key.lstrip("+"): value for key, _, value in (str(text).partition("=") for text in typed)}
    config_file = folder / ".hydra" / "config.yaml"
    config: dict[str, Any] = (_read_yaml(config_file) if config_file.is_file() else None) or {}
    given = overrides.pop("fold", config.get("fold"))
    fold: int | Literal["final"] | None = FINAL if given == FINAL else _whole_number(given)
    if fold is None:
        return None
    cv = config.get("cv") or {}
    folds = _whole_number(cv.get("folds"))
    repeats = _whole_number(cv.get("repeats")) or 1
    figures, status, error = outcome(folder)
    return FoldRun(folder, fold, overrides, folds and folds * repeats, folds, figures, status, error)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not YAML: {error}") from error


def _whole_number(value: Any) -> int | None:
    """A whole number from 0, typed or parsed; None for anything else, as ``null`` or an interpolation."""
    return int(value) if re.fullmatch(r"\d+", str(value)) else None


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
    if (folder / FAILED).is_file():
        return {}, "failed", _told_error((folder / FAILED).read_text(encoding="utf-8"))
    error_text = _logged_error(folder / "train.log")
    return {}, "unfinished" if error_text is None else "failed", error_text


def _told_error(text: str) -> str:
    """What ``failed.json`` says; any text in it is better than none."""
    try:
        content = json.loads(text)
    except ValueError:
        return text.strip()
    return str(content.get("error", content) if isinstance(content, dict) else content)


def _logged_error(path: Path) -> str | None:
    """The error that a log ends with; None if its last record is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for index in range(len(lines) - 1, -1, -1):
        if record := _RECORD.match(lines[index]):
            is_error = record["level"] in ("ERROR", "CRITICAL")
            return "\n".join([record["message"], *lines[index + 1 :]]) if is_error else None
    return None
