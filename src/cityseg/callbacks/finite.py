"""A loss that is not a number stops the run before it reaches a checkpoint."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cityseg.callbacks.state import LastCheckpoint
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.errors import ConfigError, TrainingError

log = logging.getLogger(__name__)


class FiniteLoss(Callback):
    """Stops the run at the first NaN or infinite loss, naming the step and the photos; or leaves such batches out.

    Where no batch may be left out, a GPU is asked about a batch only after the next, so that it need not wait.

    Args:
        skip: batches that may be left out in the whole run: weights and optimizer stay as they were, but for a
            discriminator whose own loss was finite.

    Raises:
        ConfigError: if `skip` is out of its range.
    """

    def __init__(self, skip: int = 0) -> None:
        if not isinstance(skip, int) or skip < 0:
            raise ConfigError(f"callbacks.finite.skip: found {skip!r}, expected a whole number from 0")
        self._left, self._most = skip, skip
        self._bad: Tensor | None = None
        self._indices: list[Tensor] = []  # of the batches that the next step is made of
        self._waiting: tuple[Tensor, torch.cuda.Event, str, list[Tensor]] | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []  # of batch normalisation, and what they were

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the statistics that a batch to be left out would spoil."""
        self._indices.append(batch["index"])
        if self._left:
            self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at one of the losses of a batch."""
        bad = ~loss.detach().isfinite().all()
        self._bad = bad if self._bad is None else self._bad | bad

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients away where a batch is left out: an optimizer passes over weights without one."""
        if self._left and self._bad is not None and self._bad.item():
            optimizer.zero_grad()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, or count a batch that was left out."""
        if self._bad is None:
            return
        bad, self._bad = self._bad, None
        indices, self._indices = self._indices, []
        what = f"batch {batch_idx} of epoch {trainer.current_epoch + 1} (step {trainer.global_step})"
        if not self._most and bad.is_cuda:
            self._settle(trainer)
            answer = torch.empty_like(bad, device="cpu", pin_memory=True)  # into other memory a copy waits
            answer.copy_(bad, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
            self._waiting = answer, copied, what, indices
        elif bad.item():
            if not self._left:
                raise self._bad_loss(trainer, what, indices)
            self._left -= 1
            for buffer, before in self._buffers:
                buffer.copy_(before)
            for optimizer in trainer.optimizers:  # of batches that are still accumulated
                optimizer.zero_grad()
            files = _files(trainer, indices)
            log.warning("loss is not a number and is left out, %d more may be: %s: %s", self._left, what, files)

    def _settle(self, trainer: Trainer) -> None:
        """Ask about the batch before, whose answer has come by now."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            answer, copied, what, indices = waiting
            copied.synchronize()
            if answer.item():
                raise self._bad_loss(trainer, what, indices)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let no weights into a checkpoint that a bad loss has spoiled, or a bad gradient of a good loss."""
        self._settle(trainer)
        bad = [~p.detach().isfinite().all() for p in pl_module.parameters() if not isinstance(p, DTensor)]
        if bad and torch.stack(bad).any().item():
            what = f"weights are NaN or infinite at step {trainer.global_step}, though no loss was"
            raise self._error(trainer, what)

    def state_dict(self) -> dict[str, Any]:
        """How many batches may still be left out."""
        return {"left": self._left}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with that number."""
        self._left = min(self._most, state_dict["left"])

    def _bad_loss(self, trainer: Trainer, what: str, indices: list[Tensor]) -> TrainingError:
        skipped = f" after {self._most} batches were left out" if self._most else ""
        what = f"the loss is NaN or infinite{skipped}, {what}: {_files(trainer, indices)}"
        leave = "; or callbacks.finite.skip=10 to leave such batches out"
        return self._error(trainer, what, "look at these photos and labels; ", leave)

    def _error(self, trainer: Trainer, what: str, look: str = "", leave: str = "") -> TrainingError:
        last = next((c.path for c in trainer.callbacks if isinstance(c, LastCheckpoint)), None)  # type: ignore[attr-defined]
        return TrainingError(
            f"{what}. The last good checkpoint is {last}. Fix: {look}a lower optimizer.lr, trainer.gradient_clip_val=1 "
            f"or trainer.precision=32-true{leave}"
        )


def _files(trainer: Trainer, indices: list[Tensor]) -> str:
    samples = cast(SegmentationDataModule, trainer.datamodule).samples("train")  # type: ignore[attr-defined]
    return ", ".join(str(samples.photo(index)) for index in torch.cat(indices).tolist())
