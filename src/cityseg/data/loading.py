"""The datasets and samplers: what a sample looks like depends on (seed, epoch, index, draw) and on nothing else."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, NotRequired, TypedDict

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torch.utils.data._utils import signal_handling

from cityseg.data.decoded import Pairs
from cityseg.data.transforms import Augment
from cityseg.labels import ByteArray
from cityseg.machine import available_cores

log = logging.getLogger(__name__)


class Batch(TypedDict):
    """What a loader gives: photos as they were decoded; they are normalised on the device."""

    photo: Tensor
    """``(B, 3, H, W)`` uint8 RGB."""
    target: NotRequired[Tensor]
    """``(B, H, W)`` uint8 train ids; missing where the split has no labels."""
    index: Tensor
    """``(B,)`` int64, position of the sample in its split."""
    size: NotRequired[Tensor]
    """``(B, 2)`` int64, height and width that predictions are wanted at where there is no target to tell."""


class Key(NamedTuple):
    """Which sample, as seen in which epoch; samplers hand out keys, so that workers need no state of their own."""

    epoch: int
    sample: int
    draw: int = 0  # how often the sample was drawn before in this epoch, so that its crops differ


class Sample(NamedTuple):
    """What a dataset gives."""

    position: int  # in the split
    photo: ByteArray  # (H, W, 3) RGB
    target: ByteArray | None  # (H, W) train ids
    size: tuple[int, int]  # height and width that a prediction is wanted at


@dataclass
class TrainDataset(Dataset[Sample]):
    """Random crops, of a height and width, of a split; a crop's randomness comes from the run's seed and its key."""

    pairs: Pairs
    augment: Augment
    crop: tuple[int, int]
    seed: int

    def __getitem__(self, key: Key) -> Sample:
        """One crop."""
        epoch, index, draw = key
        rng = np.random.default_rng((self.seed, epoch, index, *([draw] if draw else [])))
        return Sample(index, *self.augment(self.pairs[index], self.crop, rng), self.crop)


@dataclass
class WholeDataset(Dataset[Sample]):
    """Whole images of a split, for validation, test and prediction."""

    pairs: Pairs
    sizes: npt.NDArray[np.int32]  # (N, 2), height and width that predictions are wanted at

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """One whole image."""
        height, width = self.sizes[index].tolist()
        return Sample(index, *self.pairs[index], (height, width))


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of samples of one size, in one piece of memory: pieces are handed from process to process one by one."""
    count, first = len(samples), samples[0]
    photos = (count, 3, *first.photo.shape[:2])
    targets = (0,) if first.target is None else (count, *first.target.shape)
    lengths = [8 * count, prod(photos), prod(targets)]
    index, photo, target = torch.split(_memory(sum(lengths)), lengths)
    batch: Batch = {"photo": photo.view(photos), "index": index.view(torch.int64)}
    batch["index"].copy_(torch.tensor([sample.position for sample in samples]))
    if first.target is None:
        batch["size"] = torch.tensor([sample.size for sample in samples])
    else:
        batch["target"] = target.view(targets)
    for row, sample in enumerate(samples):
        cv2.split(sample.photo, list(batch["photo"][row].numpy()))  # faster than to transpose
        if sample.target is not None:
            np.copyto(batch["target"][row].numpy(), sample.target)
    return batch


def _memory(size: int) -> Tensor:
    """Bytes ``(size,)``, which a loader worker shares with the run."""
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))  # type: ignore[no-untyped-call]


class TrainBatches(Sampler[list[Key]]):
    """Shuffled batches of a split of `count` samples, whose order depends on (seed, epoch) alone.

    Process `rank` of `world` takes every `world`-th part of `batch_size` samples of the same order. With probabilities
    ``(count,)`` samples are drawn with replacement, else each comes once.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        probabilities: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self._count, self._seed, self._rank, self._world = count, seed, rank, world
        self._probabilities = probabilities
        # A last, smaller batch is dropped (batch norm suffers from it) unless it is the only one.
        self._batch_size = min(batch_size, max(count // world, 1))
        self.epoch, self.first = 0, 0  # the latter is the batch that the next pass starts with

    @property
    def sampler(self) -> TrainBatches:
        """Itself: the trainer tells the epoch to a batch sampler's `sampler`, not to the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; the trainer calls this, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches of an epoch, on this process."""
        return self._count // (self._batch_size * self._world)

    def __iter__(self) -> Iterator[list[Key]]:
        """The batches of the chosen epoch."""
        epoch, (samples, draws), first = self.epoch, self._order(), self.first
        self.first = 0
        step = self._batch_size * self._world
        for start in range(first * step + self._rank * self._batch_size, len(self) * step, step):
            part = slice(start, start + self._batch_size)
            pairs = zip(samples[part].tolist(), draws[part].tolist(), strict=True)
            yield [Key(epoch, sample, draw) for sample, draw in pairs]

    def _order(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Sample and draw of each key of the epoch, of all processes: ``(count,)`` each."""
        rng = np.random.default_rng((self._seed, self.epoch))
        draws = np.zeros(self._count, np.int64)
        if self._probabilities is None:
            return rng.permutation(self._count), draws
        samples = rng.choice(self._count, self._count, p=self._probabilities)
        grouped = np.argsort(samples, kind="stable")
        draws[grouped] = np.arange(self._count) - np.searchsorted(samples[grouped], samples[grouped])
        return samples, draws


class TrainLoader(DataLoader[Batch]):
    """A loader of :class:`TrainBatches` that goes on inside an epoch: the trainer saves and loads its state.

    Workers start with the first batch, so that they know the epoch.
    """

    batch_sampler: TrainBatches
    _given = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """The batches of the sampler's epoch."""
        self._given = self.batch_sampler.first
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given; 0 after the last."""
        return {"epoch": self.batch_sampler.epoch, "batch": self._given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass go on where another loader was."""
        self.batch_sampler.epoch, self.batch_sampler.first = state["epoch"], state["batch"]


class SameSizeBatches(Sampler[list[int]]):
    """Batches, in order, of neighbouring samples of one size, of ``(N, 2)``; process `rank` of `world` takes its share.

    No sample is repeated to make shares equal, so that no figure counts an image twice.
    """

    def __init__(self, sizes: npt.NDArray[np.int32], batch_size: int, rank: int = 0, world: int = 1) -> None:
        batch_size = max(min(batch_size, len(sizes) // world), 1)  # a process without a batch is an error
        index = np.arange(len(sizes))
        new = np.diff(sizes, axis=0, prepend=-1).any(axis=1)  # size than that of the sample before
        first = np.flatnonzero((index - np.maximum.accumulate(np.where(new, index, 0))) % batch_size == 0)
        self._batches = np.column_stack([first, np.append(first, len(sizes))[1:]])[rank::world]

    def __len__(self) -> int:
        """Number of batches, on this process."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches."""
        return (list(range(int(start), int(stop))) for start, stop in self._batches)


def quiet_worker(_: int) -> None:
    """Keep a loader worker on its own core, and let what asks all processes to stop reach the run, not its workers."""
    cv2.setNumThreads(0)  # OpenCV starts one thread a core by default
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # where SLURM runs
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_heed_parent, daemon=True).start()


def _heed_parent() -> None:
    """End this worker when the run does, by SIGTERM, and not when SLURM sends it to all processes of a job."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


def notice_lost_workers() -> None:
    """Let torch listen again to workers that die, which a trainer that is done has silenced.

    Without it a batch of theirs is waited for until the timeout.
    """
    if hasattr(signal, "SIGCHLD") and signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL:
        signal_handling._SIGCHLD_handler_set = False


def automatic_workers() -> int:
    """Loader processes that suit this machine: one a core up to 8 beside a GPU, half the cores where they train too."""
    cores, gpu = available_cores(), torch.cuda.is_available()
    workers = min(cores, 8) if gpu else min(cores // 2, 4)
    pinned = "pinned memory" if gpu else "no pinned memory (no GPU)"
    log.info("data.workers=auto: loader processes %d, cores %d, %s", workers, cores, pinned)
    return workers
