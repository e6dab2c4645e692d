"""How far a network's confidence can be believed: reliability table and expected calibration error."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from torch import Tensor

from cityseg.labels import VOID

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
        """Start with empty bins."""
        self._ignore_index = ignore_index
        # In float64 on the CPU: sums over a split are exact enough, and the same on every device.
        self._pixels, self._hits, self._confidence = (np.zeros(BINS) for _ in range(3))

    def update(self, logits: Tensor, prediction: Tensor, target: Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            logits: ``(B, C, H, W)`` float.
            prediction: ``(B, H, W)`` train ids, the class of the highest logit.
            target: ``(B, H, W)`` train ids.
        """
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
        return {
            "ece": float(gaps / total) if total else None,
            "reliability": [
                {
                    "above": i / BINS,
                    "to": (i + 1) / BINS,
                    "pixels": int(pixels),
                    "confidence": float(confidence / pixels) if pixels else None,
                    "accuracy": float(hits / pixels) if pixels else None,
                }
                for i, (pixels, hits, confidence) in enumerate(
                    zip(self._pixels, self._hits, self._confidence, strict=True)
                )
            ],
        }
