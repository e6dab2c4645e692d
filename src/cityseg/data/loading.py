"""The datasets and samplers: what a sample looks like depends on (seed, epoch, index, draw) and on nothing else."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, Protocol, TypedDict

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import signal_handling

from cityseg.data.samples import Pair, Reader, Samples
from cityseg.data.transforms import Augment
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


class Pairs(Protocol):
    """The samples of a split as the network's side sees them: read from the files each time, or out of a cache."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Pair:
        """Photo ``(h, w, 3)`` and target ``(H, W)``, or None, of one sample; not to be written to."""
        ...


@dataclass(frozen=True)
class View:
    """How much of a decoded sample is used, and at which size.

    Attributes:
        scale: size of the photo, relative to the file's.
        scale_target: whether the target is scaled too: for training, not for scores.
        crop: height and width of the centre that is cut out first, in the file's pixels; None is everything.
    """

    scale: float = 1.0
    scale_target: bool = False
    crop: tuple[int, int] | None = None

    def photo_sizes(self, sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Height and width ``(..., 2)`` of photos, from those in the files."""
        return np.asarray(np.maximum(np.rint(self._cut_sizes(sizes) * self.scale), 1), np.int32)

    def target_sizes(self, sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Height and width ``(..., 2)`` of targets, from those of the photos in the files."""
        return self.photo_sizes(sizes) if self.scale_target else self._cut_sizes(sizes)

    def _cut_sizes(self, sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        return sizes if self.crop is None else np.minimum(sizes, np.asarray(self.crop, np.int32))

    def __call__(self, pair: Pair) -> Pair:
        """Cut and scale one sample."""
        photo, target = pair
        if self.crop is not None:
            photo = _centre(photo, self.crop)
            target = None if target is None else _centre(target, self.crop)
        if self.scale != 1:
            height, width = self.photo_sizes(np.array(pair.photo.shape[:2], np.int32)).tolist()
            photo = np.asarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
            if target is not None and self.scale_target:
                target = cv2.resize(target, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
        return Pair(photo, target)


def _centre(picture: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    top, left = (max(length - side, 0) // 2 for length, side in zip(picture.shape, size, strict=False))
    return picture[top : top + size[0], left : left + size[1]]


@dataclass
class FilePairs:
    """Samples decoded from their files whenever they are asked for.

    Attributes:
        samples: the files.
        reader: decodes them.
        view: what is used of them.
    """

    samples: Samples
    reader: Reader
    view: View

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Pair:
        """One sample, see :class:`Pairs`.

        Raises:
            FileProblem: naming the file, if it cannot be decoded.
        """
        return self.view(self.reader(self.samples.photo(index), self.samples.label(index)))


class Key(NamedTuple):
    """Which sample, as seen in which epoch. Samplers hand out keys, so that workers need no state of their own.

    Attributes:
        epoch: from 0.
        sample: position in the split.
        draw: how often the sample was drawn before in this epoch, so that its crops differ.
    """

    epoch: int
    sample: int
    draw: int = 0


@dataclass
class TrainDataset(Dataset[Batch]):
    """Random crops of a split; the randomness of a crop comes from the seed and its key.

    Attributes:
        pairs: the samples.
        augment: draws the crop.
        crop: height and width of crops.
        seed: of the run.
    """

    pairs: Pairs
    augment: Augment
    crop: tuple[int, int]
    seed: int

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.pairs)

    def __getitem__(self, key: Key) -> Batch:
        """One crop, without the batch dimension."""
        epoch, index, draw = key
        rng = np.random.default_rng((self.seed, epoch, index, *([draw] if draw else [])))
        photo, target = self.augment(self.pairs[index], self.crop, rng)
        assert target is not None
        return {"photo": _photo_tensor(photo), "target": _target_tensor(target), "index": torch.tensor(index)}


@dataclass
class WholeDataset(Dataset[Batch]):
    """Whole images of a split, for validation, test and prediction.

    Attributes:
        pairs: the samples.
        sizes: ``(N, 2)`` int32, height and width that predictions are wanted at.
    """

    pairs: Pairs
    sizes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Batch:
        """One whole image, without the batch dimension."""
        photo, target = self.pairs[index]
        batch: Batch = {"photo": _photo_tensor(photo), "index": torch.tensor(index)}
        if target is not None:
            batch["target"] = _target_tensor(target)
        else:
            batch["size"] = torch.tensor(self.sizes[index].tolist())
        return batch


# Both copy: a tensor must not share memory with a sample that a cache holds.
def _photo_tensor(photo: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.stack(cv2.split(photo)))  # faster than a transposed copy


def _target_tensor(target: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(target.copy())


class TrainBatches(Sampler[list[Key]]):
    """Shuffled batches whose order depends on (seed, epoch) alone.

    Args:
        count: number of samples in the split.
        batch_size: samples a batch, on this process.
        seed: of the run.
        rank: which process this is; each takes every `world`-th batch-sized part of the same order.
        world: number of processes.
        probabilities: ``(count,)`` of drawing each sample, with replacement; None for each sample once.
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
        self.epoch = 0
        self.first = 0
        """Batch that the next pass starts with."""

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
    """Batches, in order, of neighbouring samples that have the same size; each process takes its share.

    No sample is repeated to make shares equal, so that no figure counts an image twice.

    Args:
        sizes: ``(N, 2)`` height and width of each sample.
        batch_size: most samples a batch.
        rank: which process this is.
        world: number of processes.
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
        for start, stop in self._batches:
            yield list(range(int(start), int(stop)))


def notice_lost_workers() -> None:
    """Let torch listen again to workers that die: it does so once, and a trainer that is done has silenced it.

    Without it a batch of theirs is waited for until the timeout.
    """
    if hasattr(signal, "SIGCHLD") and signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL:
        signal_handling._SIGCHLD_handler_set = False


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


def automatic_workers() -> int:
    """Loader processes that suit this machine: one a core up to 8 beside a GPU, half the cores where they train too."""
    cores = available_cores()
    workers = min(cores, 8) if torch.cuda.is_available() else min(cores // 2, 4)
    pinned = "pinned memory" if torch.cuda.is_available() else "no pinned memory (no GPU)"
    log.info("data.workers=auto: %d loader processes on %d cores, %s", workers, cores, pinned)
    return workers
