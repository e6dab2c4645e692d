"""Class weights: how much a class counts in a loss, from how often it occurs in the training pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cityseg.errors import ConfigError, did_you_mean

CLASS_WEIGHT_SCHEMES = ("none", "inverse_frequency", "enet", "median_frequency")
"""The names that :func:`class_weights_from_counts` knows."""


def class_weights_from_counts(counts: Tensor | npt.NDArray[np.int64], scheme: str) -> Tensor:
    """Class weights from how often each class occurs in the training pixels.

    Args:
        counts: labelled pixels of each class, ``(C,)``, void left out.
        scheme: one of

            - ``none``: 1 for every class;
            - ``inverse_frequency``: ``1 / p``, scaled so that the mean over the classes that occur is 1;
            - ``enet``: ``1 / ln(1.02 + p)`` (Paszke et al., ENet, 2016, https://arxiv.org/abs/1606.02147);
            - ``median_frequency``: ``median(p) / p`` (Eigen and Fergus, ICCV 2015,
              https://arxiv.org/abs/1411.4734). The paper divides by the pixels of the images that contain the
              class; counts do not tell those, so ``p`` is the share of all labelled pixels here as in the
              other schemes.

    Returns:
        ``(C,)`` float32. A class that never occurs gets weight 0 in every scheme but ``none``: its share is
        unknown, and any finite guess would be arbitrary. Nothing is lost in training, where no pixel has that
        class; in validation such pixels do not count in the loss (they do count in the scores).

    Raises:
        ConfigError: if there is no scheme of that name, or the counts are negative or all zero.
    """
    if scheme not in CLASS_WEIGHT_SCHEMES:
        known = ", ".join(CLASS_WEIGHT_SCHEMES)
        hint = did_you_mean(scheme, CLASS_WEIGHT_SCHEMES)
        raise ConfigError(f"no class weight scheme {scheme!r}: expected one of {known}.{hint}")
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
    weights = torch.zeros_like(share)
    if scheme == "inverse_frequency":
        weights[occurs] = 1 / share[occurs]
        weights /= weights[occurs].mean()
    elif scheme == "enet":
        weights[occurs] = 1 / torch.log(1.02 + share[occurs])
    else:
        weights[occurs] = torch.quantile(share[occurs], 0.5) / share[occurs]
    return weights.float()
