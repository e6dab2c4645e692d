"""What every dataset layout shares: the checked index of a split, and the loaders over it."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from cityseg.data.loading import (
    Batch,
    SameSizeBatches,
    TrainBatches,
    TrainDataset,
    WholeDataset,
    quiet_worker,
)
from cityseg.data.samples import Reader, Samples, check
from cityseg.data.scenes import scenes_root
from cityseg.data.transforms import Augment
from cityseg.errors import ConfigError, DataError, Problems
from cityseg.labels import LabelSpace

log = logging.getLogger(__name__)

Layout = Literal["gtfine", "pairs", "folders"]


class SegmentationDataModule(pl.LightningDataModule):
    """Base of the layouts; a layout adds how its files are found (:meth:`find`) and read (`reader`).

    Args:
        root: folder of the data set; None for the built-in scenes, written in this layout.
        label_space: the classes.
        augment: draws the training crops.
        crop: height and width (or one number for both) of training crops, in pixels; a side longer than every photo is
            cut to the longest, so that no crop is mostly padding. ``auto`` is 512, or three quarters of smaller photos.
        batch_size: training crops a step, on each device.
        eval_batch_size: whole images a step in validation and test, where their sizes are equal.
        workers: loader processes, or ``auto``.
        verify: ``quick`` checks every header and decodes a few files before training, ``full`` decodes all of them.
        seed: of the run; orders and crops derive from it.
        cache_dir: where the built-in scenes and counted class pixels are kept; None for ``~/.cache/cityseg``.
        scenes: number of built-in ``train`` and ``val`` scenes and their ``size``, if other than the defaults.
    """

    layout: ClassVar[Layout]
    splits: ClassVar[tuple[str, ...]]
    reader: Reader

    def __init__(
        self,
        root: str | None,
        label_space: LabelSpace,
        *,
        augment: Augment,
        crop: int | Sequence[int] | Literal["auto"],
        batch_size: int,
        eval_batch_size: int,
        workers: int | Literal["auto"] = "auto",
        verify: Literal["quick", "full"] = "quick",
        seed: int = 0,
        cache_dir: str | None = None,
        scenes: dict[str, int] | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.builtin = root is None
        self.label_space = label_space
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self._root = root
        self._scenes = dict(scenes or {})
        self._augment = augment
        self._crop = crop
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._workers = automatic_workers() if workers == "auto" else workers
        self._verify = verify
        self._seed = seed
        self._samples: dict[str, Samples] = {}
        self._check_options()

    def _check_options(self) -> None:
        problems = Problems("the data config")
        numbers = {"batch_size": self._batch_size, "eval_batch_size": self._eval_batch_size}
        for name, value in numbers.items():
            if not isinstance(value, int) or value < 1:
                problems.add(f"data.{name}: found {value!r}, expected a whole number of at least 1")
        sides = (self._crop, self._crop) if isinstance(self._crop, int) else self._crop
        if sides != "auto" and not (len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)):
            problems.add(f"data.crop: found {self._crop!r}, expected 'auto', one number or [height, width]")
        if not isinstance(self._workers, int) or self._workers < 0:
            problems.add(f"data.workers: found {self._workers!r}, expected 'auto' or a whole number from 0")
        if self._verify not in ("quick", "full"):
            problems.add(f"data.verify: found {self._verify!r}, expected 'quick' or 'full'")
        if unknown := set(self._scenes) - {"train", "val", "size", "seed"}:
            problems.add(f"data.scenes: found {', '.join(sorted(unknown))}, expected only train, val, size and seed")
        problems.raise_if_any(ConfigError)

    @abstractmethod
    def find(self, root: Path, split: str, problems: Problems) -> Samples:
        """List the samples of a split; what is wrong with the folder is added to the problems."""

    def check_split(self, samples: Samples, problems: Problems) -> None:
        """Look at a split whose files are sound as a whole; a layout adds what it finds to the problems."""

    @property
    def dataset_name(self) -> str:
        """What results call the data: the folder, or the built-in scenes."""
        return f"built-in scenes ({self.layout})" if self._root is None else str(self._root)

    @property
    def batch_size(self) -> int:
        """Training crops a step, on each device."""
        return self._batch_size

    def index(self, splits: Sequence[str]) -> None:
        """Find and check the files of some splits, once, collecting all problems.

        Raises:
            DataError: with every problem of every split.
        """
        missing = [split for split in splits if split not in self._samples]
        if not missing:
            return
        root = self._resolve_root()
        problems = Problems(f"the data in {root} (data={self.layout})")
        for split in missing:
            if split not in self.splits:
                problems.add(f"no split {split!r}", fix=f"split is one of {', '.join(self.splits)}")
                continue
            samples = self.find(root, split, problems)
            sound = not problems
            check(samples, self.reader, full=self._verify == "full", problems=problems)
            if sound and not problems:
                self.check_split(samples, problems)
            self._samples[split] = samples
        problems.raise_if_any(DataError)

    def check_root(self) -> None:
        """See that the folder is there, before anything slow starts.

        Raises:
            DataError: if it is not.
        """
        if self._root is not None and not Path(self._root).expanduser().is_dir():
            what = "is a file" if Path(self._root).exists() else "no such folder"
            raise DataError(
                f"data.root={self._root}: {what}, expected the folder of a data set. Fix: correct the path, or leave "
                "data.root out for the built-in scenes"
            )

    def _resolve_root(self) -> Path:
        self.check_root()
        if self._root is None:
            return scenes_root(self.layout, cache_dir=self.cache_dir, **self._scenes)
        return Path(self._root).expanduser().absolute()

    def samples(self, split: str) -> Samples:
        """The checked samples of a split.

        Raises:
            DataError: if anything is wrong with its files.
        """
        self.index([split])
        return self._samples[split]

    def crop_size(self) -> tuple[int, int]:
        """Height and width of training crops, in pixels."""
        height, width = (int(side) for side in self.samples("train").sizes.max(axis=0))
        if self._crop == "auto":
            return _auto_side(height), _auto_side(width)
        wanted = (self._crop, self._crop) if isinstance(self._crop, int) else self._crop
        return min(int(wanted[0]), height), min(int(wanted[1]), width)

    def setup(self, stage: str) -> None:
        """Check the files that a stage needs; called by the trainer."""
        if stage == "fit":
            self.index(["train", "val"])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Augmented crops of the training split, in an order of their own for each epoch."""
        samples = self.samples("train")
        dataset = TrainDataset(samples, self.reader, self._augment, self.crop_size(), self._seed)
        batches = TrainBatches(len(samples), self._batch_size, self._seed, *self._processes())
        return self._loader(dataset, batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Whole images of the validation split."""
        return self.eval_dataloader("val")

    def eval_dataloader(self, split: str) -> DataLoader[Batch]:
        """Whole images of any split, in order."""
        samples = self.samples(split)
        batches = SameSizeBatches(samples.sizes, self._eval_batch_size, *self._processes())
        return self._loader(WholeDataset(samples, self.reader), batches)

    def _loader(self, dataset: TrainDataset | WholeDataset, batches: Sampler[Any]) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=quiet_worker,
            # Without a generator of its own a loader draws from torch's global one, and dropout would change with it.
            generator=torch.Generator().manual_seed(self._seed),
        )

    def _processes(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)


def _auto_side(photo: int) -> int:
    """Side of an automatic crop: a multiple of 32, which every network takes without padding."""
    return max(min(512, photo * 3 // 4 // 32 * 32), min(photo, 32))


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/cityseg``, or ``~/.cache/cityseg``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cityseg"


def automatic_workers() -> int:
    """Loader processes that suit this machine: one a core up to 8 beside a GPU, half the cores where they train too."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, 8) if torch.cuda.is_available() else min(cores // 2, 4)
    log.info("data.workers=auto: %d loader processes on %d cores", workers, cores)
    return workers
