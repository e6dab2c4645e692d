"""The progress bar of a terminal."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Batches, loss and mIoU while an epoch runs; the lines of finished epochs stay above it."""

    def __init__(self) -> None:
        """Make a bar that goes away when its work is done."""
        super().__init__(leave=False)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The figures shown beside the bar, without the logger's version."""
        return {key: value for key, value in super().get_metrics(trainer, pl_module).items() if key != "v_num"}

    def _update_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Reading a figure waits for the device: not after every batch.
        if trainer.fit_loop.batch_idx % 10 == 0 or trainer.is_last_batch:
            super()._update_metrics(trainer, pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"  # from 1, as in the lines
