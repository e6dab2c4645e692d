"""Plain supervised training of a segmentation network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cityseg.data.loading import Batch
from cityseg.labels import LabelSpace
from cityseg.schedulers import SchedulerFactory
from cityseg.tasks.base import OptimizerFactory, Task, optimizer_steps


class SegmentationTask(Task):
    """Trains a network on crops with one loss and one optimizer.

    Args:
        network: photos ``(B, 3, H, W)`` uint8 -> logits ``(B, C, H, W)``.
        loss: logits and train ids ``(B, H, W)`` -> scalar.
        optimizer: parameters -> optimizer.
        scheduler: optimizer and length of the run -> learning-rate schedule.
        label_space: the classes.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory,
        label_space: LabelSpace,
    ) -> None:
        """See the class."""
        super().__init__(network, loss, label_space)
        self._optimizer = optimizer
        self._scheduler = scheduler

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch of crops."""
        target = batch["target"]
        loss: Tensor = self.loss(self(batch["photo"]), target)
        size = len(target)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, batch_size=size, prog_bar=True)
        # Such a batch teaches nothing: its loss is 0. Many of them mean that labels are missing or read wrongly.
        only_void = (target == self.label_space.ignore_index).all().float()
        self.log("train/void_batches", only_void, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        """One optimizer over the trainable parameters, and its schedule."""
        optimizer = self._optimizer([p for p in self.network.parameters() if p.requires_grad])
        total, per_epoch = optimizer_steps(self.trainer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": self._scheduler(optimizer, total_steps=total, steps_per_epoch=per_epoch),
        }
