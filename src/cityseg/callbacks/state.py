"""Checkpoints that are what their names say, and random numbers that a resumed run repeats."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy

from cityseg.checkpoints import LAST, PREVIOUS
from cityseg.tasks.base import Task

log = logging.getLogger(__name__)

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: os.EX_TEMPFAIL, signal.SIGUSR1: os.EX_TEMPFAIL}
"""Signals that stop a run after the batch it is at, and its exit code: 130 as shells have it, 75 to start it again."""

_REDUCTIONS = {"mean": torch.mean, "sum": torch.sum, "max": torch.max, "min": torch.min}  # no other name from a file

TOGETHER = 10
"""Batches from one time that all processes ask each other whether to stop, for which devices wait, to the next."""


class Stopped(SystemExit):
    """A signal has stopped the run; ``last.ckpt`` holds all that it has done."""


def best_checkpoint(folder: str, monitor: str, mode: Literal["min", "max"]) -> ModelCheckpoint:
    """Keeps ``best.ckpt``, the epoch with the best value of the monitored figure."""
    names = {"filename": "best", "auto_insert_metric_name": False, "enable_version_counter": False}
    return ModelCheckpoint(folder, monitor=monitor, mode=mode, save_top_k=1, **names)  # type: ignore[arg-type]


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a stopped run goes on exactly, and the one before as ``previous.ckpt``.

    It is written when an epoch starts and when training ends, every few minutes if wanted, and after the batch at which
    a signal asks the run to stop. Written inside an epoch's closing hooks, as ModelCheckpoint does, it would miss that
    epoch's step of a per-epoch schedule. The file before the first epoch shows early that the folder can be written to.

    Args:
        folder: where the file goes.
        every_minutes: how often it is written inside an epoch; None for never.
    """

    def __init__(self, folder: str, every_minutes: float | None = None) -> None:
        self.path = Path(folder) / LAST
        self._every = float("inf") if every_minutes is None else 60 * every_minutes
        self._saved = 0.0
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._averages: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals; inside an epoch, do again what its start has done."""
        self._signal, self._saved = None, time.monotonic()
        # After the trainer's own, which would leave at once or ask SLURM for another job themselves.
        self._handlers = {number: signal.signal(number, self._notice) for number in EXIT_CODES}
        # The trainer's own call came before it had the checkpoint: a schedule wanted to know the number of batches.
        trainer.fit_loop._load_combined_loader_states()
        if trainer.fit_loop.restarted_mid_epoch:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if callback is not self:
                    callback.on_train_epoch_start(trainer, pl_module)
            self._restore_averages(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the epochs so far have led to."""
        # Nothing of this epoch has run. Told so, a resumed loop starts it like any other: else it would take the last
        # epoch's batches for its own and end at once, leave out this epoch's step of a plateau schedule, and go on with
        # batches that its workers fetched before they knew the epoch.
        trainer.fit_loop.restarting = False
        trainer.fit_loop.on_iteration_done()
        progress = trainer.fit_loop.epoch_progress.current
        progress.ready = progress.completed + 1  # the trainer leaves it out where an epoch is started again
        # To save a sharded optimizer that has not stepped, torch makes a step of it, which its bias correction counts.
        if trainer.global_step or not isinstance(trainer.strategy, ModelParallelStrategy):
            self._save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, or stop if asked to; not between batches that are accumulated, nor after the last."""
        loop = trainer.fit_loop.epoch_loop
        accumulating = loop._should_accumulate() or cast(Task, pl_module).accumulating
        alone = trainer.world_size == 1
        if not accumulating and not loop.batch_progress.is_last_batch and (alone or batch_idx % TOGETHER == 0):
            self._between_batches(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save if it is time, or stop if asked to: a resumed run starts the validation anew.

        Several processes have different numbers of batches here, and cannot agree: they stop in the next epoch.
        """
        if trainer.world_size == 1 and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._between_batches(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End an epoch that was gone on with like any other: else its step of a per-epoch schedule is left out."""
        trainer.fit_loop._restarting = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state; stop if asked to since the last batch."""
        self._save(trainer)
        self._stop_if_asked(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave signals to who had them before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the sums of the epoch's averages so far, of each process; of a validation say that none of it has run."""
        results = trainer.fit_loop.epoch_loop._results.values()
        averages = [[_state(metric) for metric in results if metric.is_tensor and metric.meta.on_epoch]]
        if trainer.world_size > 1:
            averages *= trainer.world_size
            torch.distributed.all_gather_object(averages, averages[0])
        checkpoint["averages"] = averages
        checkpoint["stopped_early"] = trainer.should_stop
        if trainer.validating:
            done = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress |= {"total": done, "current": dict(done), "is_last_batch": False}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the sums for the epoch that goes on."""
        trainer.should_stop = checkpoint.get("stopped_early", False)
        if trainer.should_stop:
            log.info("training had been stopped early, and is not gone on with")
        averages = checkpoint.get("averages", [[]])
        self._averages = averages[trainer.global_rank] if len(averages) == trainer.world_size else averages[0]

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        log.warning("%s: stopping after this batch", signal.Signals(number).name)

    def _between_batches(self, trainer: Trainer) -> None:
        """Save if it is time or a signal came, all processes at the same batch, and then stop if asked to."""
        due = self._signal is not None or time.monotonic() - self._saved >= self._every
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self._save(trainer)
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            raise Stopped(EXIT_CODES[signal.Signals(self._signal or signal.SIGTERM)])

    def _save(self, trainer: Trainer) -> None:
        fresh = self.path.with_suffix(".ckpt.new")
        trainer.save_checkpoint(fresh, weights_only=False)
        if trainer.is_global_zero:
            if self.path.is_file():
                os.replace(self.path, self.path.with_name(PREVIOUS))
            os.replace(fresh, self.path)
        self._saved = time.monotonic()

    def _restore_averages(self, trainer: Trainer) -> None:
        """Let what was logged before the stop count in the epoch's averages, which the trainer does not save."""
        results = trainer.fit_loop.epoch_loop._results
        trainer._logger_connector._first_loop_iter = False  # with the first batch of an epoch averages start anew
        zero = torch.zeros((), device=trainer.strategy.root_device)
        for saved in self._averages:
            meta = saved["meta"]
            options = {**meta, "reduce_fx": _REDUCTIONS[meta["reduce_fx"]]}
            results.log(**options, value=zero, batch_size=0, sync_dist_fn=trainer.strategy.reduce)
            metric = results[f"{meta['fx']}.{meta['name']}"]
            for key, value in saved["sums"].items():
                setattr(metric, key, value.to(zero.device))


def _state(metric: Any) -> dict[str, Any]:
    meta = metric.meta
    plain = {key: getattr(meta, key) for key in ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch")}
    return {
        "meta": {**plain, "reduce_fx": meta.reduce_fx.__name__, "sync_dist": meta.sync.should},
        "sums": {key: getattr(metric, key).cpu() for key in metric._defaults},
    }


class StepSeed(Callback):
    """Seeds torch anew for each batch, so that a resumed run draws what an uninterrupted one would.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed from (seed, epoch, batch, process)."""
        entropy = np.random.SeedSequence((self._seed, trainer.current_epoch, batch_idx, trainer.global_rank))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
