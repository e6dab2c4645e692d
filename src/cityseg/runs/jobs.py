"""One job: a run that is started, resumed, or found finished by a sweep that is run again."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.seed import isolate_rng

from cityseg.callbacks.state import EXIT_CODES, Stopped
from cityseg.checkpoints import load_checkpoint, resumable_checkpoint
from cityseg.crossval.folds import FAILED, FINAL, siblings
from cityseg.errors import CitysegError, ConfigError, WriteError
from cityseg.files import locked, write_json
from cityseg.machine import (
    available_cores,
    claim_gpu,
    limited_cores,
    restore_start_method,
    shares_gpus,
    threads_of_a_job,
)
from cityseg.runs.config import resume_config, settle
from cityseg.runs.output import print_closing, quiet_libraries
from cityseg.runs.sweeps import log_progress
from cityseg.runs.training import train
from cityseg.runs.trust import check_inside, check_trusted

log = logging.getLogger(__name__)


def run_hydra_job(config: DictConfig, hydra_config: HydraConf) -> float | None:
    """Run what Hydra has composed, with this job's share of the machine; see :func:`run_job`."""
    run_dir = Path(hydra_config.runtime.output_dir)
    typed: Any = OmegaConf.to_container(hydra_config.overrides.task)  # as it was typed, ${references} too
    if hydra_config.mode != RunMode.MULTIRUN:
        return run_job(config, run_dir, typed, sweep=None)
    sweep, launcher = Path(hydra_config.sweep.dir), hydra_config.launcher
    os.chdir(hydra_config.runtime.cwd)  # a Ray worker starts where the cluster did
    restore_start_method()
    log.info("── %s", run_dir.relative_to(sweep))
    started = time.perf_counter()
    kept = (run_dir / "metrics.json").is_file()
    threads = threads_of_a_job(launcher, available_cores())
    with limited_cores(threads), _own_gpu(config, sweep, launcher):
        objective = run_job(config, run_dir, typed, sweep=sweep, threads=threads)
    if not kept:
        log_progress(sweep, time.perf_counter() - started, launcher)
    return objective


@contextlib.contextmanager
def _own_gpu(config: DictConfig, sweep: Path, launcher: DictConfig) -> Iterator[None]:
    """Give a job that wants one GPU one that no other job of this machine has."""
    trainer = config.trainer
    wanted = trainer.accelerator in ("auto", "gpu", "cuda") and trainer.devices in ("auto", 1, "1")
    if not (wanted and shares_gpus(launcher) and torch.cuda.is_available()):
        yield
        return
    with claim_gpu(sweep, torch.cuda.device_count()) as index:
        trainer.devices = [index]
        yield


def run_job(
    config: DictConfig, run_dir: Path, typed: Sequence[str], *, sweep: Path | None, threads: int | None = None
) -> float | None:
    """Train a run, or go on with one.

    In a sweep that is run again, a finished run is kept and one that has begun is resumed; a run on its own is resumed
    with ``resume``. A failure is noted in ``failed.json``, and the process is left as it was found.

    Args:
        config: the composed config.
        run_dir: where everything goes.
        typed: the overrides that the user typed.
        sweep: folder of the sweep that this is a job of, if it is one.
        threads: of its computations at most; None leaves them to torch.

    Returns:
        mIoU of the best checkpoint, as the objective of a sweep; None on processes that are not the first.

    Raises:
        CitysegError: for what a user can mend.
    """
    checkpoints = run_dir / "checkpoints"
    with (
        locked(run_dir),
        _unchanged_process(),
        _stopped_by_signals(),
        _noted_failure(run_dir, announce=sweep is not None),
    ):
        quiet_libraries()
        for left in checkpoints.glob(".*.new*"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        if threads is not None:
            torch.set_num_threads(min(threads, torch.get_num_threads()))  # OMP_NUM_THREADS may ask for fewer
        if config.resume is not None:
            last = resumable_checkpoint(checkpoints)
            return _told(train(_saved_config(last, typed, config.trusted), run_dir, resume_from=last), run_dir)
        settle(config)
        if sweep is not None and config.fold == FINAL:
            _take_epochs_of_folds(config, sweep, run_dir)
        if sweep is None:
            return _told(train(config, run_dir), run_dir)
        if (run_dir / "metrics.json").is_file():
            log.info("has finished before, and is kept")
            return _objective(json.loads((run_dir / "metrics.json").read_text(encoding="utf-8")))
        if not checkpoints.is_dir() or not any(checkpoints.glob("*.ckpt")):
            return _told(train(config, run_dir), run_dir, brief=True)
        last = resumable_checkpoint(checkpoints)
        begun = load_checkpoint(last)
        check_trusted(begun.config, config.trusted)
        log.info("goes on after %d epochs", begun.epochs)
        # Classes that were found in the training labels are not found again.
        if "centers" in config.data:
            config.data.centers = begun.config["data"]["centers"]
        if config.data.batch_size == "auto":  # nor what fits
            config.data.batch_size = begun.config["data"]["batch_size"]
        return _told(train(config, run_dir, resume_from=last), run_dir, brief=True)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Outside of training too, leave with the exit code that asks to be started again; training saves first."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(EXIT_CODES[signal.Signals(number)])

    asked = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, stop) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _saved_config(last: Path, typed: Sequence[str], trusted: Sequence[str]) -> DictConfig:
    run_dir, checkpoint = last.parent.parent, load_checkpoint(last)
    check_trusted(checkpoint.config, trusted)
    log.info("resuming %s after %d epochs", run_dir, checkpoint.epochs)
    config = resume_config(checkpoint.config, typed, str(run_dir))
    settle(config)
    check_inside(config, run_dir, typed)
    end = config.trainer.max_epochs
    if end is not None and -1 < end < checkpoint.epochs:
        raise ConfigError(
            f"trainer.max_epochs={end}: {run_dir} has trained for {checkpoint.epochs} epochs already. Fix: as many, to "
            "score what there is, or more"
        )
    return config


def _take_epochs_of_folds(config: DictConfig, sweep: Path, run_dir: Path) -> None:
    """Let the final model of a sweep train for the median of its folds' best epochs.

    Without folds beside it the schedule stays as it is.

    Raises:
        ConfigError: if some of the folds have not finished.
    """
    folds = siblings(sweep, run_dir)
    if folds is None:
        return
    waiting = [str(fold) for fold in folds.expected if fold not in folds.finished]
    if waiting:
        raise ConfigError(
            f"fold={FINAL}: it trains for the median best epoch of its folds, and fold {', '.join(waiting)} has not "
            "finished. Fix: finish the folds first, as cv.final=true does"
        )
    epochs = [int(run.figures["best_epoch"]) for run in folds.finished.values()]
    config.trainer.max_epochs = math.ceil(np.median(epochs))
    log.info(
        "the final model trains for trainer.max_epochs=%d, the median of the folds' best epochs (%s)",
        config.trainer.max_epochs, ", ".join(map(str, epochs)),
    )  # fmt: skip


def _told(figures: dict[str, Any] | None, run_dir: Path, *, brief: bool = False) -> float | None:
    """Show the figures; returns the objective."""
    if figures is None:
        return None
    print_closing(figures, run_dir, brief=brief)
    return _objective(figures)


def _objective(figures: Mapping[str, Any]) -> float | None:
    return None if figures["miou"] is None else float(figures["miou"])


@contextlib.contextmanager
def _noted_failure(run_dir: Path, *, announce: bool) -> Iterator[None]:
    """Note in ``failed.json`` why a run ended; in a sweep (`announce`) also say it, since other jobs follow."""
    (run_dir / FAILED).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        expected = isinstance(error, CitysegError)
        try:
            write_json(run_dir / FAILED, {"error": str(error) if expected else f"{type(error).__name__}: {error}"})
        except WriteError as refused:  # the failure itself, perhaps of the same disk, says more
            log.error("%s", refused)
        if announce:
            log.error("%s failed: %s", run_dir, error, exc_info=None if expected else error)
            _release(error)
        raise


def _release(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold, a network among them: Hydra keeps the error until the sweep ends."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _unchanged_process() -> Iterator[None]:
    """Give back what a run changes in its process, so that nothing of it reaches the next one."""
    environment = dict(os.environ)
    deterministic = torch.get_deterministic_debug_mode()
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    flags = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings(), isolate_rng(include_cuda=False):
            yield
    finally:
        torch.set_deterministic_debug_mode(deterministic)
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = flags
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
