"""Decoded samples kept in memory, so that training does not decode them again in every epoch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cityseg.data.loading import Pairs
from cityseg.data.samples import Pair, progress
from cityseg.labels import ByteArray
from cityseg.machine import available_cores

USABLE = 0.9
"""Share of the available memory that a cache may take: the network, its optimizer and the loaders need some too."""

Sizes = npt.NDArray[np.int32]


class Stack:
    """Pictures of any sizes, one after the other in one flat tensor.

    Forked loader workers share memory until it is written to, and Python writes a count into every object it touches:
    one array of bytes stays shared where thousands of arrays do not. As a tensor, it reaches spawned workers as shared
    memory too instead of as a copy for each.

    Args:
        data: uint8, flat, of :meth:`bytes_needed`: in memory, or mapped from a file.
        sizes: ``(N, 2)`` height and width of each picture.
        channels: 3 for photos; 0 for targets, which are ``(H, W)``.
    """

    def __init__(self, data: Tensor, sizes: Sizes, channels: int = 0) -> None:
        """See the class."""
        self._data, self._sizes = data, sizes
        self._channels = (channels,) if channels else ()
        self._starts = np.cumsum([0, *(sizes.astype(np.int64).prod(axis=1) * max(channels, 1))])

    @staticmethod
    def bytes_needed(sizes: Sizes, channels: int = 0) -> int:
        """Length of the flat tensor that holds pictures of these sizes."""
        return int(sizes.astype(np.int64).prod(axis=1).sum()) * max(channels, 1)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._sizes)

    def __getitem__(self, index: int) -> ByteArray:
        """One picture, read-only and without a copy."""
        picture = self._picture(index)
        picture.flags.writeable = False
        return picture

    def __setitem__(self, index: int, picture: ByteArray) -> None:
        """Fill in one picture."""
        self._picture(index)[...] = picture

    def _picture(self, index: int) -> ByteArray:
        shape = (*self._sizes[index].tolist(), *self._channels)
        start = int(self._starts[index])
        return np.asarray(self._data[start : start + prod(shape)].numpy().reshape(shape), np.uint8)


@dataclass(frozen=True)
class CachedPairs:
    """The samples of a split, decoded; see :class:`cityseg.data.loading.Pairs`.

    Attributes:
        photos: ``(h, w, 3)`` uint8 each.
        targets: ``(H, W)`` uint8 each.
    """

    photos: Stack
    targets: Stack

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.photos)

    def __getitem__(self, index: int) -> Pair:
        """One sample, read-only."""
        return Pair(self.photos[index], self.targets[index])

    def fill(self, pairs: Pairs, description: str) -> None:
        """Decode every sample, in parallel, with a progress bar.

        Raises:
            FileProblem: naming a file that cannot be decoded.
        """

        def decode(index: int) -> None:
            photo, target = pairs[index]
            assert target is not None
            self.photos[index], self.targets[index] = photo, target

        with ThreadPoolExecutor(max_workers=available_cores()) as pool:
            for _ in progress(pool.map(decode, range(len(self))), len(self), description):
                pass


def memory_cache(photo_sizes: Sizes, target_sizes: Sizes) -> CachedPairs:
    """An empty cache in memory, to be filled before loader workers start: forked ones share it as it is."""

    def allocate(sizes: Sizes, channels: int = 0) -> Stack:
        return Stack(torch.empty(Stack.bytes_needed(sizes, channels), dtype=torch.uint8), sizes, channels)

    return CachedPairs(allocate(photo_sizes, 3), allocate(target_sizes))


def cache_bytes(photo_sizes: Sizes, target_sizes: Sizes) -> int:
    """Memory that a cache of samples of these sizes takes."""
    return Stack.bytes_needed(photo_sizes, 3) + Stack.bytes_needed(target_sizes)


def available_memory() -> int:
    """Bytes of memory that programs can still take; where the system does not tell, half of what is built in."""
    table = Path("/proc/meminfo")
    if table.is_file():
        for line in table.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def readable_bytes(count: int) -> str:
    """A number of bytes as people read it.

    >>> readable_bytes(253_700_000), readable_bytes(23_400_000_000)
    ('254 MB', '23.4 GB')
    """
    value, unit = (count / 1e9, "GB") if count >= 1e9 else (count / 1e6, "MB")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
