"""What surrounds the jobs of a sweep: its folder, what is said before and between them, and the summary at the end."""

from __future__ import annotations

import itertools
import logging
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from cityseg.cli import quoted
from cityseg.crossval.folds import FAILED, FINAL, outcome, read_sweep, run_folders
from cityseg.errors import ConfigError, Problems
from cityseg.files import write_text
from cityseg.keys import dotted_values
from cityseg.machine import available_cores, jobs_at_once
from cityseg.paths import shown
from cityseg.reports.summary import duration, percent

log = logging.getLogger(__name__)

PLACES = {
    "basic": "one after the other on this machine",
    "joblib": "several at once on this machine",
    "ray": "on a Ray cluster",
    "submitit_local": "all at once on this machine",
    "submitit_slurm": "through SLURM",
}
OWN_PROCESSES = ("basic", "joblib")
"""Launchers whose jobs run in processes of their own making, where Lightning cannot start more."""

INDIFFERENT = (
    *("data.cache", "data.cache_dir", "data.max_pixels", "data.verify", "data.workers"),
    *("logger", "panels", "resume", "run_dir", "trusted"),
)
"""Keys, and groups of keys, that do not change what is trained: a sweep goes on whatever they are."""

OTHERWISE = "type the command as it was, give the sweep another name, or remove the folders"

# Our configs of launchers take the place of those that the plugins bring, under the same names.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against")

started: Sweep | None = None
"""The sweep that this process has started."""


class Sweep:
    """A sweep from its start to its summary: its folder, whether its jobs are folds, and whether `final` follows."""

    def __init__(self, folder: Path, *, folds: bool, final: bool) -> None:
        self.folder, self._folds, self._final = folder, folds, final
        self._typed: str | None = None

    def failed(self) -> bool:
        """Whether a job has noted why it failed."""
        return any((run / FAILED).is_file() for run in run_folders(self.folder))

    def begun(self) -> bool:
        """Whether there is a run to be told of."""
        return next(run_folders(self.folder), None) is not None

    def ready_for_final(self) -> bool:
        """Whether the model on all images is wanted, and every fold that it depends on has finished."""
        if not (self._folds and self._final):
            return False
        groups = read_sweep(self.folder).groups
        missing = sorted({fold for group in groups for fold in group.expected if fold not in group.finished})
        if missing:
            log.warning("cv.final=true: no final model, since fold %s has not finished", ", ".join(map(str, missing)))
        return not missing

    def final_arguments(self, typed: Sequence[str]) -> list[str]:
        """The sweep's command line, with the final model in the place of the folds."""
        self._typed = (self.folder / "multirun.yaml").read_text(encoding="utf-8")  # Hydra will write another
        others = [text for text in typed if not text.startswith(("fold=", "hydra.sweep.dir="))]
        return [*others, f"fold={FINAL}", f"hydra.sweep.dir={quoted(self.folder)}"]

    def close(self) -> int:
        """Summarise the folds, or list the runs of a sweep over something else; returns the exit code."""
        if self._typed is not None:
            write_text(self.folder / "multirun.yaml", self._typed)
        if not self._folds:
            ends = {run: outcome(run) for run in run_folders(self.folder)}
            for run, (figures, status, error) in ends.items():
                score = f"mIoU {percent(figures['miou'])} %" if figures else f"{status}: {error or 'no reason noted'}"
                print(f"{run.relative_to(self.folder)}: {score}")
            return any(status != "finished" for _, status, _ in ends.values())
        from cityseg.crossval.output import close_sweep  # heavy: not needed to start

        return close_sweep(self.folder)


class SweepStart(Callback):
    """Gives a sweep its folder, refuses what cannot work, and says what is going to run; for ``hydra.callbacks``."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the whole sweep before its first job."""
        global started
        folder = Path(config.hydra.sweep.dir).absolute()
        overrides = _parse(config.hydra.overrides.task)
        keys = [override.key_or_group for override in overrides]
        swept = {override.key_or_group for override in overrides if override.is_sweep_override()}
        # From now on every job composes the same folders, in whatever process it runs.
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")
        if named := swept | ({"fold"} & set(keys)):
            same = ",".join(sorted(set(keys) - named))
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{same}]")
        launcher, jobs = str(config.hydra.runtime.choices["hydra/launcher"]), _jobs(config, overrides)
        where = PLACES.get(launcher, f"by hydra/launcher={launcher}")
        try:
            _check_jobs(config, jobs or [], launcher, folder)
        except ConfigError as error:  # Hydra would make a warning of it
            log.error("%s", error)
            sys.exit(1)
        started = Sweep(folder, folds="fold" in keys, final=bool(config.cv.get("final")))
        if jobs is None:
            log.info("a search %s, in %s", where, shown(folder))
            return
        runs = list(run_folders(folder))
        finished = sum((run / "metrics.json").is_file() for run in runs)
        begun = sum((run / "checkpoints" / "last.ckpt").is_file() for run in runs) - finished
        there = f"; there already: {finished} finished, {begun} begun" if runs else ""
        log.info("%d job%s %s, in %s%s", len(jobs), "s"[: len(jobs) != 1], where, shown(folder), there)


def log_progress(sweep: Path, seconds: float, launcher: Mapping[str, Any]) -> None:
    """Say how many jobs of a sweep are done, the last in so many seconds, and about how long the others will take."""
    config = OmegaConf.load(sweep / "multirun.yaml")
    assert isinstance(config, DictConfig)
    jobs = _jobs(config, _parse(config.hydra.overrides.task))
    done = sum(outcome(run)[1] in ("finished", "failed") for run in run_folders(sweep))
    if jobs is not None and (left := len(jobs) - done) > 0:
        at_once = jobs_at_once(launcher, available_cores())
        guess = f", about {duration(seconds * math.ceil(left / at_once))} left" if at_once else ""
        log.info("%d of %d jobs done, the last in %s%s", done, len(jobs), duration(seconds), guess)


def _parse(typed: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(typed))


def _jobs(config: DictConfig, overrides: list[Override]) -> list[list[str]] | None:
    """The overrides of every job; None where the sweeper makes them up as it goes."""
    if not str(config.hydra.sweeper._target_).endswith(".BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    choices = {}  # as Hydra's own sweeper has it: the last one typed counts
    for override in (*_parse(params), *overrides):
        key, swept = override.get_key_element(), override.is_sweep_override()
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        choices[key] = [f"{key}={value}" for value in values]
    return [list(job) for job in itertools.product(*choices.values())]


def _check_jobs(config: DictConfig, jobs: Sequence[Sequence[str]], launcher: str, folder: Path) -> None:
    """See that the jobs can run so, and that what is there of them was begun alike."""
    problems = Problems(f"the sweep in {folder}")
    begun = {run.relative_to(folder).as_posix(): run / ".hydra" / "config.yaml" for run in run_folders(folder)}
    for number, job in enumerate(jobs):
        if number and not begun:  # all jobs have the trainer of the first
            break
        try:
            composed = GlobalHydra.instance().config_loader().load_sweep_config(config, list(job))
        except HydraException:  # Hydra itself composes every job right after this, and says what is wrong
            return
        with open_dict(composed):
            composed.hydra.job.num = composed.hydra.job.id = number
        _check_processes(composed, launcher, folder, problems)
        name = str(composed.hydra.sweep.subdir)
        with open_dict(composed):
            del composed["hydra"]
        if name in begun:
            for change in _changes(OmegaConf.load(begun[name]), composed):
                problems.add("begun with other settings", f"{name}: {change}", fix=OTHERWISE)
    problems.raise_if_any(ConfigError)


def _changes(before: Any, now: DictConfig) -> list[str]:
    """What is trained differently."""
    was, is_now = (dotted_values(OmegaConf.to_container(config, resolve=False)) for config in (before, now))
    return [
        f"{key} was {was.get(key)}, now {is_now.get(key)}"
        for key in sorted({*was, *is_now})
        if was.get(key) != is_now.get(key) and not any(f"{key}.".startswith(f"{skip}.") for skip in INDIFFERENT)
    ]


def _check_processes(job: DictConfig, launcher: str, folder: Path, problems: Problems) -> None:
    """Refuse jobs whose processes would start the sweep again."""
    strategy = str(job.trainer.strategy)
    if launcher in OWN_PROCESSES and any(kind in strategy for kind in ("ddp", "fsdp", "deepspeed", "ModelParallel")):
        typed = " ".join(text for text in job.hydra.overrides.task if not text.startswith("fold="))
        fix = (
            "hydra/launcher=submitit_slurm; or one command for each fold, and then the summary:\n       for fold in "
            f"0 1 2 3 4; do python train.py {typed} fold=$fold hydra.run.dir={folder}/fold=$fold; done\n"
            f"       python -m cityseg.crossval {folder}"
        )
        with_launcher = f"trainer.strategy={strategy} with hydra/launcher={launcher}"
        problems.add(f"{with_launcher}: its processes would start the sweep again", fix=fix)
