"""How well the outlines of classes are met: boundary IoU and boundary F1 of each class.

Both look only at pixels near outlines, so that they tell a sharp prediction from a blurred one where mIoU hardly does.
Distances are counted as a king moves on a chessboard, and counts are summed over a split, as for mIoU. Void pixels of
the truth are void in the prediction too.

Boundary IoU (Cheng et al., Boundary IoU, CVPR 2021, equation 2): the IoU of the two masks of a class, each cut down to
its pixels within a distance of its own outline. As in the authors' code an outline runs along the edge of the image
too, and here along void, where a mask is cut off as well.

Boundary F1 (Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013, section 3.1, there
for each image): the outline of a class is its pixels with a pixel of another class beside them. Precision is the share
of the predicted outline within the distance of the true outline of the class, recall the share of the true one within
the distance of the predicted one. Edges of the image and of void are no outlines: they would be met for nothing.
"""

from __future__ import annotations

from typing import TypedDict

import cv2
import numpy as np
import numpy.typing as npt

from cityseg.errors import ConfigError
from cityseg.labels import VOID, ByteArray
from cityseg.scores import mean, number

BoolArray = npt.NDArray[np.bool_]
_KING = np.ones((3, 3), np.uint8)


class ClassBoundary(TypedDict):
    """Scores of one class as fractions; ``None`` where the class, or its outline, does not occur."""

    iou: float | None
    f1: float | None


class BoundaryScores(TypedDict):
    """What :meth:`Boundaries.scores` gives: means over the classes that have a score, and each class."""

    share_of_diagonal: float
    miou: float | None
    mf1: float | None
    per_class: dict[str, ClassBoundary]


class Boundaries:
    """Counts the pixels near the outlines of a split.

    Args:
        class_names: one for each train id.
        share: the distance as a share of the image's diagonal, rounded, at least one pixel: 0.005 is 11 pixels at
            2048x1024.
        ignore_index: the train id of void pixels in the target.

    Raises:
        ConfigError: if the share is not above 0 and below 1.
    """

    def __init__(self, class_names: tuple[str, ...], share: float, *, ignore_index: int = VOID) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"boundary: found {share}, expected a share of the diagonal such as 0.005")
        self._names, self._share, self._ignore_index = class_names, share, ignore_index
        # Pixels of each class: in both bands, the true one, the predicted one; of the true outline, the predicted one;
        # of the predicted outline near the true one, and vice versa.
        self._counts = np.zeros((7, len(class_names)), np.int64)

    def update(self, prediction: ByteArray, target: ByteArray) -> None:
        """Count the pixels of one image; both are train ids, ``(H, W)`` uint8."""
        void = target == self._ignore_index
        distance = max(round(self._share * float(np.hypot(*target.shape))), 1)
        kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
        maps = [np.where(void, np.uint8(VOID), labels) for labels in (target, prediction)]
        bands = [np.where(_band(labels, kernel), labels, np.uint8(VOID)) for labels in maps]
        lines = [np.where(_outline(labels), labels, np.uint8(VOID)) for labels in maps]
        chosen = (bands[0][bands[0] == bands[1]], *bands, *lines)
        counts = [np.bincount(labels.ravel(), minlength=256)[: len(self._names)] for labels in chosen]
        self._counts[:5] += counts
        for train_id in np.flatnonzero(counts[3] * counts[4]):
            true, predicted = ((line == train_id).astype(np.uint8) for line in lines)
            self._counts[5, train_id] += np.count_nonzero(predicted & cv2.dilate(true, kernel))
            self._counts[6, train_id] += np.count_nonzero(true & cv2.dilate(predicted, kernel))

    def scores(self) -> BoundaryScores:
        """The scores of everything counted so far."""
        both, true_band, predicted_band, true, predicted, precise, recalled = self._counts.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = both / (true_band + predicted_band - both)
            precision, recall = np.nan_to_num(precise / predicted), np.nan_to_num(recalled / true)
            f1 = np.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0.0)
        f1[predicted + true == 0] = np.nan
        return {
            "share_of_diagonal": self._share,
            "miou": mean(iou),
            "mf1": mean(f1),
            "per_class": {name: {"iou": number(iou[i]), "f1": number(f1[i])} for i, name in enumerate(self._names)},
        }


def _band(labels: ByteArray, kernel: ByteArray) -> BoolArray:
    """Pixels with another class, void or the edge under the kernel: all classes at once, ``(H, W)``."""
    padded = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(VOID,))
    differs = (cv2.dilate(padded, kernel) != padded) | (cv2.erode(padded, kernel) != padded)
    return np.asarray(differs[1:-1, 1:-1], np.bool_)


def _outline(labels: ByteArray) -> BoolArray:
    """Pixels beside another class, ``(H, W)``; void and what lies outside the image are neutral."""
    highest = cv2.dilate(np.where(labels == VOID, np.uint8(0), labels), _KING)
    return np.asarray((highest > labels) | (cv2.erode(labels, _KING) < labels), np.bool_)
