"""Plain supervised training of a segmentation network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from cityseg.data.loading import Batch
from cityseg.labels import LabelSpace
from cityseg.optimizers import build_optimizer
from cityseg.schedulers import SchedulerFactory
from cityseg.tasks.base import OptimizerFactory, Task, optimizer_steps


class SegmentationTask(Task):
    """Trains a network on crops with one loss and one optimizer.

    Args:
        network: see :class:`Task`.
        loss: see :class:`Task`.
        optimizer: parameters -> optimizer.
        scheduler: optimizer and length of the run -> learning-rate schedule.
        label_space: see :class:`Task`.
        encoder_lr_factor: see :func:`cityseg.optimizers.build_optimizer`.
        layer_decay: see :func:`cityseg.optimizers.build_optimizer`.
        auxiliary_weight: factor of the auxiliary head's loss, where the network has one.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory,
        label_space: LabelSpace,
        *,
        encoder_lr_factor: float = 1.0,
        layer_decay: float = 1.0,
        auxiliary_weight: float = 0.4,
    ) -> None:
        super().__init__(network, loss, label_space)
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._lr_factors = {"encoder_lr_factor": encoder_lr_factor, "layer_decay": layer_decay}
        self._auxiliary_weight = auxiliary_weight

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Loss of one batch of crops."""
        return self.supervised(batch)[1]

    def supervised(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits ``(B, C, H, W)`` of a batch of crops, and the loss against its train ids, which is logged."""
        target = batch["target"]
        if getattr(self.network, "has_auxiliary", False):
            logits, auxiliary = self.network.forward_auxiliary(batch["photo"])  # type: ignore[operator]
            loss: Tensor = self.loss(logits, target) + self._auxiliary_weight * self.loss(auxiliary, target)
        else:
            logits = self(batch["photo"])
            loss = self.loss(logits, target)
        size = len(target)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, batch_size=size, prog_bar=True)
        # Such a batch teaches nothing: its loss is 0. Many of them mean that labels are missing or read wrongly.
        only_void = (target == self.label_space.ignore_index).all().float()
        self.log("train/void_batches", only_void, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)
        return logits, loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norm of the gradient, before it is clipped."""
        self.log("optim/gradient_norm", gradient_norm(optimizer), on_step=False, on_epoch=True, sync_dist=True)

    def network_optimizer(self) -> Optimizer:
        """The optimizer of the network's trainable parameters, a learning rate for each group of them."""
        return build_optimizer(self._optimizer, self.network, **self._lr_factors)

    def configure_optimizers(self) -> Any:
        """One optimizer, and its schedule."""
        optimizer = self.network_optimizer()
        total, per_epoch = optimizer_steps(self.trainer)
        schedule = self._scheduler(optimizer, total_steps=total, steps_per_epoch=per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {**schedule, "name": "optim/lr"}}


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """The norm of all gradients that an optimizer is about to step with."""
    norm = get_total_norm(p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # each process has a share of it
