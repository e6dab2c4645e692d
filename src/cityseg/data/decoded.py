"""Decoded samples: one array for all pictures of a split, in memory or mapped from a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cityseg.data.loading import FilePairs
from cityseg.data.samples import Pair, in_threads, progress
from cityseg.errors import DataError
from cityseg.labels import ByteArray

log = logging.getLogger(__name__)

USABLE = 0.9
"""Share of the free memory or disk that a cache may take: the network, loaders and checkpoints need some too."""

Sizes = npt.NDArray[np.int32]


class Stack:
    """Pictures of any sizes, one after the other in one flat array.

    Forked loader workers share memory until it is written to, and Python writes a count into every object it touches:
    one array of bytes stays shared where thousands of arrays do not. Spawned workers get a tensor as shared memory,
    and map a file themselves.

    Args:
        data: uint8, flat, of :meth:`bytes_needed`; or a file of these bytes, of which only the pages that are looked at
            are read, and which counts as in use while the stack lives.
        sizes: ``(N, 2)`` height and width of each picture.
        channels: 3 for photos; 0 for targets, which are ``(H, W)``.
    """

    def __init__(self, data: Tensor | Path, sizes: Sizes, channels: int = 0) -> None:
        self._data, self._sizes = data, sizes
        self._channels = (channels,) if channels else ()
        self._starts = np.cumsum([0, *(sizes.astype(np.int64).prod(axis=1) * max(channels, 1))])
        if isinstance(data, Path):
            import fcntl  # not on Windows, where all else in this module works

            with data.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # the map keeps the file open, and so the lock
                self._mapped = np.asarray(np.memmap(file, np.uint8, "r"))

    def __reduce__(self) -> tuple[type[Stack], tuple[Tensor | Path, Sizes, int]]:
        """What another process makes the stack of."""
        return Stack, (self._data, self._sizes, sum(self._channels))

    @staticmethod
    def bytes_needed(sizes: Sizes, channels: int = 0) -> int:
        """Length of the flat array that holds pictures of these sizes."""
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
        # A tensor's array is not kept: handing the tensor to another process moves its bytes.
        flat = self._mapped if isinstance(self._data, Path) else self._data.numpy()
        return np.asarray(flat[start : start + prod(shape)].reshape(shape), np.uint8)


@dataclass(frozen=True)
class CachedPairs:
    """The samples of a split, decoded; see :class:`cityseg.data.loading.Pairs`.

    Attributes:
        photos: ``(h, w, 3)`` uint8 each.
        targets: ``(H, W)`` uint8 each.
        indices: ``(N,)`` positions of the samples in the stacks; None for all of them.
    """

    photos: Stack
    targets: Stack
    indices: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.photos if self.indices is None else self.indices)

    def __getitem__(self, index: int) -> Pair:
        """One sample, read-only."""
        position = index if self.indices is None else int(self.indices[index])
        return Pair(self.photos[position], self.targets[position])


class Undecoded(NamedTuple):
    """What is to be decoded: the name of a split of the layout, and its samples."""

    name: str
    pairs: FilePairs

    def sizes(self, channels: int) -> Sizes:
        """Height and width ``(N, 2)`` of the photos (3 channels) or targets (0)."""
        view, in_files = self.pairs.view, self.pairs.samples.sizes
        return view.photo_sizes(in_files) if channels else view.target_sizes(in_files)

    def decode(self, photos: Stack | None, targets: Stack | None) -> None:
        """Decode every sample into the given stacks, in parallel, with a progress bar.

        Raises:
            FileProblem: naming a file that cannot be decoded.
        """

        def decode(index: int) -> None:
            photo, target = self.pairs[index]
            assert target is not None
            if photos is not None:
                photos[index] = photo
            if targets is not None:
                targets[index] = target

        # Threads: decoders let go of Python's lock, and what dies with the process cannot hold on to a file's lock.
        indices = range(len(self.pairs))
        for _ in progress(in_threads(decode, indices), len(indices), f"caching {self.name} photos"):
            pass


def in_memory(splits: Sequence[Undecoded], copies: int) -> list[CachedPairs]:
    """Decode samples into memory, before loader workers start: forked ones share it as it is.

    Args:
        splits: what is to be decoded.
        copies: processes on this machine that do the same.

    Raises:
        DataError: if they do not fit, before anything is decoded; naming a file that cannot be decoded.
    """
    sizes = [[Stack.bytes_needed(split.sizes(channels), channels) for channels in (3, 0)] for split in splits]
    each = f" in each of {copies} processes" if copies > 1 else ""
    needed, available = sum(map(sum, sizes)), available_memory()
    if needed * copies > USABLE * available:
        counts = " and ".join(f"{len(split.pairs)} {split.name}" for split in splits)
        raise DataError(
            f"data.cache=ram: {counts} photos take {readable_bytes(needed)}{each}, expected at most {USABLE:.0%} of "
            f"the {readable_bytes(available)} of memory that are available. Fix: data.cache=disk, data.cache=none, or "
            "a smaller data.scale"
        )
    cached = []
    for split, bytes_of in zip(splits, sizes, strict=True):
        log.info("caching %d %s photos: %s%s", len(split.pairs), split.name, readable_bytes(sum(bytes_of)), each)
        photos, targets = (
            Stack(torch.empty(count, dtype=torch.uint8), split.sizes(channels), channels)
            for count, channels in zip(bytes_of, (3, 0), strict=True)
        )
        split.decode(photos, targets)
        cached.append(CachedPairs(photos, targets))
    return cached


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
