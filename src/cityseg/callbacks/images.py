"""Pictures for TensorBoard: panels of fixed samples, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import cv2
import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from cityseg.data.loading import Batch
from cityseg.labels import ByteArray
from cityseg.reports.panels import panel
from cityseg.reports.plots import confusion_figure
from cityseg.tasks.base import Task


class Images(Callback):
    """Adds pictures of the validation split to TensorBoard.

    Args:
        count: samples shown, spread over the split; the same in every epoch.
        every_n_epochs: how often panels and the confusion matrix are drawn; the last epoch always is.
    """

    def __init__(self, count: int = 4, every_n_epochs: int = 5) -> None:
        self._count, self._every = count, every_n_epochs
        self._chosen: frozenset[int] = frozenset()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the samples."""
        loaders = trainer.val_dataloaders
        total = len(loaders.dataset) if loaders is not None else 0
        self._chosen = frozenset(spread(total, self._count)) if self._due(trainer) else frozenset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Draw the chosen samples of this batch."""
        for writer in _writers(trainer):
            for index, picture in batch_panels(batch, outputs, cast(Task, pl_module), self._chosen):
                writer.add_image(f"panels/{index}", picture, _step(trainer), dataformats="HWC")
            shown = [place for place, index in enumerate(batch["index"].tolist()) if index in self._chosen]
            for name, pictures in (cast(Task, pl_module).pictures(batch) if shown else {}).items():
                for place in shown:
                    tag = f"{name}/{int(batch['index'][place])}"
                    writer.add_image(tag, pictures[place].float().cpu(), _step(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the confusion matrix where it is due."""
        task = cast(Task, pl_module)
        if task.scores is None or not self._due(trainer):
            return
        for writer in _writers(trainer):
            figure = confusion_figure(np.array(task.scores["confusion_matrix"]), task.label_space.class_names)
            writer.add_figure("val/confusion", figure, _step(trainer))

    def _due(self, trainer: Trainer) -> bool:
        epoch = trainer.current_epoch + 1
        return not trainer.sanity_checking and (epoch % self._every == 0 or epoch == trainer.max_epochs)


def batch_panels(
    batch: Batch, predictions: Tensor, task: Task, chosen: frozenset[int]
) -> Iterator[tuple[int, ByteArray]]:
    """Panels ``(h, w, 3)`` uint8 of the chosen samples in a batch, each with its index in the split."""
    for position, index in enumerate(batch["index"].tolist()):
        if index in chosen:
            truth = batch["target"][position].cpu().numpy() if "target" in batch else None
            photo = batch["photo"][position].permute(1, 2, 0).cpu().numpy()
            prediction = predictions[position].cpu().numpy()
            if photo.shape[:2] != prediction.shape:  # loaded at a fraction of its resolution
                photo = np.asarray(cv2.resize(photo, prediction.shape[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
            yield index, panel(photo, truth, prediction, task.label_space)


def spread(total: int, count: int) -> list[int]:
    """Positions of `count` samples spread evenly over a split of `total`."""
    return sorted({round(position) for position in np.linspace(0, total - 1, min(count, total))}) if total else []


def _step(trainer: Trainer) -> int:
    """The step that loggers put this epoch's scores at; ``global_step`` counts the discriminator's steps too."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    if trainer.is_global_zero:
        yield from (cast(SummaryWriter, lg.experiment) for lg in trainer.loggers if isinstance(lg, TensorBoardLogger))
