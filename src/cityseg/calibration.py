"""How far a network's confidence can be believed: reliability table and expected calibration error."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from torch import Tensor

from cityseg.labels import VOID
from cityseg.scores import number

BINS = 15


class Bin(TypedDict):
    """One row of the reliability table; ``None`` where no pixel is."""

    above: float
    to: float
    pixels: int
    confidence: float | None
    accuracy: float | None


class CalibrationScores(TypedDict):
    """What :meth:`Calibration.scores` gives; fractions, ``None`` where nothing was there to score."""

    ece: float | None
    reliability: list[Bin]


class Calibration:
    """Counts the pixels of a split by the confidence of their prediction, void left out.

    The confidence of a pixel is the probability of its predicted class. The expected calibration error is the mean
    over pixels of the gap between confidence and accuracy of their bin, with 15 bins of equal width (Guo et al., On
    calibration of modern neural networks, ICML 2017, section 2).

    Args:
        ignore_index: the train id of void pixels in the target.
    """

    def __init__(self, *, ignore_index: int = VOID) -> None:
        self._ignore_index = ignore_index
        # In float64 on the CPU: sums over a split are exact enough, and the same on every device.
        self._pixels, self._hits, self._confidence = (np.zeros(BINS) for _ in range(3))

    def update(self, logits: Tensor, prediction: Tensor, target: Tensor) -> None:
        """Count a batch: logits ``(B, C, H, W)``, the train ids ``(B, H, W)`` of the highest, and the true ones."""
        logits = logits.detach().float()
        valid = target != self._ignore_index
        confidence = (logits.amax(dim=1) - logits.logsumexp(dim=1)).exp()[valid].cpu().numpy()
        hits = (prediction == target)[valid].cpu().numpy()
        bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self._pixels += np.bincount(bins, minlength=BINS)
        self._hits += np.bincount(bins, hits, minlength=BINS)
        self._confidence += np.bincount(bins, confidence, minlength=BINS)

    def scores(self) -> CalibrationScores:
        """The expected calibration error and the table it is computed from."""
        total = self._pixels.sum()
        gaps = np.abs(self._confidence - self._hits).sum()
        with np.errstate(invalid="ignore"):
            confidence, accuracy = self._confidence / self._pixels, self._hits / self._pixels
        table: list[Bin] = [
            {
                "above": i / BINS,
                "to": (i + 1) / BINS,
                "pixels": int(self._pixels[i]),
                "confidence": number(confidence[i]),
                "accuracy": number(accuracy[i]),
            }
            for i in range(BINS)
        ]
        return {"ece": float(gaps / total) if total else None, "reliability": table}
