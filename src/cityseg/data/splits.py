"""Cross-validation: which training images a fold trains on, chooses its checkpoint by, and is tested on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn import model_selection

from cityseg.data.samples import describe_folder
from cityseg.data.split_files import Indices, Split, read_groups, read_split
from cityseg.errors import ConfigError, DataError, Problems

BY_CITY = "city"  # groups that the data set itself knows
GROUP_FILE = "cv.groups=FILE.csv with the columns file,group names the city or drive of every photo"
PARTNERS = 500  # images that one image is offered to change folds with
PASSES = 5
DRAWS = 100  # orders of the groups that a repeat chooses from

Units = npt.NDArray[np.str_]
Flags = npt.NDArray[np.bool_]
Rng = np.random.Generator


@dataclass(frozen=True)
class TrainingImages:
    """What a strategy may ask about the training images: their paths relative to the root, and what is found out."""

    names: Sequence[str]
    cities: Callable[[], Sequence[str]]
    class_pixels: Callable[[], npt.NDArray[np.int32]]  # (N, C), of each class in each image


class Strategy(ABC):
    """How training images are divided into folds."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of folds, repeats included."""

    @abstractmethod
    def __call__(self, images: TrainingImages, fold: int) -> Split:
        """Divide the images for one fold, numbered from 0.

        Raises:
            CitysegError: if that cannot be.
        """

    def groups_of(self, images: TrainingImages) -> Sequence[str] | None:
        """Group of each image where no group may be in two parts, else None."""
        return None


@dataclass(frozen=True, kw_only=True)
class Folds(Strategy):
    """Base of the strategies that divide the images themselves; each image is held out once in each repeat."""

    folds: int = 5
    seed: int = 42  # of the first repeat; repeat r takes seed + r. Inner validation parts follow from (seed, fold)
    inner_val: float = 0.1  # share of a fold's other images that choose its checkpoint, at least one; 0 for none
    repeats: int = 1  # fold numbers go on from one to the next

    def __post_init__(self) -> None:
        """Check the options."""
        problems = Problems("the cross-validation config")
        for name, least in {"folds": 2, "repeats": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                problems.add(f"cv.{name}: found {getattr(self, name)}, expected a whole number of at least {least}")
        if self.seed + self.repeats > 2**32:
            problems.add(f"cv.seed: found {self.seed}, expected at most {2**32 - self.repeats}")
        if not 0 <= self.inner_val < 1:
            problems.add(
                f"cv.inner_val: found {self.inner_val}, expected a share from 0 to below 1, as 0.1; 0 trains a fixed "
                "schedule and takes the last weights"
            )
        problems.raise_if_any(ConfigError)

    @property
    def count(self) -> int:
        """Number of folds, repeats included."""
        return self.folds * self.repeats

    def __call__(self, images: TrainingImages, fold: int) -> Split:
        """Divide the images for one fold, see :class:`Strategy`."""
        _check_fold(fold, self.count, f"cv.folds={self.folds}, cv.repeats={self.repeats}")
        groups = self.groups_of(images)
        units = np.asarray(images.names if groups is None else groups)
        if (found := len(np.unique(units))) < self.folds:
            what, fix = "training images", "more images"
            if groups is not None:
                what = f"groups of training images ({', '.join(np.unique(units))})"
                fix = f"smaller groups: {GROUP_FILE}"
            fewer = f"cv.folds={found}, or " if found >= 2 else ""
            raise ConfigError(
                f"cv.folds={self.folds}: found {found} {what}, expected at least one for each fold. Fix: {fewer}{fix}"
            )
        repeat, number = divmod(fold, self.folds)
        held_out_in = self._assign(images, units, repeat)
        rest, test = np.flatnonzero(held_out_in != number), np.flatnonzero(held_out_in == number)
        val = np.zeros(0, np.int64)
        if self.inner_val > 0:
            for other in range(self.folds):  # every fold, not only the first to run
                if len(np.unique(units[held_out_in != other])) < 2:
                    raise ConfigError(
                        f"cv.inner_val={self.inner_val}: fold {repeat * self.folds + other} leaves 1 "
                        f"{'image' if groups is None else 'group of images'} beside its test part, expected at least "
                        "2, one to train on and one to choose the checkpoint by. Fix: cv.inner_val=0, which trains a "
                        "fixed schedule and takes the last weights; or more folds or data"
                    )
            count = min(max(round(self.inner_val * len(rest)), 1), len(rest) - 1)
            val = rest[self._inner(images, units, rest, count, np.random.default_rng([self.seed, fold]))]
        return Split(np.setdiff1d(rest, val), val, test)

    @abstractmethod
    def _assign(self, images: TrainingImages, units: Units, repeat: int) -> Indices:
        """Fold ``(N,)``, from 0, that each image is held out in; an image's unit is its name, or its group."""

    @abstractmethod
    def _inner(self, images: TrainingImages, units: Units, rest: Indices, count: int, rng: Rng) -> Flags:
        """Which images of the rest ``(R,)`` are the inner validation part, about `count` of them."""


@dataclass(frozen=True, kw_only=True)
class KFold(Folds):
    """Shuffled folds: repeat r is scikit-learn's ``KFold(folds, shuffle=True, random_state=seed + r)``."""

    def _assign(self, images: TrainingImages, units: Units, repeat: int) -> Indices:
        folds = model_selection.KFold(self.folds, shuffle=True, random_state=self.seed + repeat)
        return _fold_of_each(folds.split(units), len(units))

    def _inner(self, images: TrainingImages, units: Units, rest: Indices, count: int, rng: Rng) -> Flags:
        return rng.permutation(len(rest)) < count


@dataclass(frozen=True, kw_only=True)
class Stratified(Folds):
    """Folds of equal size in which every class has about the same number of pixels, see :func:`balanced_parts`."""

    def _assign(self, images: TrainingImages, units: Units, repeat: int) -> Indices:
        sizes = [len(part) for part in np.array_split(units, self.folds)]
        return balanced_parts(images.class_pixels(), sizes, np.random.default_rng(self.seed + repeat))

    def _inner(self, images: TrainingImages, units: Units, rest: Indices, count: int, rng: Rng) -> Flags:
        return np.asarray(balanced_parts(images.class_pixels()[rest], [len(rest) - count, count], rng) == 1, bool)


@dataclass(frozen=True, kw_only=True)
class Grouped(Folds):
    """Folds of whole groups, such as cities or drives, with about the same number of images.

    The first repeat is scikit-learn's ``GroupKFold(folds)``: the largest group first, each to the fold with the fewest
    images. That leaves nothing to the seed, so later repeats take the groups in random orders, and of :data:`DRAWS`
    orders the one with the most even folds. (Shuffling by ``GroupKFold`` itself ignores the groups' sizes.)

    Attributes:
        groups: ``city``, which the data set has to know, or a CSV file with the columns ``file,group``.
    """

    groups: str = BY_CITY

    def groups_of(self, images: TrainingImages) -> Sequence[str]:
        """Group of each image, see :class:`Strategy`."""
        return _find_groups(self.groups, images)

    def _assign(self, images: TrainingImages, units: Units, repeat: int) -> Indices:
        _, group_of_image, sizes = np.unique(units, return_inverse=True, return_counts=True)
        if repeat == 0:
            folds = model_selection.GroupKFold(self.folds).split(group_of_image, groups=group_of_image)
            return _fold_of_each(folds, len(group_of_image))
        generator = np.random.default_rng(self.seed + repeat)
        draws = [_fill_lightest(sizes, self.folds, generator.permutation(len(sizes))) for _ in range(DRAWS)]
        unevenness = [np.square(np.bincount(draw, sizes, self.folds)).sum() for draw in draws]
        return draws[int(np.argmin(unevenness))][group_of_image]

    def _inner(self, images: TrainingImages, units: Units, rest: Indices, count: int, rng: Rng) -> Flags:
        _, group_of_image, sizes = np.unique(units[rest], return_inverse=True, return_counts=True)
        chosen = _groups_nearest(sizes, self.inner_val * len(rest), rng.permutation(len(sizes)))
        return np.isin(group_of_image, chosen)


@dataclass(frozen=True, kw_only=True)
class Files(Strategy):
    """Splits that a user wrote down, or an earlier run did."""

    path: (
        str | None
    )  # a CSV file with the columns file,part for a single fold, or a folder of fold0.csv, fold1.csv, ...
    groups: str | None = None  # as in Grouped, to refuse files with a group in two parts; None to allow that

    def __post_init__(self) -> None:
        """Check the path."""
        self._files()

    @property
    def count(self) -> int:
        """Number of folds."""
        return len(self._files())

    def __call__(self, images: TrainingImages, fold: int) -> Split:
        """Read the split of one fold, see :class:`Strategy`."""
        files = self._files()
        _check_fold(fold, len(files), f"cv.path={self.path}")
        split = read_split(files[fold], images.names)
        for part, indices in split.items():
            if part != "val" and not len(indices):
                raise DataError(
                    f"{files[fold]}: no file has the part {part}, expected at least one. Fix: only val may be empty"
                )
        return split

    def groups_of(self, images: TrainingImages) -> Sequence[str] | None:
        """Group of each image, see :class:`Strategy`."""
        return None if self.groups is None else _find_groups(self.groups, images)

    def _files(self) -> list[Path]:
        path = None if self.path is None else Path(self.path).expanduser()
        if path is not None and path.is_file():
            return [path]
        if path is None or not (path / "fold0.csv").is_file():
            raise ConfigError(
                f"cv.path: {'found none' if path is None else describe_folder(path)}, expected a CSV file with the "
                "columns file,part, or a folder of fold0.csv, fold1.csv, ..."
            )
        files = [path / f"fold{number}.csv" for number in range(len(list(path.glob("fold*.csv"))))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise DataError(f"cv.path: {describe_folder(path)}, but no {missing[0]}. Fix: number the folds from 0 on")
        return files


def balanced_parts(pixels: npt.NDArray[np.int32], sizes: Sequence[int], generator: np.random.Generator) -> Indices:
    """Part ``(N,)`` int64 of each image, so that parts of given sizes have their shares of the pixels of every class.

    This is stratification of multi-label data (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011), with pixels for
    labels. Their greedy rule looks at the rarest class of an image alone; a street scene shows most classes. So the
    parts are drawn at random, and images of two parts change places while that brings the parts nearer to their shares
    (exchanges as of Kernighan and Lin, Bell System Technical Journal 49, 1970). Nearness is the sum of squares, over
    parts and classes, of the difference in share of the class's pixels: a rare class counts as much as road.

    Args:
        pixels: ``(N, C)`` of each class in each image.
        sizes: images in each part, sum N.
        generator: draws the first parts, and the partners in exchange.
    """
    count, parts = len(pixels), len(sizes)
    totals = np.maximum(pixels.sum(axis=0, dtype=np.int64), 1)
    # Shares in millionths: whole numbers give the same parts on every machine.
    shares = np.asarray(np.rint(pixels / totals * 1e6), np.int64)
    part_of = generator.permutation(np.repeat(np.arange(parts), sizes))
    excess = np.stack([shares[part_of == part].sum(axis=0) for part in range(parts)])
    excess -= np.rint(np.outer(sizes, shares.sum(axis=0)) / count).astype(np.int64)
    for _ in range(PASSES):
        exchanged = False
        for image in generator.permutation(count):
            partners = generator.choice(count, min(count, PARTNERS), replace=False)
            own, others = part_of[image], part_of[partners]
            gained = shares[partners] - shares[image]  # by the own part, lost by the other; within one part change >= 0
            change = (gained * (excess[own] - excess[others] + gained)).sum(axis=1)
            best = int(change.argmin())
            if change[best] < 0:
                excess[own] += gained[best]
                excess[others[best]] -= gained[best]
                part_of[image], part_of[partners[best]] = others[best], own
                exchanged = True
        if not exchanged:
            break
    return part_of


def _groups_nearest(sizes: npt.NDArray[np.int64], wanted: float, order: Indices) -> list[int]:
    """The groups, at least one and not all, whose sizes add up nearest to a number; ties are broken by the order."""
    reached: dict[int, tuple[int, ...]] = {0: ()}  # sum -> groups
    for group in order:
        for total, chosen in list(reached.items()):
            larger = total + int(sizes[group])
            # A sum of several groups beyond twice the number is farther off than any one group of them.
            if (not chosen or larger <= 2 * wanted) and len(chosen) + 1 < len(sizes):
                reached.setdefault(larger, (*chosen, int(group)))
    del reached[0]
    return list(reached[min(reached, key=lambda total: abs(total - wanted))])


def _fill_lightest(sizes: npt.NDArray[np.int64], folds: int, order: Indices) -> Indices:
    """Fold of each group when, in this order, each goes to the fold with the fewest images."""
    fold_of, images = np.zeros(len(sizes), np.int64), np.zeros(folds, np.int64)
    for group in order:
        fold_of[group] = images.argmin()
        images[fold_of[group]] += sizes[group]
    return fold_of


def _fold_of_each(folds: Iterable[tuple[Indices, Indices]], count: int) -> Indices:
    fold_of = np.zeros(count, np.int64)
    for number, (_, held_out) in enumerate(folds):
        fold_of[held_out] = number
    return fold_of


def _find_groups(source: str, images: TrainingImages) -> Sequence[str]:
    """Group of each image: its city, or what a file says."""
    return images.cities() if source == BY_CITY else read_groups(Path(source).expanduser(), images.names)


def _check_fold(fold: int, count: int, because: str) -> None:
    if type(fold) is not int or not 0 <= fold < count:
        expected = f"a whole number from 0 to {count - 1}" if count > 1 else "0, the only one"
        raise ConfigError(f"fold={fold}: expected {expected} ({because})")
