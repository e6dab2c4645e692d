"""What every task shares: validation, test and prediction on whole images, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from cityseg.calibration import Calibration
from cityseg.data.loading import Batch
from cityseg.inference import Inference, Size
from cityseg.labels import LabelSpace
from cityseg.metrics import SegmentationMetrics
from cityseg.models.network import count_parameters
from cityseg.scores import Scores, scores_from_confusion

OptimizerFactory = Callable[[Iterable[nn.Parameter] | Iterable[dict[str, Any]]], Optimizer]
Stage = Literal["val", "test"]
FIGURES: tuple[Literal["miou", "mpa", "pixel_accuracy", "dice"], ...] = ("miou", "mpa", "pixel_accuracy", "dice")
WHOLE = Inference()
SHARDED = 1_000_000
"""Weights of a block from which on it is fetched and given back by itself."""


class Task(pl.LightningModule):
    """Evaluation of a segmentation network; subclasses say how it is trained.

    Args:
        network: photos ``(B, 3, H, W)`` uint8 -> logits ``(B, C, H, W)``.
        loss: logits and train ids ``(B, H, W)`` -> scalar.
        label_space: the classes.

    Attributes:
        inference: how test and prediction put photos through the network; validation takes them whole.
        calibration: collects the confidences of a test; None to do without.
    """

    logged: tuple[str, ...] = ("train/loss", "val/loss", *(f"val/{name}" for name in FIGURES))
    """Every figure an epoch ends with: what a checkpoint, a scheduler or early stopping can monitor."""

    manual: ClassVar[bool] = False
    """Whether the task steps its optimizers itself; then it clips and accumulates itself too."""

    def __init__(self, network: nn.Module, loss: nn.Module, label_space: LabelSpace) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.label_space = label_space
        self.scores: Scores | None = None
        self.inference = WHOLE
        self.calibration: Calibration | None = None
        classes, void = label_space.num_classes, label_space.ignore_index
        self._metrics = nn.ModuleDict({s: SegmentationMetrics(classes, ignore_index=void) for s in get_args(Stage)})
        # The trainer's own mean over processes rounds the images of each to a whole number.
        self._losses = nn.ModuleDict({stage: MeanMetric(nan_strategy="disable") for stage in get_args(Stage)})

    def configure_model(self) -> None:
        """Share the network out among processes, with ``trainer=fsdp``: blocks of a million weights, and the rest."""
        if self.device_mesh is None or isinstance(self.network, FSDPModule):
            return
        self.network.to(memory_format=torch.contiguous_format)  # FSDP takes no other
        blocks = [m for m in self.network.modules() if any(m.children()) and not isinstance(m, nn.ModuleList)]
        for block in reversed(blocks):  # parts before the whole, which is the first
            own = sum(p.numel() for p in block.parameters() if not isinstance(p, DTensor))
            if own >= SHARDED or block is self.network:
                fully_shard(block, mesh=self.device_mesh)
        if hasattr(self.network, "forward_auxiliary"):
            register_fsdp_forward_method(self.network, "forward_auxiliary")

    @property
    def accumulating(self) -> bool:
        """Whether batches are held back for a step that is still to come, and which a checkpoint would lose."""
        return False

    def forward(self, photo: Tensor) -> Tensor:
        """Logits ``(B, C, H, W)`` of photos ``(B, 3, H, W)`` uint8."""
        return cast(Tensor, self.network(photo))

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Score one batch; returns predicted train ids ``(B, H, W)`` uint8 for callbacks."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Score one batch; returns predicted train ids ``(B, H, W)`` uint8 for callbacks."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predicted train ids ``(B, H, W)`` uint8."""
        return self._whole_logits(batch, self.inference).argmax(dim=1).to(torch.uint8)

    def parameters_by_part(self) -> dict[str, int]:
        """Parameter counts for the summary."""
        return count_parameters(self.network)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures ``(B, 1 or 3, h, w)`` in 0..1 that show what this task does with a batch, beside its predictions."""
        return {}

    def on_validation_start(self) -> None:
        """Let every process validate what the first would save: until now batch-norm statistics are its own.

        Each keeps all weights meanwhile: processes have different numbers of images, and could not take turns.
        """
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, src=0)
        self._gather(whole=True)

    def on_validation_end(self) -> None:
        """Go back to a share of the weights in each process."""
        self._gather(whole=False)

    def _gather(self, *, whole: bool) -> None:
        for part in self.network.modules():
            if isinstance(part, FSDPModule):
                part.set_reshard_after_forward(not whole, recurse=False)
                part.unshard() if whole else part.reshard()

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the epoch."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Keep the final scores."""
        self._finish("test")

    def _whole_logits(self, batch: Batch, inference: Inference = WHOLE) -> Tensor:
        """Logits at the size of the target or, without one, of the photo in its file."""
        # A batch holds one size.
        size = batch["target"].shape[-2:] if "target" in batch else batch["size"][0].tolist()
        return inference(self.network, batch["photo"], cast(Size, tuple(size)))

    def _evaluate(self, batch: Batch, stage: Stage) -> Tensor:
        logits = self._whole_logits(batch, self.inference if stage == "test" else WHOLE)
        target = batch.get("target")
        if target is not None:
            mean = cast(MeanMetric, self._losses[stage])
            mean.update(self.loss(logits, target), weight=len(target))
            self.log(f"{stage}/loss", mean, on_epoch=True, on_step=False, batch_size=len(target))
        prediction = logits.max(dim=1).indices.to(torch.uint8)  # argmax takes a quarter longer
        if target is not None:
            cast(SegmentationMetrics, self._metrics[stage]).update(prediction, target)
            if stage == "test" and self.calibration is not None:
                self.calibration.update(logits, prediction, target)
        return prediction

    def _finish(self, stage: Stage) -> None:
        metric = cast(SegmentationMetrics, self._metrics[stage])
        if metric.update_count == 0:  # a split without labels
            self.scores = None
            return
        with metric.sync_context():
            confusion = metric.confmat.cpu().numpy().astype(np.int64)
        metric.reset()
        scores = self.scores = scores_from_confusion(confusion, self.label_space)
        figures = {key: scores[key] for key in FIGURES}
        for key, value in figures.items():
            # A split without one valid pixel has no score; NaN is what a logger can take for it.
            figure = float("nan") if value is None else value
            self.log(f"{stage}/{key}", figure, prog_bar=key == "miou", sync_dist=True)
        if stage == "val":
            ious = {f"per-class/{name}": row["iou"] for name, row in scores["per_class"].items()}
            self.log_dict({tag: iou for tag, iou in ious.items() if iou is not None}, sync_dist=True)


def optimizer_steps(trainer: pl.Trainer) -> tuple[int, int]:
    """Optimizer steps of the whole run and of one epoch, accumulation counted in."""
    total = int(trainer.estimated_stepping_batches)
    epochs = max(trainer.max_epochs or 1, 1)
    return total, max(total // epochs, 1)
