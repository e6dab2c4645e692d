"""How many pixels of each class the training images have, and what sampling and losses make of it."""

from __future__ import annotations

import hashlib
import logging
import pickle
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cityseg.data.samples import in_threads
from cityseg.errors import ConfigError, DataError, WriteError, did_you_mean
from cityseg.files import fresh_file

if TYPE_CHECKING:  # the data module itself samples by these counts
    from cityseg.data.datamodule import SegmentationDataModule

log = logging.getLogger(__name__)

CLASS_WEIGHT_SCHEMES = ("none", "inverse_frequency", "enet", "median_frequency")


def image_class_pixels(data: SegmentationDataModule) -> npt.NDArray[np.int32]:
    """Pixels ``(N, C)`` int32 of each class in each training image, void left out.

    They are counted at the files' resolution, whatever ``data.scale`` is, and kept in the cache folder under a key of
    the files (name, size, time) and how they are decoded.
    """
    samples, classes = data.samples("train"), data.label_space.num_classes
    key = hashlib.sha256(pickle.dumps(data.reader) + samples.fingerprint(samples.label).encode()).hexdigest()[:32]
    kept = data.cache_dir / "class-pixels" / f"{key}.npy"
    if kept.is_file():
        try:
            found = np.load(kept, allow_pickle=False)
            if found.shape == (len(samples), classes):
                return np.asarray(found, np.int32)
        except (EOFError, ValueError) as error:
            log.warning("%s: %s", kept, error)
        log.warning("%s is damaged and is made anew", kept)

    def count(index: int) -> npt.NDArray[np.int64]:
        label = samples.label(index)
        assert label is not None
        return np.bincount(data.reader.target(label).ravel(), minlength=256)[:classes]

    log.info("counting the class pixels of %d training labels", len(samples))
    counts = np.zeros((len(samples), classes), np.int32)
    for index, found in enumerate(in_threads(count, range(len(samples)))):
        counts[index] = found
    try:
        with fresh_file(kept) as fresh:
            np.save(fresh, counts)
    except WriteError as error:  # what they are kept for is time alone
        log.warning("%s. Without it they are counted again by the next run", error)
    return counts


def class_balanced_probabilities(pixels: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Probability ``(N,)`` of each image, from the pixels ``(N, C)`` of each class, that aims at all classes alike.

    To draw an image is to choose a class that occurs, then one of its images, both uniformly. A class occurs in an
    image from its first pixel on. An image without any valid pixel is never drawn.

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


def class_weights_from_counts(counts: Tensor | npt.NDArray[np.int64], scheme: str) -> Tensor:
    """How much each class counts in a loss, ``(C,)`` float32, from its training pixels ``(C,)``, void left out.

    With p the class's share of the pixels, the schemes are

    - ``none``: 1 for every class;
    - ``inverse_frequency``: ``1 / p``, scaled so that the mean over the classes that occur is 1;
    - ``enet``: ``1 / ln(1.02 + p)`` (Paszke et al., ENet, 2016, https://arxiv.org/abs/1606.02147);
    - ``median_frequency``: ``median(p) / p`` (Eigen and Fergus, ICCV 2015, https://arxiv.org/abs/1411.4734, whose p is
      the share of the images that contain the class).

    A class that never occurs gets weight 0 in all but ``none``: any finite guess would be arbitrary. In validation its
    pixels do not count in the loss (they do count in the scores).

    Raises:
        ConfigError: if there is no scheme of that name, or the counts are negative or all zero.
    """
    if scheme not in CLASS_WEIGHT_SCHEMES:
        expected = f"{', '.join(CLASS_WEIGHT_SCHEMES)}.{did_you_mean(scheme, CLASS_WEIGHT_SCHEMES)}"
        raise ConfigError(f"no class weight scheme {scheme!r}: expected one of {expected}")
    pixels = torch.as_tensor(counts, dtype=torch.float64)
    if scheme == "none":
        return torch.ones_like(pixels, dtype=torch.float32)
    if bool((pixels < 0).any()) or not bool(pixels.sum() > 0):
        raise ConfigError(
            f"class_weights={scheme}: found pixel counts {pixels.long().tolist()}, expected none below 0 "
            "and one above. Fix: use class_weights=none, or check the labels of the training split"
        )
    share = pixels / pixels.sum()
    occurs = share > 0
    known = share[occurs]
    weights = torch.zeros_like(share)
    if scheme == "inverse_frequency":
        weights[occurs] = 1 / known / (1 / known).mean()
    elif scheme == "enet":
        weights[occurs] = 1 / torch.log(1.02 + known)
    else:
        weights[occurs] = torch.quantile(known, 0.5) / known
    return weights.float()
