"""One row an epoch: in ``history.csv``, and on the console where there is no terminal for a progress bar."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from cityseg.data.loading import Batch
from cityseg.files import write_text
from cityseg.reports.run_files import read_history

log = logging.getLogger(__name__)

COLUMNS = re.compile(r"(train|val)/(?!.*_step$).*|optim/.*gradient_norm")
"""Logged figures that are columns of the history; the others have other names there, or belong to steps."""


class History(pl.Callback):
    """Writes ``history.csv``: losses, scores, learning rate, seconds and images a second of every epoch.

    Loggers get the speed too and, on a GPU, the most memory that the epoch has held.

    Args:
        path: the file; rows of earlier epochs are kept when a run is resumed.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self._started = self._trained = 0.0
        self._images = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows of the epochs before the one that starts now."""
        kept = read_history(self.path) if self.path.is_file() else []
        self.rows = [row for row in kept if row["epoch"] <= trainer.current_epoch]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._started = time.perf_counter()
        self._images = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count images, and the time up to here: validation is not in the speed of training."""
        self._images += len(batch["photo"]) * trainer.world_size
        self._trained = time.perf_counter() - self._started

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the row of this epoch."""
        figures = trainer.callback_metrics
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}  # epochs finished, as everywhere people read
        row |= {key: float(figures[key]) for key in sorted(figures) if COLUMNS.fullmatch(key)}
        seconds = time.perf_counter() - self._started
        speed = self._images / self._trained if self._trained else math.nan
        row |= {
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "seconds": seconds,
            "images_per_second": speed,
        }
        system = {"system/epoch_seconds": seconds, "system/images_per_second": speed}
        if pl_module.device.type == "cuda":
            system["system/gpu_memory_mib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**20
        pl_module.log_dict(system, sync_dist=True)
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in self.rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


class EpochLines(pl.Callback):
    """One line an epoch in the log, for consoles that are no terminal and for ``train.log``."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the line."""
        if trainer.is_global_zero:
            log.info("%s", epoch_line(trainer.current_epoch + 1, trainer.max_epochs, trainer.callback_metrics))


def epoch_line(epoch: int, epochs: int | None, figures: Mapping[str, Any]) -> str:
    """Losses and scores of an epoch in one line.

    >>> epoch_line(1, 20, {"train/loss": 1.5, "val/loss": 1.25, "val/miou": 0.5})
    'epoch 1/20  train loss 1.500  val loss 1.250  val mIoU 50.0'
    """
    parts = [f"epoch {epoch}/{epochs or '?'}"]
    parts += [
        f"{key.replace('/', ' ')} {float(figures[key]):.3f}" for key in ("train/loss", "val/loss") if key in figures
    ]
    if "val/miou" in figures:
        parts.append(f"val mIoU {100 * float(figures['val/miou']):.1f}")
    return "  ".join(parts)
