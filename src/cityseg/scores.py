"""The scores of one confusion matrix, the Cityscapes way; without torch, so that summaries and pages start quickly.

The conventions are those of ``cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling``: one matrix over
a whole split, void pixels of the truth left out, a class that occurs neither in truth nor in prediction left
out of the means.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from cityseg.errors import ConfigError
from cityseg.labels import LabelSpace

CountArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class ClassScores(TypedDict):
    """Scores of one class as fractions; ``None`` where the class does not occur."""

    iou: float | None
    accuracy: float | None
    dice: float | None
    pixels: int


class Scores(TypedDict):
    """What :func:`scores_from_confusion` gives; fractions, ``None`` where nothing was there to score."""

    miou: float | None
    mpa: float | None
    pixel_accuracy: float | None
    fwiou: float | None
    dice: float | None
    category_miou: NotRequired[float | None]
    category_iou: NotRequired[dict[str, float | None]]
    per_class: dict[str, ClassScores]
    confusion_matrix: list[list[int]]


def scores_from_confusion(confusion: CountArray, label_space: LabelSpace) -> Scores:
    """All scores of a split, ready for JSON, in float64 from integer counts.

    A class with neither true nor predicted pixels has no IoU (``None``) and is left out of the means. A class
    that is predicted but never true has IoU 0, which counts, and no accuracy. Category scores merge the rows
    and columns of a category's classes first, so confusing two classes of one category is no error there;
    they are given only if the label space has categories.

    Args:
        confusion: ``(C, C)`` int64 pixel counts, rows truth, columns prediction, void left out.
        label_space: the classes, in the order of the matrix.

    Returns:
        ``mpa`` is the mean class accuracy over the classes with true pixels, ``fwiou`` the IoU weighted by each
        class's share of the true pixels, ``dice`` the mean over the classes that occur.

    Raises:
        ConfigError: if the matrix is not one row and one column for each class.
    """
    classes = label_space.num_classes
    if confusion.shape != (classes, classes):
        expected = f"{(classes, classes)} for label space {label_space.name!r}"
        raise ConfigError(f"found a confusion matrix {confusion.shape}, expected {expected}")
    hits, truth, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    iou, accuracy, dice = _iou(confusion), _divide(hits, truth), _divide(2 * hits, truth + predicted)
    total = truth.sum()
    scores: Scores = {
        "miou": mean(iou),
        "mpa": mean(accuracy),
        "pixel_accuracy": float(hits.sum() / total) if total else None,
        "fwiou": float((truth[truth > 0] * iou[truth > 0]).sum() / total) if total else None,
        "dice": mean(dice),
        "per_class": {
            name: {"iou": number(i), "accuracy": number(a), "dice": number(d), "pixels": int(pixels)}
            for name, i, a, d, pixels in zip(label_space.class_names, iou, accuracy, dice, truth, strict=True)
        },
        "confusion_matrix": confusion.tolist(),
    }
    if label_space.categories:
        names = list(dict.fromkeys(label_space.categories))
        member = np.array([[category == name for name in names] for category in label_space.categories], np.int64)
        category_iou = _iou(member.T @ confusion @ member)
        scores["category_iou"] = {name: number(value) for name, value in zip(names, category_iou, strict=True)}
        scores["category_miou"] = mean(category_iou)
    return scores


def _iou(confusion: CountArray) -> FloatArray:
    hits = confusion.diagonal()
    return _divide(hits, confusion.sum(axis=0) + confusion.sum(axis=1) - hits)


def _divide(part: CountArray, whole: CountArray) -> FloatArray:
    """``part / whole`` in float64, NaN where ``whole`` is 0."""
    quotient = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=quotient, where=whole > 0)
    return quotient


def mean(values: FloatArray) -> float | None:
    """The mean over the classes that have a score; None if none has."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else None


def number(value: float) -> float | None:
    """A score for JSON: None in place of NaN."""
    return None if np.isnan(value) else float(value)
