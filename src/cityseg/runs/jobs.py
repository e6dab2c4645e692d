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
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.seed import isolate_rng

from cityseg import machine
from cityseg.callbacks.state import EXIT_CODES, Stopped
from cityseg.checkpoints import load_checkpoint, resumable_checkpoint
from cityseg.crossval.folds import FAILED, FINAL, siblings
from cityseg.errors import CitysegError, ConfigError, WriteError
from cityseg.files import locked, write_json
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
    machine.restore_start_method()
    log.info("── %s", run_dir.relative_to(sweep))
    started = time.perf_counter()
    kept = (run_dir / "metrics.json").is_file()
    threads = machine.threads_of_a_job(launcher, machine.available_cores())
    with machine.limited_cores(threads), _own_gpu(config, sweep, launcher):
        objective = run_job(config, run_dir, typed, sweep=sweep, threads=threads)
    if not kept:
        log_progress(sweep, time.perf_counter() - started, launcher)
    return objective


@contextlib.contextmanager
def _own_gpu(config: DictConfig, sweep: Path, launcher: DictConfig) -> Iterator[None]:
    """Give a job that wants one GPU one that no other job of this machine has."""
    trainer = config.trainer
    wanted = trainer.accelerator in ("auto", "gpu", "cuda") and trainer.devices in ("auto", 1, "1")
    if not (wanted and machine.shares_gpus(launcher) and torch.cuda.is_available()):
        yield
        return
    with machine.claim_gpu(sweep, torch.cuda.device_count()) as index:
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
    """
    with locked(run_dir), _unchanged_process(), _noted_failure(run_dir, sweep):
        quiet_libraries()
        for left in (run_dir / "checkpoints").glob(".*.new*"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        if threads is not None:
            torch.set_num_threads(min(threads, torch.get_num_threads()))  # OMP_NUM_THREADS may ask for fewer
        figures = _figures(config, run_dir, typed, sweep)
    return None if figures is None or figures["miou"] is None else float(figures["miou"])


def _figures(config: DictConfig, run_dir: Path, typed: Sequence[str], sweep: Path | None) -> dict[str, Any] | None:
    """The figures of a run, which are shown where they are new."""
    checkpoints, last = run_dir / "checkpoints", None
    if config.resume is not None:
        last = resumable_checkpoint(checkpoints)
        config = _saved_config(last, typed, config.trusted)
    else:
        settle(config)
        if sweep is not None:
            if config.fold == FINAL:
                _take_epochs_of_folds(config, sweep, run_dir)
            if (run_dir / "metrics.json").is_file():
                log.info("has finished before, and is kept")
                return dict(json.loads((run_dir / "metrics.json").read_text(encoding="utf-8")))
            if any(checkpoints.glob("*.ckpt")):
                last = resumable_checkpoint(checkpoints)
                _keep_what_was_found(config, last)
    figures = train(config, run_dir, last)
    if figures is not None:
        print_closing(figures, run_dir, brief=sweep is not None)
    return figures


def _keep_what_was_found(config: DictConfig, last: Path) -> None:
    """Neither classes that were found in the training labels, nor what fits the memory, are found again."""
    begun = load_checkpoint(last)
    check_trusted(begun.config, config.trusted)
    log.info("goes on after %d epochs", begun.epochs)
    if "centers" in config.data:
        config.data.centers = begun.config["data"]["centers"]
    if config.data.batch_size == "auto":
        config.data.batch_size = begun.config["data"]["batch_size"]


def _saved_config(last: Path, typed: Sequence[str], trusted: Sequence[str]) -> DictConfig:
    run_dir, checkpoint = last.parent.parent, load_checkpoint(last)
    check_trusted(checkpoint.config, trusted)
    log.info("resuming %s after %d epochs", run_dir, checkpoint.epochs)
    config = resume_config(checkpoint.config, typed, str(run_dir))
    settle(config)
    check_inside(config, run_dir, typed)
    end, done = config.trainer.max_epochs, checkpoint.epochs
    if end is not None and -1 < end < done:
        fix = "as many, to score what there is, or more"
        raise ConfigError(f"trainer.max_epochs={end}: {run_dir} has trained for {done} epochs already. Fix: {fix}")
    return config


def _take_epochs_of_folds(config: DictConfig, sweep: Path, run_dir: Path) -> None:
    """Let the final model of a sweep train for the median of its folds' best epochs; without folds as it is."""
    if (folds := siblings(sweep, run_dir)) is None:
        return
    if waiting := [str(fold) for fold in folds.expected if fold not in folds.finished]:
        what = f"it trains for the median best epoch of its folds, and fold {', '.join(waiting)} has not finished"
        raise ConfigError(f"fold={FINAL}: {what}. Fix: finish the folds first, as cv.final=true does")
    epochs = [int(run.figures["best_epoch"]) for run in folds.finished.values()]
    config.trainer.max_epochs = math.ceil(np.median(epochs))
    said = "the final model trains for trainer.max_epochs=%d, the median of the folds' best epochs (%s)"
    log.info(said, config.trainer.max_epochs, ", ".join(map(str, epochs)))


@contextlib.contextmanager
def _noted_failure(run_dir: Path, sweep: Path | None) -> Iterator[None]:
    """Note in ``failed.json`` why a run ended; in a sweep also say it, since other jobs follow."""
    (run_dir / FAILED).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        expected = isinstance(error, CitysegError)
        try:
            write_json(run_dir / FAILED, {"error": str(error) if expected else f"{type(error).__name__}: {error}"})
        except WriteError as refused:  # the failure itself, perhaps of the same disk, says more
            log.error("%s", refused)
        if sweep is not None:
            log.error("%s failed: %s", run_dir, error, exc_info=None if expected else error)
            held: BaseException | None = error
            while held is not None:  # Hydra keeps it until the sweep ends, and its frames hold a network
                traceback.clear_frames(held.__traceback__)
                held = held.__cause__ or held.__context__
        raise


@contextlib.contextmanager
def _unchanged_process() -> Iterator[None]:
    """Give back what a run changes in its process, so that nothing of it reaches the next one.

    Outside of training too, a signal leaves with the exit code that asks to be started again; training saves first.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(EXIT_CODES[signal.Signals(number)])

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    environment, threads = dict(os.environ), torch.get_num_threads()
    deterministic = torch.get_deterministic_debug_mode()
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    flags = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
    try:
        with warnings.catch_warnings(), isolate_rng(include_cuda=False):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
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
