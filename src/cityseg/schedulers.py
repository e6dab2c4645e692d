"""Learning-rate schedules over the length of a run.

A schedule is called as ``schedule(optimizer, total_steps=..., steps_per_epoch=...)``, both counted in optimizer
steps, and returns Lightning's scheduler config; its other options come from the config group ``scheduler``.
Schedules scale each parameter group's own learning rate by a factor of 1 at most, which is never 0 at the
first step. ``warmup_epochs`` is the length of a linear warm-up, fractions allowed, after which the decay starts, and
``min_factor``, from 0 to 1, the share of the learning rate that the decay leaves. Each raises a ``ConfigError`` that
names an option which is out of its range, or a warm-up that is longer than the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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


def constant(
    optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int, warmup_epochs: float = 0
) -> LRSchedulerConfigType:
    """The optimizer's own learning rate throughout, after a warm-up."""
    return _decay(optimizer, lambda step, steps: 1.0, total_steps, steps_per_epoch, warmup_epochs)


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

    ``(1 - t)^power`` of the learning rate is left at share t of the run; power 1 is a straight line.
    """
    _require(power > 0, "power", power, "a number above 0")

    def curve(step: int, steps: int) -> float:
        return math.pow(1 - min(1.0, step / steps), power)

    return _decay(optimizer, curve, total_steps, steps_per_epoch, warmup_epochs, min_factor)


def cosine(
    optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int, warmup_epochs: float = 0, min_factor: float = 0.0
) -> LRSchedulerConfigType:
    """Half a cosine over the run (Loshchilov and Hutter, ICLR 2017, https://arxiv.org/abs/1608.03983)."""

    def curve(step: int, steps: int) -> float:
        return _half_cosine(min(1.0, step / steps))

    return _decay(optimizer, curve, total_steps, steps_per_epoch, warmup_epochs, min_factor)


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

    The first cycle has ``cycle_epochs``, fractions allowed, and each further one ``multiplier`` times the one before.
    """
    _check_length(total_steps, steps_per_epoch)
    cycle_steps = cycle_epochs * steps_per_epoch
    _require(cycle_steps >= 1, "cycle_epochs", cycle_epochs, f"one step at least, {1 / steps_per_epoch:g} epochs")
    _require(multiplier >= 1, "multiplier", multiplier, "1 or more")

    def curve(step: int, steps: int) -> float:
        position, length = float(step), cycle_steps
        while position >= length:
            position -= length
            length *= multiplier
        return _half_cosine(position / length)

    return _decay(optimizer, curve, total_steps, steps_per_epoch, warmup_epochs, min_factor)


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
    """One cycle up to each group's learning rate and down again: torch's ``OneCycleLR``, whose options these are.

    See Smith and Topin, 2018, https://arxiv.org/abs/1708.07120. The rising part is its warm-up. A run that is
    resumed keeps the length it started with, and cannot be extended.
    """
    _check_length(total_steps, steps_per_epoch)
    _require(0 < pct_start < 1, "pct_start", pct_start, "a number between 0 and 1")
    _require(div_factor > 0, "div_factor", div_factor, "a number above 0")
    _require(final_div_factor > 0, "final_div_factor", final_div_factor, "a number above 0")
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
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
    """Lower the learning rate when a score stops improving: torch's ``ReduceLROnPlateau``, whose options these are.

    The warm-up before it rises once an epoch; none of its epochs counts as one without improvement.
    """
    _warmup_steps(warmup_epochs, total_steps, steps_per_epoch)
    _require(mode in ("min", "max"), "mode", mode, f"min or max.{did_you_mean(mode, ['min', 'max'])}")
    _require(0 < factor < 1, "factor", factor, "a number between 0 and 1")
    _require(patience >= 0, "patience", patience, "0 or more epochs")
    _require(0 <= min_factor <= 1, "min_factor", min_factor, "a number from 0 to 1")
    options = {"mode": mode, "factor": factor, "patience": patience, "threshold": threshold, "cooldown": cooldown}
    scheduler = WarmupReduceLROnPlateau(optimizer, warmup_epochs=warmup_epochs, min_factor=min_factor, **options)
    return {"scheduler": scheduler, "interval": "epoch", "frequency": 1, "monitor": monitor, "strict": True}


class WarmupReduceLROnPlateau(ReduceLROnPlateau):
    """torch's ``ReduceLROnPlateau`` after a linear warm-up; both act once an epoch.

    Args:
        optimizer: whose learning rates are scheduled.
        warmup_epochs: epoch ``e`` of the warm-up has ``(e + 1) / warmup_epochs`` of the learning rate.
        min_factor: share of the learning rate below which it is not lowered.
        options: further options of ``ReduceLROnPlateau``.
    """

    def __init__(
        self, optimizer: Optimizer, *, warmup_epochs: float = 0, min_factor: float = 0.0, **options: Any
    ) -> None:
        self.peak_lrs = [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self.warmup_epochs = warmup_epochs
        super().__init__(optimizer, min_lr=[lr * min_factor for lr in self.peak_lrs], **options)
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
        self._last_lr = [lr * scale for lr in self.peak_lrs]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def _decay(
    optimizer: Optimizer,
    curve: Callable[[int, int], float],
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    min_factor: float = 0.0,
) -> LRSchedulerConfigType:
    """Linear warm-up, then a curve from 1 to 0 (of step and number of steps after it), raised to ``min_factor``."""
    _require(0 <= min_factor <= 1, "min_factor", min_factor, "a number from 0 to 1")
    warmup_steps = _warmup_steps(warmup_epochs, total_steps, steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return min_factor + (1 - min_factor) * curve(step - warmup_steps, max(1, total_steps - warmup_steps))

    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step", "frequency": 1}


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _check_length(total_steps: int, steps_per_epoch: int) -> None:
    for name, value in (("total_steps", total_steps), ("steps_per_epoch", steps_per_epoch)):
        _require(0 < value < math.inf, name, value, "a number of steps above 0. Fix: set trainer.max_epochs")


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
