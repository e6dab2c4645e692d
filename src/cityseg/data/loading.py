"""The dataset and its samplers: what a sample looks like depends on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from cityseg.data.samples import Reader, Samples
from cityseg.data.transforms import Augment


class Batch(TypedDict):
    """What a loader gives: photos as they were decoded; they are normalised on the device."""

    photo: Tensor
    """``(B, 3, H, W)`` uint8 RGB."""
    target: NotRequired[Tensor]
    """``(B, H, W)`` uint8 train ids; missing where the split has no labels."""
    index: Tensor
    """``(B,)`` int64, position of the sample in its split."""


class Key(NamedTuple):
    """Which sample, as seen in which epoch. Samplers hand out keys, so that workers need no state of their own."""

    epoch: int
    sample: int


@dataclass
class TrainDataset(Dataset[Batch]):
    """Random crops of a split; the randomness of a crop comes from (seed, epoch, index).

    Attributes:
        samples: the files.
        reader: decodes them.
        augment: draws the crop.
        crop: height and width of crops.
        seed: of the run.
    """

    samples: Samples
    reader: Reader
    augment: Augment
    crop: tuple[int, int]
    seed: int

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def __getitem__(self, key: Key) -> Batch:
        """One crop, without the batch dimension."""
        epoch, index = key
        pair = self.reader(self.samples.photo(index), self.samples.label(index))
        rng = np.random.default_rng((self.seed, epoch, index))
        photo, target = self.augment(pair, self.crop, rng)
        assert target is not None
        return {
            "photo": _to_tensor(photo),
            "target": torch.from_numpy(np.ascontiguousarray(target)),
            "index": torch.tensor(index),
        }


@dataclass
class WholeDataset(Dataset[Batch]):
    """Whole images of a split, at their own resolution, for validation, test and prediction.

    Attributes:
        samples: the files.
        reader: decodes them.
    """

    samples: Samples
    reader: Reader

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        """One whole image, without the batch dimension."""
        photo, target = self.reader(self.samples.photo(index), self.samples.label(index))
        batch: Batch = {"photo": _to_tensor(photo), "index": torch.tensor(index)}
        if target is not None:
            batch["target"] = torch.from_numpy(np.ascontiguousarray(target))
        return batch


def _to_tensor(photo: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1)))


class TrainBatches(Sampler[list[Key]]):
    """Shuffled batches whose order depends on (seed, epoch) alone.

    Args:
        count: number of samples in the split.
        batch_size: samples a batch, on this process.
        seed: of the run.
        rank: which process this is; each takes every `world`-th batch-sized part of the same order.
        world: number of processes.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        """See the class."""
        self._count, self._seed, self._rank, self._world = count, seed, rank, world
        # A last, smaller batch is dropped (batch norm suffers from it) unless it is the only one.
        self._batch_size = min(batch_size, max(count // world, 1))
        self._epoch = 0

    @property
    def sampler(self) -> TrainBatches:
        """Itself: the trainer tells the epoch to a batch sampler's `sampler`, not to the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; the trainer calls this, also after a resume."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Number of batches of an epoch, on this process."""
        return self._count // (self._batch_size * self._world)

    def __iter__(self) -> Iterator[list[Key]]:
        """The batches of the chosen epoch."""
        order = np.random.default_rng((self._seed, self._epoch)).permutation(self._count)
        step = self._batch_size * self._world
        for start in range(self._rank * self._batch_size, len(self) * step, step):
            yield [Key(self._epoch, int(index)) for index in order[start : start + self._batch_size]]


class SameSizeBatches(Sampler[list[int]]):
    """Batches, in order, of neighbouring samples that have the same size; each process takes its share.

    No sample is repeated to make shares equal, so that no figure counts an image twice.

    Args:
        sizes: ``(N, 2)`` height and width of each sample.
        batch_size: most samples a batch.
        rank: which process this is.
        world: number of processes.
    """

    def __init__(self, sizes: npt.NDArray[np.int32], batch_size: int, rank: int = 0, world: int = 1) -> None:
        """See the class."""
        self._batches: list[tuple[int, int]] = []
        batch_size = max(min(batch_size, len(sizes) // world), 1)  # a process without a batch is an error
        start = 0
        for index in range(1, len(sizes) + 1):
            if index == len(sizes) or index - start == batch_size or (sizes[index] != sizes[start]).any():
                self._batches.append((start, index))
                start = index
        self._batches = self._batches[rank::world]

    def __len__(self) -> int:
        """Number of batches, on this process."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches."""
        for start, stop in self._batches:
            yield list(range(start, stop))


def quiet_worker(_: int) -> None:
    """Keep a loader worker on its own core: OpenCV starts one thread a core by default."""
    cv2.setNumThreads(0)
