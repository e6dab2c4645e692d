"""Means, intervals and tests over folds and images, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from scipy import special  # type: ignore[import-untyped]

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
_CHUNK = 200  # resamples drawn at once: with 3,000 images, 5 MB of weights
_NO_SPREAD = 1e-12  # a standard deviation that is rounding


class Spread(TypedDict):
    """Mean of some folds and how far they lie apart; fractions, None where too few folds have a value."""

    mean: float | None
    std: float | None
    interval: list[float] | None
    folds: int


class PairedTest(TypedDict):
    """A paired test over folds; None where there are too few folds, or no spread to test against."""

    mean: float | None
    std: float | None
    interval: list[float] | None
    t: float | None
    df: int
    p: float | None


def spread(values: Iterable[float | None]) -> Spread:
    """Mean, standard deviation (``ddof=1``) and Student's 95 % interval of the mean.

    The interval takes the values for independent. Folds share training data, so it is narrower than it should be. A
    fold's value may be None: it is left out.
    """
    present = np.array([value for value in values if value is not None], np.float64)
    folds = present.size
    if folds < 2:
        return {"mean": float(present[0]) if folds else None, "std": None, "interval": None, "folds": folds}
    mean, std = float(present.mean()), float(present.std(ddof=1))
    return {"mean": mean, "std": std, "interval": _t_interval(mean, std / math.sqrt(folds), folds - 1), "folds": folds}


def corrected_t_test(differences: Sequence[float], test_train_ratio: float) -> PairedTest:
    """Corrected resampled t-test of paired differences against 0, two-sided.

    The variance of the mean of ``J`` differences is ``(1 / J + n_test / n_train)`` times their own, since the folds'
    training sets overlap (Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52, 2003,
    section 3); ``J - 1`` degrees of freedom. For repeated folds ``J`` counts them all (Bouckaert and Frank, 2004).

    Args:
        differences: score of one model minus the other's, one for each fold.
        test_train_ratio: ``n_test / n_train``, images of a fold's held-out part over those it trained on.
    """
    found, df = spread(differences), max(len(differences) - 1, 0)
    mean, std = found["mean"], found["std"]
    if mean is None or std is None or std < _NO_SPREAD:
        return {"mean": mean, "std": std, "interval": None, "t": None, "df": df, "p": None}
    error = std * math.sqrt(1 / len(differences) + test_train_ratio)
    t = mean / error
    p = 2 * float(special.stdtr(df, -abs(t)))
    return {"mean": mean, "std": std, "interval": _t_interval(mean, error, df), "t": t, "df": df, "p": p}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number (Holm, A simple sequentially rejective multiple test procedure, 1979).

    None is no test: it stays None and does not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected


def mean_iou(counts: npt.NDArray[np.generic]) -> FloatArray:
    """The mIoU of pixel counts; classes that occur neither in truth nor in prediction are left out.

    Args:
        counts: ``(..., 3, C)``: hit, true and predicted pixels of each class.

    Returns:
        ``(...)`` float64, NaN where no class occurs.
    """
    hits, truth, predicted = np.moveaxis(counts.astype(np.float64), -2, 0)
    union = truth + predicted - hits
    iou = np.divide(hits, union, out=np.zeros_like(union), where=union > 0)
    classes = (union > 0).sum(axis=-1)
    miou = np.full(classes.shape, np.nan)
    np.divide(iou.sum(axis=-1), classes, out=miou, where=classes > 0)
    return miou


def bootstrap_mean_iou(
    models: Sequence[npt.NDArray[np.int64]], *, resamples: int = RESAMPLES, seed: int = 0
) -> FloatArray:
    """The mIoU of resampled sets of images, drawn with replacement; every model gets the same images.

    Args:
        models: for each model ``(N, 3, C)`` pixel counts of the same ``N`` images in the same order.
        resamples: number of sets, ``R``.
        seed: of the draws.

    Returns:
        ``(models, R)``; the pixels of a set are pooled before the mIoU is taken, as for the whole split.
    """
    generator = np.random.default_rng(seed)
    images = len(models[0])
    drawn = [np.empty((len(models), 0))]
    for start in range(0, resamples, _CHUNK):
        sets = min(_CHUNK, resamples - start)
        picks = generator.integers(images, size=(sets, images)) + images * np.arange(sets)[:, None]
        weights = np.bincount(picks.ravel(), minlength=sets * images).reshape(sets, images).astype(np.float64)
        # In float64 the sums are exact, and a matrix product of integers would be slow.
        pooled = [(weights @ counts.reshape(images, -1)).reshape(sets, *counts.shape[1:]) for counts in models]
        drawn.append(np.stack([mean_iou(counts) for counts in pooled]))
    return np.concatenate(drawn, axis=1)


def percentile_interval(samples: FloatArray) -> list[float] | None:
    """The middle 95 % of bootstrap samples ``(R,)``; NaN, from sets without a valid pixel, is left out."""
    present = samples[~np.isnan(samples)]
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(present, [tail, 1 - tail]).tolist() if present.size else None


def _t_interval(mean: float, error: float, df: int) -> list[float]:
    half = error * float(special.stdtrit(df, (1 + CONFIDENCE) / 2))
    return [mean - half, mean + half]
