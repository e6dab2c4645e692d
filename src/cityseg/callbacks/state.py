"""Checkpoints that are what their names say, and random numbers that a resumed run repeats."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy

from cityseg.errors import CheckpointError


def best_checkpoint(folder: str, monitor: str, mode: Literal["min", "max"]) -> ModelCheckpoint:
    """Keeps ``best.ckpt``, the epoch with the best value of the monitored figure."""
    return ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )


class LastCheckpoint(pl.Callback):
    """Keeps ``last.ckpt``, the state between the last two epochs, from which a resumed run goes on exactly.

    It is written when an epoch starts and when training ends. Written inside an epoch's closing hooks, as
    ModelCheckpoint does, it would miss that epoch's step of a per-epoch schedule. The file before the first epoch
    shows early that the folder can be written to.

    Args:
        folder: where the file goes.
    """

    def __init__(self, folder: str) -> None:
        """See the class."""
        self.path = Path(folder) / "last.ckpt"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what the epochs so far have led to."""
        # Nothing of this epoch has run. Told so, a resumed loop starts it like any other: else it would take the last
        # epoch's batches for its own and end at once, leave out this epoch's step of a plateau schedule, and go on with
        # batches that its workers fetched before they knew the epoch.
        trainer.fit_loop.restarting = False
        trainer.fit_loop.on_iteration_done()
        # To save a sharded optimizer that has not stepped, torch makes a step of it, which its bias correction counts.
        if trainer.global_step or not isinstance(trainer.strategy, ModelParallelStrategy):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the final state."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        fresh = self.path.with_suffix(".ckpt.new")
        trainer.save_checkpoint(fresh, weights_only=False)
        if trainer.is_global_zero:
            # The trainer reports some failed writes only as warnings.
            if not fresh.is_file():
                raise CheckpointError(
                    f"{self.path} could not be written. Fix: check the folder's permissions and space"
                )
            os.replace(fresh, self.path)


class EpochSeed(pl.Callback):
    """Seeds torch anew for each epoch, so that a resumed run draws what an uninterrupted one would.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        """See the class."""
        self._seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed from (seed, epoch, process)."""
        entropy = np.random.SeedSequence((self._seed, trainer.current_epoch, trainer.global_rank))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
