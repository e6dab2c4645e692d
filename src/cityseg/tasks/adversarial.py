"""Adversarial training: the segmentation network is the generator, a discriminator judges its labellings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cityseg import adversarial
from cityseg.adversarial import AuxiliaryMap
from cityseg.data.loading import Batch
from cityseg.errors import ConfigError
from cityseg.models.network import count_parameters
from cityseg.models.patchgan import PatchGan
from cityseg.optimizers import build_optimizer
from cityseg.tasks.base import OptimizerFactory, optimizer_steps
from cityseg.tasks.segmentation import SegmentationTask, gradient_norm


class AdversarialTask(SegmentationTask):
    """Alternates a step of the discriminator and a step of the generator, each on its own parameters only.

    The generator minimises its segmentation loss + ``adversarial_weight`` x hinge; with weight 0 training is the
    plain task's, step for step, and the discriminator rests. Accumulated batches are kept until the step, so that
    both steps see all of them as one large batch: first the discriminator, then, against its new weights, the
    generator.

    Args:
        discriminator: photo in -1..1 and auxiliary map -> scores ``(B, 1, h, w)``.
        discriminator_optimizer: parameters -> optimizer; it follows the generator's schedule.
        adversarial_weight: factor of the adversarial term.
        warmup_epochs: first epochs without the adversarial term; the discriminator learns already.
        auxiliary_map: which map the discriminator sees, see :func:`cityseg.adversarial.predicted_map`.
        discriminator_steps: steps of the discriminator for each one of the generator, on the same batches.
        r1_weight: factor of the R1 penalty, 0 for none.
        accumulate_grad_batches: batches that make one step.
        gradient_clip_val: largest norm (or value) of either one's gradient; None for no limit.
        gradient_clip_algorithm: ``norm`` or ``value``.
        options: as :class:`SegmentationTask` has them.

    Raises:
        ConfigError: if an option is out of its range.
    """

    manual = True

    def __init__(
        self,
        *,
        discriminator: PatchGan,
        discriminator_optimizer: OptimizerFactory,
        adversarial_weight: float,
        warmup_epochs: int = 0,
        auxiliary_map: AuxiliaryMap = "expected_index",
        discriminator_steps: int = 1,
        r1_weight: float = 0.0,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.automatic_optimization = False
        self.discriminator = discriminator
        self._discriminator_optimizer = discriminator_optimizer
        self._weight = _at_least(0, "adversarial_weight", adversarial_weight)
        self._warmup = _at_least(0, "warmup_epochs", warmup_epochs)
        self._map: AuxiliaryMap = auxiliary_map
        self._discriminator_steps = int(_at_least(1, "discriminator_steps", discriminator_steps))
        self._r1_weight = _at_least(0, "r1_weight", r1_weight)
        self._accumulate = accumulate_grad_batches
        self._clip = {"gradient_clip_val": gradient_clip_val, "gradient_clip_algorithm": gradient_clip_algorithm}
        self._window: list[Batch] = []
        self._gradient_norm = torch.zeros(())  # of the optimizer that has stepped last
        self._monitor: object = None  # of a plateau schedule

    @property
    def accumulating(self) -> bool:
        """See :attr:`Task.accumulating`."""
        return bool(self._window)

    def on_train_start(self) -> None:
        """Tell the trainer how many batches make a step: its loggers count the generator's, as of any other task."""
        self.trainer.accumulate_grad_batches = self._accumulate

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect a batch; with the last of a step, train the discriminator and then the generator."""
        self._window.append(batch)
        if len(self._window) < self._accumulate and not self.trainer.is_last_batch:
            return
        window, self._window = self._window, []
        if len(window) == 1:  # the labelling that the discriminator has judged is the one the generator learns from
            labelled = self._labelled(window[0])
            self._discriminator_step(window, [labelled[0].detach()])
            self._generator_step(window, [labelled])
        else:
            with torch.no_grad(), unchanged_statistics(self.network):
                fakes = [self._seen(self(batch["photo"]), batch) for batch in window] if self._weight > 0 else []
            self._discriminator_step(window, fakes)
            self._generator_step(window, (self._labelled(batch) for batch in window))

    def _labelled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the discriminator sees of a batch's labelling, and the labelling's loss."""
        logits, loss = self.supervised(batch)
        return self._seen(logits, batch), loss

    def _seen(self, logits: Tensor, batch: Batch) -> Tensor:
        # A discriminator that rests sees nothing.
        return adversarial.predicted_map(logits, self._condition(batch)[1], self._map) if self._weight > 0 else logits

    def _discriminator_step(self, window: Sequence[Batch], fakes: Sequence[Tensor]) -> None:
        if self._weight == 0:
            return
        optimizer = cast(list[LightningOptimizer], self.optimizers())[1]
        for _ in range(self._discriminator_steps):
            optimizer.zero_grad()
            for batch, fake_map in zip(window, fakes, strict=True):
                self.manual_backward(self._discriminator_loss(batch, fake_map) / len(window))
            optimizer.step()
            self._log("optim/discriminator_gradient_norm", self._gradient_norm, window[-1])

    def _discriminator_loss(self, batch: Batch, fake_map: Tensor) -> Tensor:
        photo, void = self._condition(batch)
        real_map = adversarial.true_map(batch["target"], void, self.label_space.num_classes, self._map)
        real, fake = self.discriminator(photo, real_map), self.discriminator(photo, fake_map)
        weight = self.discriminator.valid_mask(void)
        loss = adversarial.discriminator_hinge(real, fake, weight)
        self._log("train/discriminator_loss", loss, batch)
        for which, right in zip(("real", "fake"), adversarial.accuracy(real, fake, weight), strict=True):
            self._log(f"train/discriminator_{which}_accuracy", right, batch)
        if self._r1_weight > 0:
            loss = loss + self._r1_weight * adversarial.r1_penalty(self.discriminator, photo, real_map, weight)
        return loss

    def _generator_step(self, window: Sequence[Batch], labelled: Iterable[tuple[Tensor, Tensor]]) -> None:
        optimizers = self.optimizers()
        optimizer = optimizers[0] if isinstance(optimizers, list) else optimizers
        optimizer.zero_grad()
        weight = self._weight if self.current_epoch >= self._warmup else 0.0
        with without_gradients(self.discriminator):
            for batch, (fake_map, loss) in zip(window, labelled, strict=True):
                if weight > 0:
                    photo, void = self._condition(batch)
                    scores = self.discriminator(photo, fake_map)
                    term = adversarial.generator_hinge(scores, self.discriminator.valid_mask(void))
                    self._log("train/adversarial_loss", term, batch)
                    loss = loss + weight * term
                self.manual_backward(loss / len(window))
        optimizer.step()
        self._log("optim/gradient_norm", self._gradient_norm, window[-1])
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == "step":
                config.scheduler.step()  # type: ignore[call-arg]

    def _condition(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The photo ``(B, 3, H, W)`` in -1..1, and where the truth is void, ``(B, H, W)`` bool."""
        return batch["photo"].float() / 127.5 - 1, batch["target"] == self.label_space.ignore_index

    def _log(self, name: str, value: Tensor, batch: Batch) -> None:
        size = len(batch["photo"])
        self.log(name, value.detach(), on_step=False, on_epoch=True, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """The generator's optimizer and, unless it rests, the discriminator's, both on the same schedule."""
        optimizers = [self.network_optimizer()]
        if self._weight > 0:
            optimizers.append(build_optimizer(self._discriminator_optimizer, self.discriminator))
        batches, per_epoch = optimizer_steps(self.trainer)
        epochs = max(batches // per_epoch, 1)
        steps = -(-per_epoch // self._accumulate)
        schedules: list[dict[str, Any]] = []
        for optimizer, name in zip(optimizers, ("optim/lr", "optim/discriminator_lr"), strict=False):
            schedule = dict(self._scheduler(optimizer, total_steps=epochs * steps, steps_per_epoch=steps), name=name)
            self._monitor = schedule.pop("monitor", None)  # in manual optimization the trainer takes none
            schedule.pop("strict", None)
            schedules.append(schedule)
        return optimizers, schedules

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient of whichever steps now; it is no longer scaled here.

        Logged from here, its norm would make the trainer forget what this step of an epoch's first batch has logged.
        """
        self._gradient_norm = gradient_norm(optimizer)
        self.clip_gradients(optimizer, **self._clip)  # type: ignore[arg-type]

    def on_train_epoch_end(self) -> None:
        """Step the schedules that go by epochs."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == "epoch" and isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(self.trainer.callback_metrics[cast(str, self._monitor)])
            elif config.interval == "epoch":
                config.scheduler.step()  # type: ignore[call-arg]

    def parameters_by_part(self) -> dict[str, int]:
        """Parameter counts for the summary, the discriminator's beside the network's."""
        return {**super().parameters_by_part(), "discriminator": count_parameters(self.discriminator)["total"]}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The auxiliary maps that the discriminator sees, ``(B, 1, H, W)`` in 0..1: truth | prediction."""
        if "target" not in batch:
            return {}
        _, void = self._condition(batch)
        # Of several channels the sum over classes weighted by their index is what an eye can compare.
        kind: AuxiliaryMap = "expected_index" if self._map == "probabilities" else self._map
        truth = adversarial.true_map(batch["target"], void, self.label_space.num_classes, kind)
        return {
            "auxiliary_maps": torch.cat(
                [truth, adversarial.predicted_map(self._whole_logits(batch), void, kind)], dim=3
            )
        }


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Let gradients through a module, but none into its parameters."""
    trained = nn.ParameterList(parameter for parameter in module.parameters() if parameter.requires_grad)
    trained.requires_grad_(False)
    try:
        yield
    finally:
        trained.requires_grad_(True)


@contextmanager
def unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation use a batch's statistics without counting them into the running ones."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _at_least(least: float, name: str, value: float) -> float:
    if not value >= least:
        raise ConfigError(f"task.{name}: found {value!r}, expected a number from {least:g}")
    return value
