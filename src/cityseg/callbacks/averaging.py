"""Exponential moving average of the network's weights: what is validated and kept as the best checkpoint."""

from __future__ import annotations

from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cityseg.errors import ConfigError
from cityseg.tasks.base import Task

RAW = "raw_state_dict"
"""Key of a checkpoint under which the weights that training goes on with are kept."""


class WeightEMA(Callback):
    """Averages the weights after every optimizer step: ``average = d * average + (1 - d) * weights``.

    The decay ``d`` is ``min(decay, (1 + n) / (10 + n))`` after ``n`` earlier steps, so that a short run does not end
    near its random start (TensorFlow's ``ExponentialMovingAverage(num_updates=...)``). Validation sees the average,
    and every checkpoint has it as its weights; those that training goes on with lie beside it, so that a resumed run
    repeats an uninterrupted one.

    The task's network alone is averaged: no discriminator and no metric. Statistics of batch normalisation are
    averaged with the weights: those of the last few batches fit activations of the newest weights, and the averaged
    ones lag behind. Counters are copied. Several optimizers that step on one batch count as one step.

    Lightning's ``EMAWeightAveraging`` averages all that the task holds, has no warm-up, and leaves the average in
    place of the weights when training ends, so that a last checkpoint saved after it cannot be gone on from.

    Args:
        decay: d of a long run, from 0 (the weights themselves) to less than 1.

    Raises:
        ConfigError: if the decay is out of its range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"callbacks.ema.decay: found {decay!r}, expected a number from 0 to less than 1")
        self._decay = decay
        self._average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}  # while the average is in their place
        self._updates = self._steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier training."""
        self._average, self._updates = {}, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the network's weights, or go on from those of the checkpoint."""
        start = self._average or _weights(pl_module)
        self._average = {key: _exact(value).to(pl_module.device) for key, value in start.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from here."""
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Update the average if an optimizer stepped, which it does not while batches are accumulated."""
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        averages, values = [], []
        for key, value in _weights(pl_module).items():
            average = self._average[key]
            if value.is_floating_point():
                averages.append(average)
                values.append(value.to(average.dtype))
            else:
                average.copy_(value)
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        get_ema_multi_avg_fn(decay)(averages, values, self._updates)  # type: ignore[no-untyped-call]
        self._updates += 1

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        weights = _weights(pl_module) if self._average else {}  # none if nothing is trained
        self._raw = {key: value.clone() for key, value in weights.items()}
        for key, value in weights.items():
            value.copy_(self._average[key])

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights."""
        weights = _weights(pl_module)
        for key, value in self._raw.items():
            weights[key].copy_(value)
        self._raw = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the average the checkpoint's weights."""
        weights = checkpoint["state_dict"]
        average = {f"network.{key}": value for key, value in self._average.items()}
        checkpoint[RAW] = {key: self._raw.get(key.removeprefix("network."), weights[key]) for key in average}
        checkpoint["state_dict"] = {**weights, **average}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take average and weights back; from a checkpoint without an average, one starts at its weights."""
        if RAW in checkpoint:
            weights = checkpoint["state_dict"]
            self._average = {key.removeprefix("network."): weights[key].clone() for key in checkpoint[RAW]}
            pl_module.load_state_dict({**weights, **checkpoint[RAW]})

    def state_dict(self) -> dict[str, Any]:
        """How far the warm-up of the decay is."""
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the warm-up of the decay."""
        self._updates = state_dict["updates"]


def _weights(pl_module: LightningModule) -> dict[str, Tensor]:
    return cast(Task, pl_module).network.state_dict()


def _exact(value: Tensor) -> Tensor:
    """A copy in which small steps of an average are not rounded away, as they would be in 16 bits."""
    dtype = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
    return value.to(dtype, copy=True)
