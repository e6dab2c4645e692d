"""From a network and photos to class scores of every pixel: whole or by windows, with test-time augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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


class Ensemble(nn.Module):
    """Several networks of the same classes; their probabilities are averaged.

    Args:
        members: networks, photos ``(B, 3, H, W)`` -> logits ``(B, C, H, W)``.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, photos: Tensor) -> Tensor:
        """Logs of the mean probabilities ``(B, C, H, W)`` float32 of photos ``(B, 3, H, W)``."""
        return _log_mean((member(photos) for member in self.members), len(self.members))


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
        """Check the settings.

        Raises:
            ConfigError: if windows would leave gaps, or a setting has no meaning.
        """
        if self.blending not in get_args(Blending):
            raise ConfigError(f"blending: found {self.blending!r}, expected one of {', '.join(get_args(Blending))}")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ConfigError(f"scales: found {list(self.scales)}, expected one or more numbers above 0")
        if self.window is None:
            if self.stride is not None:
                raise ConfigError(f"stride: found {_shown(self.stride)} without a window. Fix: inference=sliding")
            return
        if min(self.window) < 1:
            raise ConfigError(f"window: found {_shown(self.window)}, expected 1 pixel or more a side")
        if any(not 1 <= step <= side for step, side in zip(self._stride, self.window, strict=True)):
            raise ConfigError(
                f"stride: found {_shown(self._stride)} with windows of {_shown(self.window)}, expected 1 pixel or more "
                "and at most the window: pixels between windows would have no score"
            )

    def __call__(self, network: nn.Module, photos: Tensor, size: Size | None = None) -> Tensor:
        """Score every pixel for every class. Gradients are the caller's to switch off.

        Args:
            network: photos ``(B, 3, H, W)`` -> logits ``(B, C, H, W)``, on the photos' device; or an
                :class:`Ensemble` of such.
            photos: ``(B, 3, H, W)`` RGB, uint8 or float, 0 to 255 in both.
            size: height and width of the scores; None for the photos'. Logits are interpolated to it.

        Returns:
            ``(B, C, height, width)`` whose softmax are the probabilities: the network's logits or, where
            probabilities are averaged, the logs of their means in float32.

        Raises:
            ValueError: if the network does not take photos or windows of this size.
        """
        size = (photos.shape[-2], photos.shape[-1]) if size is None else size
        members = list(network.members) if isinstance(network, Ensemble) else [network]
        views = list(product(members, self.scales, (False, True) if self.flip else (False,)))
        if len(views) == 1:
            return self._view(*views[0], photos, size)
        return _log_mean((self._view(*view, photos, size) for view in views), len(views))

    def probabilities(self, network: nn.Module, photos: Tensor, size: Size | None = None) -> Tensor:
        """Probabilities ``(B, C, height, width)`` float32; arguments as in calling."""
        return _softmax(self(network, photos, size))

    def network_sizes(self, height: int, width: int) -> list[Size]:
        """The sizes that a network is asked to score for a photo of this size, so that they can be checked before."""
        scaled = [(_scaled(height, scale), _scaled(width, scale)) for scale in self.scales]
        return [size if self.window is None else _fit(self.window, size) for size in scaled]

    def __str__(self) -> str:
        """What is done, in words: ``sliding window 512x512, stride 341, Gaussian; flip``; empty for whole photos."""
        parts = []
        if self.window is not None:
            blending = "Gaussian" if self.blending == "gaussian" else "flat"
            parts.append(f"sliding window {_shown(self.window)}, stride {_shown(self._stride, short=True)}, {blending}")
        if self.scales != (1.0,):
            parts.append(f"scales {', '.join(f'{scale:g}' for scale in self.scales)}")
        if self.flip:
            parts.append("flip")
        return "; ".join(parts)

    @property
    def _stride(self) -> Size:
        if self.stride is not None:
            return self.stride
        assert self.window is not None
        return max(self.window[0] * 2 // 3, 1), max(self.window[1] * 2 // 3, 1)

    def _view(self, network: nn.Module, scale: float, mirrored: bool, photos: Tensor, size: Size) -> Tensor:
        """Logits ``(B, C, *size)`` of photos that are scaled and mirrored on the way."""
        if scale != 1:
            wanted = _scaled(photos.shape[-2], scale), _scaled(photos.shape[-1], scale)
            photos = functional.interpolate(
                photos.float(), wanted, mode="bilinear", align_corners=False, antialias=scale < 1
            )
        logits = self._plain(network, photos.flip(-1) if mirrored else photos)
        if mirrored:
            logits = logits.flip(-1)
        if logits.shape[-2:] != size:
            logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits

    def _plain(self, network: nn.Module, photos: Tensor) -> Tensor:
        height, width = photos.shape[-2:]
        if self.window is None or _fit(self.window, (height, width)) == (height, width):
            return cast(Tensor, network(photos)).to(self.buffer)
        rows, columns = _fit(self.window, (height, width))
        places = list(
            product(
                range(len(photos)),
                _starts(height, rows, self._stride[0]),
                _starts(width, columns, self._stride[1]),
            )
        )
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


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities in float32; the logits may be in half precision."""
    return logits.float().softmax(dim=1)


def _log_mean(views: Iterator[Tensor], count: int) -> Tensor:
    """Log of the mean of the probabilities of `count` logits ``(B, C, H, W)``, which are summed as they come."""
    total = _softmax(next(views))
    for logits in views:
        total += _softmax(logits)
    # A probability that float32 rounds to 0 would make a loss of infinity.
    return total.div_(count).clamp_(min=torch.finfo(total.dtype).tiny).log_()


def _shown(size: Size, *, short: bool = False) -> str:
    """A size as people write it, width first; one number for a square if `short`.

    >>> _shown((512, 1024)), _shown((341, 341), short=True)
    ('1024x512', '341')
    """
    return str(size[0]) if short and size[0] == size[1] else f"{size[1]}x{size[0]}"
