"""The metric that collects the confusion matrix of a split; :mod:`cityseg.scores` makes figures of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from cityseg.labels import VOID


class SegmentationMetrics(MulticlassJaccardIndex):
    """Collects the confusion matrix of a split; :meth:`compute` is the mIoU of torchmetrics.

    Only the update differs from the parent: it takes train ids as uint8, counts without a mask that changes
    size, and stays fast with deterministic algorithms, where the parent compares every pixel with every cell
    of the matrix.

    Args:
        num_classes: number of classes, ``C``.
        ignore_index: the train id of void pixels in the target.
        kwargs: options of ``torchmetrics.Metric``.

    Attributes:
        confmat: ``(C, C)`` int64, rows truth, columns prediction; summed over processes.

    >>> metric = SegmentationMetrics(2)
    >>> metric.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 255]]]))
    >>> metric.confmat.tolist(), metric.compute().item()
    ([[1, 0], [0, 1]], 1.0)
    """

    ignore_index: int

    def __init__(self, num_classes: int, *, ignore_index: int = VOID, **kwargs: Any) -> None:
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False, **kwargs)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the pixels of a batch; nothing is checked, which would wait for the device.

        Args:
            preds: train ids ``(B, H, W)``, any integer dtype, or logits ``(B, C, H, W)``.
            target: train ids ``(B, H, W)``, any integer dtype.
        """
        if preds.ndim == target.ndim + 1:
            preds = preds.argmax(dim=1)
        cells = self.num_classes**2
        # In 32 bits and in place: most of the time goes into moving the index through memory.
        index = target.to(torch.int32, copy=True)
        if self.ignore_index < self.num_classes:
            index.masked_fill_(target.eq(self.ignore_index), self.num_classes)
        index.mul_(self.num_classes).add_(preds.to(torch.int32))
        # Void is counted in cells past the end: dropping it by a mask would wait for the device.
        counts = torch.bincount(index.flatten(), minlength=cells)[:cells]
        self.confmat += counts.view(self.num_classes, self.num_classes)
