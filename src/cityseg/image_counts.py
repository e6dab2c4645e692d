"""Pixel counts of every image of a split, in ``per_image.npz``: what a bootstrap over images is drawn from."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cityseg.errors import DataError
from cityseg.files import fresh_file
from cityseg.labels import VOID, ByteArray

IntArray = npt.NDArray[np.int64]

FILE_NAME = "per_image.npz"
"""Lies beside ``metrics.json`` in a run folder."""


@dataclass(frozen=True)
class ImageCounts:
    """Pixel counts of the images of one split."""

    images: tuple[str, ...]  # unique: the photo's path relative to the data root
    class_names: tuple[str, ...]
    counts: IntArray  # (N, 3, C), pixels of each class that are hit, that are true, and that are predicted


def count_pixels(prediction: ByteArray, target: ByteArray, num_classes: int, *, ignore_index: int = VOID) -> IntArray:
    """Hit, true and predicted pixels of each class, ``(B, 3, C)``, of train ids ``(B, H, W)`` uint8, void left out.

    >>> count_pixels(np.array([[[0, 1, 1]]], np.uint8), np.array([[[0, 0, 255]]], np.uint8), 2).tolist()
    [[[1, 0], [2, 0], [1, 1]]]
    """
    counts = np.zeros((len(target), 3, num_classes), np.int64)
    for image, (predicted, true) in enumerate(zip(prediction, target, strict=True)):
        valid = true != ignore_index
        predicted, true = predicted[valid], true[valid]
        for row, pixels in enumerate((true[true == predicted], true, predicted)):
            counts[image, row] = np.bincount(pixels, minlength=num_classes)
    return counts


def write_image_counts(path: Path, found: ImageCounts) -> None:
    """Write ``per_image.npz``."""
    images, names = np.array(found.images, np.str_), np.array(found.class_names, np.str_)
    with fresh_file(path) as fresh:
        np.savez_compressed(fresh, images=images, class_names=names, counts=found.counts)


def read_image_counts(path: Path) -> ImageCounts:
    """Read ``per_image.npz``; nothing in it is executed.

    Raises:
        DataError: if the file is missing or is not what :func:`write_image_counts` writes.
    """
    if not path.is_file():
        raise DataError(f"found no {path}, which scoring a fold writes")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = ImageCounts(tuple(file["images"].tolist()), tuple(file["class_names"].tolist()), file["counts"])
        expected = (len(set(found.images)), 3, len(found.class_names))
        if found.counts.shape != expected:
            raise ValueError(f"found counts {found.counts.shape}, expected {expected}")
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}. Fix: score the fold again") from error
    return found


def merge(parts: Sequence[ImageCounts]) -> IntArray:
    """Counts of the images of several folds, ``(N, 3, C)`` int64, by name; an image in several of them is one sum."""
    unique, place = np.unique(np.concatenate([part.images for part in parts]), return_inverse=True)
    merged = np.zeros((len(unique), *parts[0].counts.shape[1:]), np.int64)
    np.add.at(merged, place, np.concatenate([part.counts for part in parts]))
    return merged
