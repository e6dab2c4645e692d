"""How many pixels of each class the training images have, counted once and kept; what sampling makes of it."""

from __future__ import annotations

import hashlib
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cityseg.data.samples import Reader, Samples
from cityseg.errors import DataError, WriteError
from cityseg.files import fresh_file
from cityseg.machine import available_cores

if TYPE_CHECKING:  # the data module itself samples by these counts
    from cityseg.data.datamodule import SegmentationDataModule

log = logging.getLogger(__name__)


def image_class_pixels(data: SegmentationDataModule) -> npt.NDArray[np.int32]:
    """Pixels of each class in each training image, void left out.

    They are counted at the files' resolution, whatever ``data.scale`` is, and kept in the cache folder under a key of
    the files (name, size, time) and how they are decoded.

    Returns:
        ``(N, C)`` int32.

    Raises:
        DataError: naming a file that cannot be decoded.
    """
    samples, classes = data.samples("train"), data.label_space.num_classes
    kept = data.cache_dir / "class-pixels" / f"{_key(samples, data.reader)}.npy"
    if kept.is_file():
        try:
            found = np.load(kept, allow_pickle=False)
            if found.shape == (len(samples), classes):
                return np.asarray(found, np.int32)
        except (EOFError, ValueError) as error:
            log.warning("%s: %s", kept, error)
        log.warning("%s is damaged and is made anew", kept)
    counts = np.zeros((len(samples), classes), np.int32)

    def count(index: int) -> None:
        target = data.reader(samples.photo(index), samples.label(index)).target
        assert target is not None
        counts[index] = np.bincount(target.ravel(), minlength=256)[:classes]

    log.info("counting the class pixels of %d training labels", len(samples))
    with ThreadPoolExecutor(max_workers=available_cores()) as pool:
        for _ in pool.map(count, range(len(samples))):
            pass
    try:
        with fresh_file(kept) as fresh:
            np.save(fresh, counts)
    except WriteError as error:  # what they are kept for is time alone
        log.warning("%s. Without it they are counted again by the next run", error)
    return counts


def class_pixel_counts(data: SegmentationDataModule) -> npt.NDArray[np.int64]:
    """Pixels of each class in the training split, void left out.

    Returns:
        ``(C,)`` int64.

    Raises:
        DataError: naming a file that cannot be decoded.
    """
    return np.asarray(image_class_pixels(data).sum(axis=0, dtype=np.int64), np.int64)


def class_balanced_probabilities(pixels: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Probability of each image under which every class that occurs is aimed at equally often.

    To draw an image is to choose a class that occurs, then one of its images, both uniformly. A class occurs in an
    image from its first pixel on. An image without any valid pixel is never drawn.

    Args:
        pixels: ``(N, C)`` of each class in each image.

    Returns:
        ``(N,)`` float64, sum 1.

    Raises:
        DataError: if no image has a pixel of any class.
    """
    present = pixels > 0
    images = present.sum(axis=0)
    if not images.any():
        raise DataError(
            "data.sampling=class_balanced: no training label has a pixel of any class. Fix: check how labels are read"
        )
    return np.asarray((present[:, images > 0] / images[images > 0]).mean(axis=1), np.float64)


def _key(samples: Samples, reader: Reader) -> str:
    digest = hashlib.sha256(pickle.dumps(reader))
    for index in range(len(samples)):
        path = samples.label(index)
        assert path is not None
        stat = path.stat()
        digest.update(f"{path}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
