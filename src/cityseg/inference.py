"""From a network and photos to class scores of every pixel: whole or by windows, with test-time augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from cityseg.errors import ConfigError

Size = tuple[int, int]
Blending = Literal["gaussian", "flat"]
WINDOW_BATCH = 4
"""Windows that go through a network at once: the memory of a pass does not grow with the photo."""


class Ensemble(nn.ModuleList):
    """Several networks of the same classes, photos ``(B, 3, H, W)`` -> logits ``(B, C, H, W)``, taken together."""


@dataclass(frozen=True)
class Inference:
    """How photos are put through a network.

    Sizes are ``(height, width)`` in pixels of the photo as it is given; a scaled photo keeps the window's size.

    Attributes:
        window: size of the windows that slide over the photo; None for whole photos. A photo that fits into a window
            is scored whole.
        stride: from window to window, at most the window's; None for two thirds of it. The last window of a row or
            column ends with the photo, so that every pixel is covered.
        blending: weight of a window's logits where windows overlap: all the same, or falling from its middle as a
            Gaussian whose standard deviation is an eighth of the window (Isensee et al., nnU-Net, Nature Methods 2021).
        scales: each scale of the photo is scored, and the probabilities are averaged.
        flip: each scale is scored mirrored too.
        buffer: device of the scores, and of the one float32 buffer ``(B, C, H, W)`` that the logits of windows are
            summed in; None for the photos'.

    """

    window: Size | None = None
    stride: Size | None = None
    blending: Blending = "gaussian"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    buffer: torch.device | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError if windows would leave gaps, or a setting has no meaning."""
        if self.blending not in get_args(Blending):
            raise ConfigError(f"blending: found {self.blending!r}, expected one of {', '.join(get_args(Blending))}")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ConfigError(f"scales: found {list(self.scales)}, expected one or more numbers above 0")
        if self.window is None:
            if self.stride is not None:
                raise ConfigError(f"stride: found {_shown(self.stride)} without a window. Fix: inference=sliding")
        elif min(self.window) < 1:
            raise ConfigError(f"window: found {_shown(self.window)}, expected 1 pixel or more a side")
        elif any(not 1 <= step <= side for step, side in zip(self._steps(self.window), self.window, strict=True)):
            raise ConfigError(
                f"stride: found {_shown(self._steps(self.window))} with windows of {_shown(self.window)}, expected 1 "
                "pixel or more and at most the window: pixels between windows would have no score"
            )

    def __call__(self, network: nn.Module, photos: Tensor, size: Size | None = None) -> Tensor:
        """Score every pixel for every class. Gradients are the caller's to switch off.

        Args:
            network: photos ``(B, 3, H, W)`` -> logits ``(B, C, H, W)``, on their device; or an :class:`Ensemble`.
            photos: ``(B, 3, H, W)`` RGB, uint8 or float, 0 to 255 in both.
            size: height and width that logits are interpolated to; None for the photos'.

        Returns:
            ``(B, C, height, width)`` whose softmax are the probabilities: logits or, where probabilities are averaged,
            the logs of their means in float32.
        """
        size = (photos.shape[-2], photos.shape[-1]) if size is None else size
        members = list(network) if isinstance(network, Ensemble) else [network]
        views = list(product(members, self.scales, (False, True) if self.flip else (False,)))
        if len(views) == 1:
            return self._view(*views[0], photos, size)
        return _log_mean((self._view(*view, photos, size) for view in views), len(views))

    def network_sizes(self, height: int, width: int) -> list[Size]:
        """The sizes that a network is asked to score for a photo of this size, so that they can be checked before."""
        scaled = [(_scaled(height, scale), _scaled(width, scale)) for scale in self.scales]
        return [size if self.window is None else _fit(self.window, size) for size in scaled]

    def __str__(self) -> str:
        """What is done, in words: ``sliding window 512x512, stride 341, Gaussian; flip``; empty for whole photos."""
        parts = []
        if self.window is not None:
            rows, columns = self._steps(self.window)
            stride = str(rows) if rows == columns else _shown((rows, columns))
            blending = "Gaussian" if self.blending == "gaussian" else "flat"
            parts.append(f"sliding window {_shown(self.window)}, stride {stride}, {blending}")
        if self.scales != (1.0,):
            parts.append(f"scales {', '.join(f'{scale:g}' for scale in self.scales)}")
        return "; ".join([*parts, "flip"] if self.flip else parts)

    def _steps(self, window: Size) -> Size:
        return self.stride or (max(window[0] * 2 // 3, 1), max(window[1] * 2 // 3, 1))

    def _view(self, network: nn.Module, scale: float, mirrored: bool, photos: Tensor, size: Size) -> Tensor:
        """Logits ``(B, C, *size)`` of photos that are scaled and mirrored on the way."""
        if scale != 1:
            wanted = _scaled(photos.shape[-2], scale), _scaled(photos.shape[-1], scale)
            photos = functional.interpolate(photos.float(), wanted, mode="bilinear", antialias=scale < 1)
        logits = self._plain(network, photos.flip(-1) if mirrored else photos)
        if mirrored:
            logits = logits.flip(-1)
        if logits.shape[-2:] != size:
            logits = functional.interpolate(logits, size, mode="bilinear")
        return logits

    def _plain(self, network: nn.Module, photos: Tensor) -> Tensor:
        height, width = photos.shape[-2:]
        if self.window is None or _fit(self.window, (height, width)) == (height, width):
            return cast(Tensor, network(photos)).to(self.buffer)
        rows, columns = _fit(self.window, (height, width))
        down, across = self._steps(self.window)
        places = list(product(range(len(photos)), _starts(height, rows, down), _starts(width, columns, across)))
        device = self.buffer or photos.device
        weight = _weight(rows, columns, self.blending).to(device)
        total, weights = torch.empty(0), torch.zeros(height, width, device=device)
        for start in range(0, len(places), WINDOW_BATCH):
            chosen = places[start : start + WINDOW_BATCH]
            crops = torch.stack([photos[i, :, y : y + rows, x : x + columns] for i, y, x in chosen])
            scored = network(crops).to(device)
            if start == 0:
                total = torch.zeros(len(photos), scored.shape[1], height, width, device=device)
            for (i, y, x), logits in zip(chosen, scored, strict=True):
                total[i, :, y : y + rows, x : x + columns].addcmul_(logits.float(), weight)
                if i == 0:
                    weights[y : y + rows, x : x + columns] += weight
        return total.div_(weights)


def _fit(window: Size, size: Size) -> Size:
    return min(window[0], size[0]), min(window[1], size[1])


def _scaled(length: int, scale: float) -> int:
    return max(round(length * scale), 1)


def _starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last one ends with it.

    >>> _starts(10, 4, 3), _starts(11, 4, 3), _starts(4, 4, 3)
    ([0, 3, 6], [0, 3, 6, 7], [0])
    """
    return [*range(0, length - window, stride), length - window]


def _weight(rows: int, columns: int, blending: Blending) -> Tensor:
    """Weight ``(rows, columns)`` float32 of each pixel of a window, above 0 everywhere."""
    if blending == "flat":
        return torch.ones(rows, columns)
    y, x = (torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in (rows, columns))
    return torch.outer(y, x)


def _log_mean(views: Iterator[Tensor], count: int) -> Tensor:
    """Log of the mean of the probabilities of `count` logits ``(B, C, H, W)``, which are summed as they come."""
    total = next(views).float().softmax(dim=1)
    for logits in views:
        total += logits.float().softmax(dim=1)
    # A probability that float32 rounds to 0 would make a loss of infinity.
    return total.div_(count).clamp_(min=torch.finfo(total.dtype).tiny).log_()


def _shown(size: Size) -> str:
    """A size as people write it, width first."""
    return f"{size[1]}x{size[0]}"
