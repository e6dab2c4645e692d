"""What a person follows a run by: ``history.csv``, a line an epoch in the log, or a terminal's progress bar."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar

from cityseg.data.loading import Batch
from cityseg.files import write_text
from cityseg.reports.run_files import read_history

log = logging.getLogger(__name__)

COLUMNS = re.compile(r"(train|val)/(?!.*_step$).*|optim/.*gradient_norm")
"""Logged figures that are columns of the history; the others have other names there, or belong to steps."""


class History(Callback):
    """Writes ``history.csv``: losses, scores, learning rate, seconds and images a second of every epoch.

    Loggers get the speed too and, on a GPU, the most memory that the epoch has held.

    Args:
        path: the file; rows of earlier epochs are kept when a run is resumed.

    Attributes:
        earlier: seconds of the epochs that were trained before the run was resumed.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self.earlier = 0.0
        self._started = self._trained = 0.0
        self._images = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the rows of the epochs before the one that starts now."""
        kept = read_history(self.path) if self.path.is_file() else []
        self.rows = [row for row in kept if row["epoch"] <= trainer.current_epoch]
        self.earlier = sum(row.get("seconds", 0.0) for row in self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._started, self._images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count images, and the time up to here: validation is not in the speed of training."""
        self._images += len(batch["photo"]) * trainer.world_size
        self._trained = time.perf_counter() - self._started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of this epoch."""
        figures = trainer.callback_metrics
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}  # epochs finished, as everywhere people read
        row |= {key: float(figures[key]) for key in sorted(figures) if COLUMNS.fullmatch(key)}
        row["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row["seconds"] = time.perf_counter() - self._started
        row["images_per_second"] = self._images / self._trained if self._trained else math.nan
        system = {"system/epoch_seconds": row["seconds"], "system/images_per_second": row["images_per_second"]}
        if pl_module.device.type == "cuda":
            system["system/gpu_memory_mib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**20
        pl_module.log_dict(system, sync_dist=True)
        self.rows.append(row)
        if trainer.is_global_zero:
            self.write()

    def write(self) -> None:
        """Write all rows, in the columns that any of them has."""
        text = io.StringIO()
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


class EpochLines(Callback):
    """Losses and mIoU of an epoch in one line of the log, for consoles that are no terminal and for ``train.log``."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the line."""
        if trainer.is_global_zero:
            figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
            parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs or '?'}"]
            parts += [f"{k.replace('/', ' ')} {figures[k]:.3f}" for k in ("train/loss", "val/loss") if k in figures]
            parts += [f"val mIoU {100 * figures[k]:.1f}" for k in ("val/miou",) if k in figures]
            log.info("%s", "  ".join(parts))


class ProgressBar(RichProgressBar):
    """Batches, loss and mIoU while an epoch runs; the lines of finished epochs stay above it."""

    def __init__(self) -> None:
        super().__init__(leave=False)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The figures shown beside the bar, without the logger's version."""
        return {key: value for key, value in super().get_metrics(trainer, pl_module).items() if key != "v_num"}

    def _update_metrics(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Reading a figure waits for the device: not after every batch.
        if trainer.fit_loop.batch_idx % 10 == 0 or trainer.is_last_batch:
            super()._update_metrics(trainer, pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"  # from 1, as in the lines
