"""Learning-rate schedules: pure functions of the step, and factories that wrap them for Lightning.

A factory is called as ``factory(optimizer, total_steps=..., steps_per_epoch=...)``, both counted in optimizer
steps, and returns Lightning's scheduler config; its other options come from the config group ``scheduler``.
Schedules scale each parameter group's own learning rate by a factor of 1 at most, which is never 0 at the
first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, SupportsFloat

from pytorch_lightning.utilities.types import LRSchedulerConfigType
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from cityseg.errors import ConfigError, did_you_mean


class SchedulerFactory(Protocol):
    """What a task calls once its optimizer exists and the length of the run is known."""

    def __call__(self, optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int) -> LRSchedulerConfigType:
        """Build the schedule of one optimizer; lengths are optimizer steps."""
        ...


def constant_factor(step: int, *, warmup_steps: int = 0) -> float:
    """Linear warm-up from ``1 / warmup_steps`` to 1 over the first ``warmup_steps`` steps, then 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def poly_factor(
    step: int, *, total_steps: int, power: float = 0.9, warmup_steps: int = 0, min_factor: float = 0.0
) -> float:
    """Warm-up, then ``(1 - t)^power`` down to ``min_factor``; ``t`` goes from 0 to 1 in what remains."""
    if step < warmup_steps:
        return constant_factor(step, warmup_steps=warmup_steps)
    decay = math.pow(1 - _progress(step, total_steps, warmup_steps), power)
    return min_factor + (1 - min_factor) * decay


def cosine_factor(step: int, *, total_steps: int, warmup_steps: int = 0, min_factor: float = 0.0) -> float:
    """Warm-up, then half a cosine down to ``min_factor`` over the remaining steps."""
    if step < warmup_steps:
        return constant_factor(step, warmup_steps=warmup_steps)
    return _half_cosine(_progress(step, total_steps, warmup_steps), min_factor)


def cosine_restarts_factor(
    step: int, *, cycle_steps: float, multiplier: float = 1.0, warmup_steps: int = 0, min_factor: float = 0.0
) -> float:
    """Warm-up, then half cosines down to ``min_factor``, each ``multiplier`` times as long as the last."""
    if step < warmup_steps:
        return constant_factor(step, warmup_steps=warmup_steps)
    position, length = float(step - warmup_steps), cycle_steps
    while position >= length:
        position -= length
        length *= multiplier
    return _half_cosine(position / length, min_factor)


def _progress(step: int, total_steps: int, warmup_steps: int) -> float:
    return min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))


def _half_cosine(progress: float, min_factor: float) -> float:
    return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * progress)) / 2


def constant(
    optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int, warmup_epochs: float = 0
) -> LRSchedulerConfigType:
    """The optimizer's own learning rate throughout, after a linear warm-up.

    Args:
        optimizer: whose learning rates are scheduled.
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of one epoch.
        warmup_epochs: length of the linear warm-up, fractions allowed.

    Raises:
        ConfigError: if the warm-up is negative or longer than the run.
    """
    warmup_steps = _warmup_steps(warmup_epochs, total_steps, steps_per_epoch)
    return _each_step(optimizer, partial(constant_factor, warmup_steps=warmup_steps))


def poly(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    power: float = 0.9,
    warmup_epochs: float = 0,
    min_factor: float = 0.0,
) -> LRSchedulerConfigType:
    """Polynomial decay over the run (Chen et al., DeepLab, 2016, https://arxiv.org/abs/1606.00915).

    Args:
        optimizer: whose learning rates are scheduled.
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of one epoch.
        power: exponent, above 0; 1 is a straight line.
        warmup_epochs: length of the linear warm-up, fractions allowed; the decay starts after it.
        min_factor: share of the learning rate that is left at the end, 0 to 1.

    Raises:
        ConfigError: if an option is out of its range, or the warm-up is longer than the run.
    """
    warmup_steps = _warmup_steps(warmup_epochs, total_steps, steps_per_epoch)
    _require(power > 0, "power", power, "a number above 0")
    _require(0 <= min_factor <= 1, "min_factor", min_factor, "a number from 0 to 1")
    factor = partial(
        poly_factor,
        total_steps=total_steps,
        power=power,
        warmup_steps=warmup_steps,
        min_factor=min_factor,
    )
    return _each_step(optimizer, factor)


def cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0,
    min_factor: float = 0.0,
) -> LRSchedulerConfigType:
    """Half a cosine over the run (Loshchilov and Hutter, ICLR 2017, https://arxiv.org/abs/1608.03983).

    Args:
        optimizer: whose learning rates are scheduled.
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of one epoch.
        warmup_epochs: length of the linear warm-up, fractions allowed; the decay starts after it.
        min_factor: share of the learning rate that is left at the end, 0 to 1.

    Raises:
        ConfigError: if an option is out of its range, or the warm-up is longer than the run.
    """
    warmup_steps = _warmup_steps(warmup_epochs, total_steps, steps_per_epoch)
    _require(0 <= min_factor <= 1, "min_factor", min_factor, "a number from 0 to 1")
    factor = partial(cosine_factor, total_steps=total_steps, warmup_steps=warmup_steps, min_factor=min_factor)
    return _each_step(optimizer, factor)


def cosine_restarts(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    cycle_epochs: float = 10,
    multiplier: float = 2.0,
    warmup_epochs: float = 0,
    min_factor: float = 0.0,
) -> LRSchedulerConfigType:
    """Half cosines with warm restarts, SGDR (Loshchilov and Hutter, ICLR 2017, https://arxiv.org/abs/1608.03983).

    Args:
        optimizer: whose learning rates are scheduled.
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of one epoch.
        cycle_epochs: length of the first cycle, fractions allowed, one step at least.
        multiplier: length of a cycle over that of the one before, 1 or more.
        warmup_epochs: length of the linear warm-up, fractions allowed; the first cycle starts after it.
        min_factor: share of the learning rate that is left at the end of a cycle, 0 to 1.

    Raises:
        ConfigError: if an option is out of its range, or the warm-up is longer than the run.
    """
    warmup_steps = _warmup_steps(warmup_epochs, total_steps, steps_per_epoch)
    cycle_steps = cycle_epochs * steps_per_epoch
    _require(cycle_steps >= 1, "cycle_epochs", cycle_epochs, f"one step at least, {1 / steps_per_epoch:g} epochs")
    _require(multiplier >= 1, "multiplier", multiplier, "1 or more")
    _require(0 <= min_factor <= 1, "min_factor", min_factor, "a number from 0 to 1")
    factor = partial(
        cosine_restarts_factor,
        cycle_steps=cycle_steps,
        multiplier=multiplier,
        warmup_steps=warmup_steps,
        min_factor=min_factor,
    )
    return _each_step(optimizer, factor)


def one_cycle(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    cycle_momentum: bool = True,
) -> LRSchedulerConfigType:
    """One cycle up to each group's learning rate and down again: torch's ``OneCycleLR``.

    See Smith and Topin, 2018, https://arxiv.org/abs/1708.07120. The rising part is its warm-up. A run that is
    resumed keeps the length it started with, and cannot be extended.

    Args:
        optimizer: whose learning rates (and momentum) are scheduled.
        total_steps: optimizer steps of the run.
        steps_per_epoch: not used: the cycle is the run.
        pct_start: share of the run in which the learning rate rises, 0 to 1.
        div_factor: the first learning rate is the optimizer's divided by this.
        final_div_factor: the last learning rate is the first divided by this.
        cycle_momentum: move momentum (or beta 1) against the learning rate, from 0.95 to 0.85 and back.

    Raises:
        ConfigError: if an option is out of its range.
    """
    _require(0 < pct_start < 1, "pct_start", pct_start, "a number between 0 and 1")
    _require(div_factor > 0, "div_factor", div_factor, "a number above 0")
    _require(final_div_factor > 0, "final_div_factor", final_div_factor, "a number above 0")
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=_check_length(total_steps, steps_per_epoch),
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=cycle_momentum,
    )
    return {"scheduler": scheduler, "interval": "step", "frequency": 1}


def plateau(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    monitor: str,
    mode: Literal["min", "max"],
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    cooldown: int = 0,
    warmup_epochs: float = 0,
    min_factor: float = 0.0,
) -> LRSchedulerConfigType:
    """Lower the learning rate when a score stops improving, after a warm-up that rises once an epoch.

    Args:
        optimizer: whose learning rates are scheduled.
        total_steps: optimizer steps of the run.
        steps_per_epoch: optimizer steps of one epoch.
        monitor: name of the logged score.
        mode: whether a better score is ``min`` or ``max``.
        factor: what the learning rate is multiplied with, between 0 and 1.
        patience: epochs without improvement that are tolerated.
        threshold: least relative improvement that counts as one.
        cooldown: epochs after a reduction in which none is counted.
        warmup_epochs: length of the linear warm-up, in which no epoch counts as one without improvement.
        min_factor: share of the learning rate below which it is not lowered, 0 to 1.

    Raises:
        ConfigError: if an option is out of its range, or the warm-up is longer than the run.
    """
    _warmup_steps(warmup_epochs, total_steps, steps_per_epoch)
    _require(mode in ("min", "max"), "mode", mode, f"min or max.{did_you_mean(mode, ['min', 'max'])}")
    _require(0 < factor < 1, "factor", factor, "a number between 0 and 1")
    _require(patience >= 0, "patience", patience, "0 or more epochs")
    _require(0 <= min_factor <= 1, "min_factor", min_factor, "a number from 0 to 1")
    scheduler = WarmupReduceLROnPlateau(
        optimizer,
        mode=mode,
        warmup_epochs=warmup_epochs,
        factor=factor,
        patience=patience,
        threshold=threshold,
        cooldown=cooldown,
        min_factor=min_factor,
    )
    return {"scheduler": scheduler, "interval": "epoch", "frequency": 1, "monitor": monitor, "strict": True}


class WarmupReduceLROnPlateau(ReduceLROnPlateau):
    """torch's ``ReduceLROnPlateau`` after a linear warm-up; both act once an epoch."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        mode: Literal["min", "max"],
        warmup_epochs: float = 0,
        min_factor: float = 0.0,
        **options: Any,
    ) -> None:
        """Set the learning rates of the first epoch.

        Args:
            optimizer: whose learning rates are scheduled.
            mode: whether a better score is ``min`` or ``max``.
            warmup_epochs: epoch ``e`` of the warm-up has ``(e + 1) / warmup_epochs`` of the learning rate.
            min_factor: share of the learning rate below which it is not lowered.
            options: further options of ``ReduceLROnPlateau``.
        """
        self.peak_lrs = [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self.warmup_epochs = warmup_epochs
        super().__init__(optimizer, mode=mode, min_lr=[lr * min_factor for lr in self.peak_lrs], **options)
        self._warm_up()

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """End an epoch whose score is ``metrics``."""
        if self.last_epoch + 1 >= self.warmup_epochs:
            super().step(metrics, epoch)
            return
        self.last_epoch += 1
        if self._is_better(float(metrics), self.best):  # type: ignore[no-untyped-call]
            self.best = float(metrics)
        self._warm_up()

    def _warm_up(self) -> None:
        scale = min(1.0, (self.last_epoch + 1) / self.warmup_epochs) if self.warmup_epochs else 1.0
        for group, lr in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = lr * scale
        self._last_lr = [lr * scale for lr in self.peak_lrs]


def _each_step(optimizer: Optimizer, factor: Callable[[int], float]) -> LRSchedulerConfigType:
    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step", "frequency": 1}


def _check_length(total_steps: int, steps_per_epoch: int) -> int:
    for name, value in (("total_steps", total_steps), ("steps_per_epoch", steps_per_epoch)):
        _require(0 < value < math.inf, name, value, "a number of steps above 0. Fix: set trainer.max_epochs")
    return total_steps


def _warmup_steps(warmup_epochs: float, total_steps: int, steps_per_epoch: int) -> int:
    _check_length(total_steps, steps_per_epoch)
    _require(0 <= warmup_epochs < math.inf, "warmup_epochs", warmup_epochs, "0 or more epochs")
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if warmup_steps > total_steps:
        raise ConfigError(
            f"scheduler: a warm-up of {warmup_steps} steps ({warmup_epochs:g} epochs) is longer than the run "
            f"of {total_steps} steps ({total_steps / steps_per_epoch:g} epochs). Fix: lower "
            "scheduler.warmup_epochs or raise trainer.max_epochs"
        )
    return warmup_steps


def _require(holds: bool, name: str, found: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"scheduler.{name}: found {found!r}, expected {expected}")
