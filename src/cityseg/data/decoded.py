"""Samples as arrays: decoded whenever they are asked for, or once, into memory or a file."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.filesize import decimal as readable_bytes
from torch import Tensor

from cityseg.data.samples import Pair, Reader, Samples, in_threads, progress
from cityseg.errors import DataError
from cityseg.labels import ByteArray

log = logging.getLogger(__name__)

USABLE = 0.9
"""Share of the free memory or disk that a cache may take: the network, loaders and checkpoints need some too."""

PHOTOS, TARGETS = 3, 0
"""Channels of what is decoded: photos are ``(h, w, 3)``, targets ``(H, W)``."""

Sizes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class View:
    """How much of a decoded sample is used, and at which size."""

    scale: float = 1.0  # size of the photo, relative to the file's
    scale_target: bool = False  # for training, not for scores
    crop: tuple[int, int] | None = None  # of the centre that is cut out first, in the file's pixels; None is everything

    def photo_sizes(self, sizes: Sizes) -> Sizes:
        """Height and width ``(..., 2)`` of photos, from those in the files."""
        return np.asarray(np.maximum(np.rint(self._cut(sizes) * self.scale), 1), np.int32)

    def target_sizes(self, sizes: Sizes) -> Sizes:
        """Height and width ``(..., 2)`` of targets, from those of the photos in the files."""
        return self.photo_sizes(sizes) if self.scale_target else self._cut(sizes)

    def _cut(self, sizes: Sizes) -> Sizes:
        return sizes if self.crop is None else np.minimum(sizes, np.asarray(self.crop, np.int32))

    def __call__(self, pair: Pair) -> Pair:
        """Cut and scale one sample."""
        photo, target = pair
        if self.crop is not None:
            photo, target = _centre(photo, self.crop), None if target is None else _centre(target, self.crop)
        if self.scale != 1:
            height, width = self.photo_sizes(np.array(pair.photo.shape[:2], np.int32)).tolist()
            photo = np.asarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
            if target is not None and self.scale_target:
                target = cv2.resize(target, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
        return Pair(photo, target)


def _centre(picture: ByteArray, size: tuple[int, int]) -> ByteArray:
    top, left = (max(length - side, 0) // 2 for length, side in zip(picture.shape, size, strict=False))
    return picture[top : top + size[0], left : left + size[1]]


def _lengths(sizes: Sizes, channels: int) -> npt.NDArray[np.int64]:
    return np.asarray(sizes.astype(np.int64).prod(axis=1) * max(channels, 1), np.int64)


def bytes_needed(sizes: Sizes, channels: int) -> int:
    """Bytes of pictures of these sizes ``(N, 2)``."""
    return int(_lengths(sizes, channels).sum())


class Stack:
    """Pictures of any sizes, one after the other in one flat array.

    Forked loader workers share memory until it is written to, and Python writes a count into every object it touches:
    one array of bytes stays shared where thousands of arrays do not. Spawned workers get a tensor as shared memory,
    and map a file themselves.

    Args:
        data: flat, uint8; or a file of these bytes, read where it is looked at, and in use while the stack lives.
        sizes: ``(N, 2)`` height and width of each picture.
        channels: :data:`PHOTOS` or :data:`TARGETS`.
    """

    def __init__(self, data: Tensor | Path, sizes: Sizes, channels: int) -> None:
        self._data, self._sizes, self._channels = data, sizes, channels
        self._starts = np.cumsum(_lengths(sizes, channels)) - _lengths(sizes, channels)
        if isinstance(data, Path):
            import fcntl  # not on Windows, where all else in this module works

            with data.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # the map keeps the file open, and so the lock
                self._mapped = np.asarray(np.memmap(file, np.uint8, "r"))

    def __reduce__(self) -> tuple[type[Stack], tuple[Tensor | Path, Sizes, int]]:
        """What another process makes the stack of."""
        return Stack, (self._data, self._sizes, self._channels)

    def __getitem__(self, index: int) -> ByteArray:
        """One picture, read-only and without a copy."""
        picture = self._picture(index)
        picture.flags.writeable = False
        return picture

    def __setitem__(self, index: int, picture: ByteArray) -> None:
        """Fill in one picture."""
        self._picture(index)[...] = picture

    def _picture(self, index: int) -> ByteArray:
        shape = (*self._sizes[index].tolist(), *([self._channels] if self._channels else []))
        start = int(self._starts[index])
        # A tensor's array is not kept: handing the tensor to another process moves its bytes.
        flat = self._mapped if isinstance(self._data, Path) else self._data.numpy()
        return np.asarray(flat[start : start + prod(shape)].reshape(shape), np.uint8)


@dataclass(frozen=True)
class FilePairs:
    """The samples of a split, named `split`, decoded from their files whenever they are asked for."""

    split: str
    samples: Samples
    reader: Reader
    view: View

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Pair:
        """One sample; FileProblem names a file that cannot be decoded."""
        return self.view(self.reader(self.samples.photo(index), self.samples.label(index)))

    def sizes(self, channels: int) -> Sizes:
        """Height and width ``(N, 2)`` of the photos or targets."""
        return (self.view.photo_sizes if channels == PHOTOS else self.view.target_sizes)(self.samples.sizes)

    def decode(self, photos: Stack | None, targets: Stack | None) -> None:
        """Decode every sample into the given stacks, in parallel, with a progress bar."""

        def decode(index: int) -> None:
            for stack, picture in zip((photos, targets), self[index], strict=True):
                if stack is not None:
                    assert picture is not None
                    stack[index] = picture

        # Threads: decoders let go of Python's lock, and what dies with the process cannot hold on to a file's lock.
        for _ in progress(in_threads(decode, range(len(self))), len(self), f"caching {self.split} photos"):
            pass


@dataclass(frozen=True)
class CachedPairs:
    """The samples of a split, decoded once; `indices` ``(N,)`` are their positions in the stacks."""

    photos: Stack
    targets: Stack
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Pair:
        """One sample, read-only."""
        position = int(self.indices[index])
        return Pair(self.photos[position], self.targets[position])


Pairs = FilePairs | CachedPairs
"""The samples of a split as the network's side sees them."""


def in_memory(splits: Sequence[FilePairs], copies: int) -> list[CachedPairs]:
    """Decode samples into memory, as `copies` processes do, before loader workers start: forked ones share it.

    Raises:
        DataError: if they do not fit, before anything is decoded; naming a file that cannot be decoded.
    """
    bytes_of = [[bytes_needed(split.sizes(channels), channels) for channels in (PHOTOS, TARGETS)] for split in splits]
    each = f" in each of {copies} processes" if copies > 1 else ""
    needed, available = sum(map(sum, bytes_of)), available_memory()
    if needed * copies > USABLE * available:
        counts = " and ".join(f"{len(split)} {split.split}" for split in splits)
        raise DataError(
            f"data.cache=ram: {counts} photos take {readable_bytes(needed)}{each}, expected at most {USABLE:.0%} of "
            f"the {readable_bytes(available)} of memory that are available. Fix: data.cache=disk, data.cache=none, or "
            "a smaller data.scale"
        )
    cached = []
    for split, lengths in zip(splits, bytes_of, strict=True):
        log.info("caching %d %s photos: %s%s", len(split), split.split, readable_bytes(sum(lengths)), each)
        photos, targets = (
            Stack(torch.empty(length, dtype=torch.uint8), split.sizes(channels), channels)
            for length, channels in zip(lengths, (PHOTOS, TARGETS), strict=True)
        )
        split.decode(photos, targets)
        cached.append(CachedPairs(photos, targets, np.arange(len(split))))
    return cached


def available_memory() -> int:
    """Bytes of memory that programs can still take; where the system does not tell, half of what is built in."""
    table = Path("/proc/meminfo")
    told = re.search(r"MemAvailable:\s*(\d+)", table.read_text() if table.is_file() else "")
    return int(told[1]) * 1024 if told else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
