"""The metric that collects the confusion matrix of a split; :mod:`cityseg.scores` makes figures of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from cityseg.errors import DataError
from cityseg.labels import VOID


class SegmentationMetrics(MulticlassJaccardIndex):
    """Collects the confusion matrix of a split; :meth:`compute` is the mIoU of torchmetrics.

    Only the update differs from the parent: it takes train ids as uint8, counts without a mask that changes
    size, and stays fast with deterministic algorithms, where the parent compares every pixel with every cell
    of the matrix.

    Attributes:
        confmat: ``(C, C)`` int64, rows truth, columns prediction; summed over processes.

    >>> metric = SegmentationMetrics(2)
    >>> metric.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 255]]]))
    >>> metric.confmat.tolist(), metric.compute().item()
    ([[1, 0], [0, 1]], 1.0)
    """

    ignore_index: int

    def __init__(
        self, num_classes: int, *, ignore_index: int = VOID, validate_args: bool = False, **kwargs: Any
    ) -> None:
        """Start with an empty matrix.

        Args:
            num_classes: number of classes, ``C``.
            ignore_index: the train id of void pixels in the target.
            validate_args: check every update's shapes and train ids. This waits for the device.
            kwargs: options of ``torchmetrics.Metric``.
        """
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False, **kwargs)
        self.validate_args = validate_args

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            preds: train ids ``(B, H, W)``, any integer dtype, or logits ``(B, C, H, W)``.
            target: train ids ``(B, H, W)``, any integer dtype.

        Raises:
            DataError: with ``validate_args``, if the shapes do not fit or a train id is out of range.
        """
        if preds.ndim == target.ndim + 1:
            preds = preds.argmax(dim=1)
        if self.validate_args:
            self._validate(preds, target)
        cells = self.num_classes**2
        # In 32 bits and in place: most of the time goes into moving the index through memory.
        index = target.to(torch.int32, copy=True)
        if self.ignore_index < self.num_classes:
            index.masked_fill_(target.eq(self.ignore_index), self.num_classes)
        # Void is counted in cells past the end: dropping it by a mask would wait for the device.
        counts = torch.bincount(index.mul_(self.num_classes).add_(preds.to(torch.int32)).flatten(), minlength=cells)[
            :cells
        ]
        self.confmat += counts.view(self.num_classes, self.num_classes)

    def _validate(self, preds: Tensor, target: Tensor) -> None:
        if preds.shape != target.shape or preds.is_floating_point() or target.is_floating_point():
            raise DataError(
                f"found predictions {tuple(preds.shape)} {preds.dtype} and target {tuple(target.shape)} "
                f"{target.dtype}, expected train ids (B, H, W) or logits (B, {self.num_classes}, H, W), and "
                "train ids (B, H, W)"
            )
        for what, ids in (("target", target[target != self.ignore_index]), ("prediction", preds)):
            found = torch.unique(ids).tolist()
            if wrong := [value for value in found if not 0 <= value < self.num_classes]:
                raise DataError(
                    f"{what}: found train ids {wrong[:10]}, expected 0 to {self.num_classes - 1} "
                    f"(void is {self.ignore_index}). Label ids instead of train ids?"
                )
