"""What every dataset layout shares: the checked index of a split, and the loaders over it."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cityseg.data.cache import default_cache_dir, on_disk
from cityseg.data.decoded import CachedPairs, FilePairs, Pairs, View, in_memory
from cityseg.data.images import MAX_PIXELS
from cityseg.data.loading import (
    Batch,
    SameSizeBatches,
    TrainBatches,
    TrainDataset,
    TrainLoader,
    WholeDataset,
    automatic_workers,
    collate,
    notice_lost_workers,
    quiet_worker,
)
from cityseg.data.samples import Reader, Samples, check
from cityseg.data.scenes import scenes_root
from cityseg.data.split_files import Split, check_leaks
from cityseg.data.splits import GROUP_FILE, Strategy, TrainingImages
from cityseg.data.statistics import class_balanced_probabilities, image_class_pixels
from cityseg.data.transforms import Augment
from cityseg.errors import ConfigError, DataError, Problems
from cityseg.labels import LabelSpace
from cityseg.paths import check_data_root

Layout = Literal["gtfine", "pairs", "folders"]
Size = int | tuple[int, int]


class SegmentationDataModule(pl.LightningDataModule):
    """Base of the layouts; a layout adds how its files are found (:meth:`find`) and read (`reader`).

    Args:
        root: folder of the data set; None for the built-in scenes, written in this layout.
        label_space: the classes.
        augment: draws the training crops.
        crop: height and width, or one number for both, of training crops in pixels of the scaled photos, cut to the
            longest photo; ``auto`` is 512, or three quarters of smaller photos.
        batch_size: training crops a step, on each device; with ``auto`` to be set before training.
        eval_batch_size: whole images of one size a step in validation and test.
        workers: loader processes, or ``auto``.
        timeout: seconds that a batch of theirs is waited for before they count as hanging.
        scale: size at which photos are loaded, relative to the files. Training targets are scaled with them;
            evaluation targets keep their resolution, and so do scores.
        val_crop: side, or height and width, in pixels of the files, of the centre that evaluation is limited to; None
            or ``none`` evaluates whole images, as is the standard.
        cache: ``ram`` keeps the decoded samples of training and validation in memory, ``disk`` those of whole splits
            in the cache folder, for all folds and jobs (:func:`cityseg.data.cache.on_disk`).
        sampling: ``uniform`` shows every training image once an epoch, ``class_balanced`` draws as many with
            replacement, those with rare classes more often (:func:`class_balanced_probabilities`).
        max_pixels: of a photo or label file; a larger one is refused before it is decoded.
        verify: ``quick`` checks every header and decodes a few files before training, ``full`` decodes all of them.
        seed: of the run; orders and crops derive from it.
        cache_dir: where scenes, decoded samples and counted class pixels are kept; None for ``~/.cache/cityseg``.
        scenes: number of built-in ``train`` and ``val`` scenes and their ``size``, if other than the defaults.
    """

    layout: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    reader: Reader

    def __init__(
        self,
        root: str | None,
        label_space: LabelSpace,
        *,
        augment: Augment,
        crop: Size | Literal["auto"],
        batch_size: int | Literal["auto"],
        eval_batch_size: int,
        workers: int | Literal["auto"] = "auto",
        timeout: float = 600,
        scale: float = 1.0,
        val_crop: Size | Literal["none"] | None = None,
        cache: Literal["none", "ram", "disk"] = "none",
        sampling: Literal["uniform", "class_balanced"] = "uniform",
        max_pixels: int = MAX_PIXELS,
        verify: Literal["quick", "full"] = "quick",
        seed: int = 0,
        cache_dir: str | None = None,
        scenes: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.builtin = root is None
        self.label_space = label_space
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.batch_size = batch_size
        self.split: tuple[list[str], Split] | None = None  # files of a run and their parts
        self._root, self._scenes = root, scenes or {}
        self._augment, self._crop, self._eval_batch_size = augment, crop, eval_batch_size
        self._workers = automatic_workers() if workers == "auto" else workers
        self._timeout, self._scale, self._max_pixels, self._seed = timeout, scale, max_pixels, seed
        self._cache, self._sampling, self._verify = cache, sampling, verify
        self._samples: dict[str, Samples] = {}
        self._whole: tuple[Samples, Split] | None = None  # the training files, and their parts in a fold
        self._cached: dict[tuple[str, View], CachedPairs] = {}
        self._train_view = View(scale, scale_target=True)
        self._eval_view = View(scale, crop=None if isinstance(val_crop, str | None) else _height_and_width(val_crop))
        problems = Problems("the data config")  # types are checked with the config
        at_least_1 = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_pixels": max_pixels}
        for name, found in (at_least_1 | {"crop": crop, "val_crop": val_crop}).items():
            if not isinstance(found, str | None) and min(_height_and_width(found)) < 1:
                problems.add(f"data.{name}: found {found}, expected a whole number of at least 1")
        if self._workers < 0:
            problems.add(f"data.workers: found {workers}, expected 'auto' or a whole number from 0")
        if not 0 < scale <= 1:
            expected = "a number above 0 and at most 1, as 0.5 for half the resolution"
            problems.add(f"data.scale: found {scale}, expected {expected}; augment.scale enlarges training crops")
        if unknown := set(self._scenes) - {"train", "val", "size", "seed"}:
            problems.add(f"data.scenes: found {', '.join(sorted(unknown))}, expected only train, val, size and seed")
        problems.raise_if_any(ConfigError)

    @abstractmethod
    def find(self, root: Path, split: str, problems: Problems) -> Samples:
        """List the samples of a split; what is wrong with the folder is added to the problems."""

    def check_split(self, samples: Samples, problems: Problems) -> None:
        """Look at a split whose files are sound as a whole; a layout adds what it finds to the problems."""

    def cities(self, names: Sequence[str]) -> Sequence[str]:
        """City of each file of a whole split.

        Raises:
            CitysegError: if it is not known.
        """
        raise ConfigError(f"data={self.layout} does not say which city a photo is from. Fix: {GROUP_FILE}")

    def keep_splits(self) -> None:
        """Train and validate on the folders' own splits.

        Raises:
            DataError: if one is unsound, or leaks into the other.
        """
        self.index(["train", "val"])
        train, val = self.samples("train"), self.samples("val")
        names, every = train.names() + val.names(), np.arange(len(train) + len(val))
        self.split = names, Split(every[: len(train)], every[len(train) :], every[:0])
        check_leaks(train.root, *self.split)

    def divide(self, strategy: Strategy, fold: int) -> None:
        """Make the training files the train, val and test split of a fold.

        Raises:
            CitysegError: if they cannot be that.
        """
        full = self.samples("train")
        names = full.names()
        images = TrainingImages(names, lambda: self.cities(names), lambda: image_class_pixels(self))
        split = strategy(images, fold)
        check_leaks(full.root, names, split, strategy.groups_of(images))
        self.split, self._whole = (names, split), (full, split)
        self._samples = {part: full.select(indices) for part, indices in split.items()}

    def fit_labels(self) -> dict[str, Any]:
        """Find in the training labels what a layout does not know of its classes, once, before training.

        Returns:
            Arguments of the layout that make the same classes without finding them again.
        """
        return {}

    @property
    def dataset_name(self) -> str:
        """What results call the data: the folder, or the built-in scenes."""
        return f"built-in scenes ({self.layout})" if self._root is None else str(self._root)

    @property
    def protocol(self) -> str:
        """What scores are computed on, in words, for whoever compares them."""
        crop = self._eval_view.crop
        what = "whole images" if crop is None else f"not the standard: centre crops of at most {crop[1]}x{crop[0]} px"
        photos = "" if self._scale == 1 else f", photos loaded at {self._scale} of their resolution"
        return f"{what} at the resolution of the ground truth{photos}"

    def index(self, splits: Sequence[str]) -> None:
        """Find and check the files of some splits, once.

        Raises:
            DataError: with every problem of every split.
        """
        if not (missing := [split for split in splits if split not in self._samples]):
            return
        root = self._resolve_root()
        problems = Problems(f"the data in {root} (data={self.layout})")
        for split in missing:
            if split not in self.splits:
                problems.add(f"no split {split!r}", fix=f"split is one of {', '.join(self.splits)}")
                continue
            samples = self.find(root, split, problems)
            sound, full = not problems, self._verify == "full"
            check(samples, self.reader, full=full, problems=problems, max_pixels=self._max_pixels)
            if sound and not problems:
                self.check_split(samples, problems)
            self._samples[split] = samples
        problems.raise_if_any(DataError)

    def _resolve_root(self) -> Path:
        check_data_root(self._root)
        if self._root is not None:
            return Path(os.path.abspath(Path(self._root).expanduser()))
        if self.layout not in get_args(Layout):
            raise ConfigError(f"data.root: found null, expected a folder: data={self.layout} has no built-in scenes")
        return scenes_root(cast(Layout, self.layout), cache_dir=self.cache_dir, **self._scenes)

    def samples(self, split: str) -> Samples:
        """The checked samples of a split.

        Raises:
            DataError: if anything is wrong with its files.
        """
        self.index([split])
        return self._samples[split]

    def crop_size(self) -> tuple[int, int]:
        """Height and width of training crops, in pixels of the scaled photos."""
        height, width = self._train_view.photo_sizes(self.samples("train").sizes).max(axis=0).tolist()
        wanted = (_auto_side(height), _auto_side(width)) if self._crop == "auto" else _height_and_width(self._crop)
        return min(wanted[0], height), min(wanted[1], width)

    def eval_sizes(self, split: str) -> npt.NDArray[np.int32]:
        """Height and width ``(N, 2)`` of the photos that a network gets in evaluation, scaled and cropped."""
        return self._eval_view.photo_sizes(self.samples(split).sizes)

    def has_fixed_shapes(self) -> bool:
        """Whether every batch of validation, as of training, holds photos of one size."""
        return len(np.unique(self.eval_sizes("val"), axis=0)) <= 1

    def setup(self, stage: str) -> None:
        """Before loader workers start, check and cache the files of training.

        A process decodes its own parts into memory, or all together whole splits onto the disk.
        """
        if stage != "fit":
            return
        self.index(["train", "val"])
        if self._cache == "none" or self._cached:
            return
        views = {"train": self._train_view, "val": self._eval_view}
        if self._cache == "disk" and self._whole is not None:  # the parts of a fold are of the one whole split
            samples, split = self._whole
            views["test"] = self._eval_view
            whole = on_disk(self.cache_dir, [FilePairs("train", samples, self.reader, view) for view in views.values()])
            cached = [replace(one, indices=part) for one, part in zip(whole, split, strict=True)]
        else:
            wanted = [FilePairs(split, self.samples(split), self.reader, view) for split, view in views.items()]
            copies = self.trainer.num_devices if self.trainer is not None else 1
            cached = on_disk(self.cache_dir, wanted) if self._cache == "disk" else in_memory(wanted, copies)
        self._cached = dict(zip(views.items(), cached, strict=True))

    def _pairs(self, split: str, view: View) -> Pairs:
        return self._cached.get((split, view)) or FilePairs(split, self.samples(split), self.reader, view)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Augmented crops of the training split, in an order of their own for each epoch."""
        pairs = self._pairs("train", self._train_view)
        dataset = TrainDataset(pairs, self._augment, self.crop_size(), self._seed)
        balanced = self._sampling == "class_balanced"
        probabilities = class_balanced_probabilities(image_class_pixels(self)) if balanced else None
        assert self.batch_size != "auto"
        batches = TrainBatches(len(pairs), self.batch_size, self._seed, *self._processes("train"), probabilities)
        return self._loader(dataset, batches, TrainLoader)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Whole images of the validation split."""
        return self.eval_dataloader("val")

    def eval_dataloader(self, split: str) -> DataLoader[Batch]:
        """Whole images (or their centres, with ``val_crop``) of any split, in order."""
        sizes = self._eval_view.target_sizes(self.samples(split).sizes)
        batches = SameSizeBatches(sizes, self._eval_batch_size, *self._processes(split))
        return self._loader(WholeDataset(self._pairs(split, self._eval_view), sizes), batches)

    def _loader(
        self, dataset: Dataset[Any], batches: Sampler[Any], kind: type[DataLoader[Batch]] = DataLoader
    ) -> DataLoader[Batch]:
        notice_lost_workers()
        return kind(
            dataset,
            batch_sampler=batches,
            num_workers=self._workers,
            collate_fn=collate,
            timeout=self._timeout if self._workers else 0,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=quiet_worker,
            # Without a generator of its own a loader draws from torch's global one, and dropout would change with it.
            generator=torch.Generator().manual_seed(self._seed),
        )

    def _processes(self, split: str) -> tuple[int, int]:
        """Which process this is, and how many share a split."""
        trainer, count = self.trainer, len(self.samples(split))
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        if 0 < count < world:
            raise DataError(
                f"{split}: found {count} photos, expected at least one for each of {world} processes. Fix: fewer of "
                "trainer.devices or trainer.num_nodes"
            )
        return rank, world


def _auto_side(photo: int) -> int:
    """Side of an automatic crop: a multiple of 32, which every network takes without padding."""
    return max(min(512, photo * 3 // 4 // 32 * 32), min(photo, 32))


def _height_and_width(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
