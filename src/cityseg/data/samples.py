"""The list of samples of one split, and the check of it that runs once, before training starts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cityseg.data.images import MAX_PIXELS, Header, read_header
from cityseg.errors import UNPRINTABLE, FileProblem, Problems, printable
from cityseg.labels import ByteArray
from cityseg.machine import available_cores

Item = TypeVar("Item")

QUICK_CHECK = 32
"""Samples of a split that are decoded before training when not everything is."""


class Pair(NamedTuple):
    """Photo and target of one sample: ``(H, W, 3)`` uint8 RGB and ``(H, W)`` uint8 train ids, or None."""

    photo: ByteArray
    target: ByteArray | None


class Reader(Protocol):
    """How one dataset layout turns the files of a sample into arrays. Must be picklable for loader workers."""

    def __call__(self, photo: Path, label: Path | None) -> Pair:
        """Decode one sample.

        Raises:
            FileProblem: naming the file, if it is not what the layout says.
        """
        ...

    def photo_size(self, path: Path, header: Header) -> tuple[int, int]:
        """Height and width of the photo inside a file with this header.

        Raises:
            FileProblem: if a file of this size cannot hold a sample.
        """
        ...


@dataclass
class Samples:
    """The samples of one split.

    Paths are kept as bytes in arrays, relative to the root: a hundred bytes a sample instead of kilobytes, and
    loader workers share the memory.

    Attributes:
        root: folder the paths are relative to.
        photos: ``(N,)`` bytes, paths of the photos.
        labels: ``(N,)`` bytes, paths of the labels, or None for a split without labels. Equal to `photos` where
            one file holds both.
        sizes: ``(N, 2)`` int32, height and width of each photo in its file, known after :func:`check`.
    """

    root: Path
    photos: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.bytes_] | None
    sizes: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))

    @classmethod
    def from_paths(cls, root: Path, photos: Sequence[str], labels: Sequence[str] | None) -> Samples:
        """Build from paths relative to the root."""

        def pack(paths: Sequence[str]) -> npt.NDArray[np.bytes_]:
            longest = max((len(os.fsencode(path)) for path in paths), default=1)
            return np.fromiter(map(os.fsencode, paths), np.dtype((np.bytes_, longest)), len(paths))

        return cls(root, pack(photos), None if labels is None else pack(labels))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.photos)

    def select(self, indices: npt.NDArray[np.int64]) -> Samples:
        """The checked samples at some positions."""
        labels = None if self.labels is None else self.labels[indices]
        return Samples(self.root, self.photos[indices], labels, self.sizes[indices])

    def names(self) -> list[str]:
        """Paths of the photos, relative to the root."""
        return [os.fsdecode(path) for path in self.photos]

    def photo(self, index: int) -> Path:
        """Path of a photo."""
        return self.root / os.fsdecode(self.photos[index])

    def label(self, index: int) -> Path | None:
        """Path of a label, or None where the split has none."""
        return None if self.labels is None else self.root / os.fsdecode(self.labels[index])

    def name(self, index: int) -> str:
        """Name to call results after: the photo's, without its ending."""
        return self.photo(index).stem.removesuffix("_leftImg8bit")


def check(samples: Samples, reader: Reader, *, full: bool, problems: Problems, max_pixels: int = MAX_PIXELS) -> None:
    """Check every header, decode some samples (or all), and fill in the sizes.

    Args:
        samples: what to check; its `sizes` are set.
        reader: decodes a sample, raising FileProblem where it cannot.
        full: decode every sample, with a progress bar, instead of :data:`QUICK_CHECK` spread over the split.
        problems: what is found wrong is added here, nothing is raised.
        max_pixels: of a file; a larger one is refused before it is decoded.
    """
    sizes = np.zeros((len(samples), 2), np.int32)
    known = len(samples.sizes) == len(samples) > 0  # of packed files, whose headers were checked before

    def size_of(index: int) -> Any:
        return samples.sizes[index] if known else _check_headers(samples, reader, index, max_pixels)

    sound = np.zeros(len(samples), bool)
    for index, result in enumerate(in_threads(size_of, range(len(samples)))):
        if isinstance(result, FileProblem):
            problems.add_file(result, samples.root)
        else:
            sizes[index], sound[index] = result, True
    samples.sizes = sizes
    candidates = np.flatnonzero(sound)
    if not full and len(candidates) > QUICK_CHECK:
        candidates = candidates[np.unique(np.linspace(0, len(candidates) - 1, QUICK_CHECK).astype(int))]
    decoded = in_threads(lambda index: _check_content(samples, reader, int(index)), candidates)
    for problem in progress(decoded, len(candidates), "checking every file") if full else decoded:
        if problem is not None:
            problems.add_file(problem, samples.root)


def _check_headers(samples: Samples, reader: Reader, index: int, max_pixels: int) -> tuple[int, int] | FileProblem:
    try:
        photo_path, label_path = samples.photo(index), samples.label(index)
        for path in (photo_path, label_path):
            if UNPRINTABLE.search(str(path)):
                raise FileProblem(path, "a name with control characters, or not in UTF-8", "", "rename the file")
        size = reader.photo_size(photo_path, read_header(photo_path, max_pixels))
        if label_path is not None and label_path != photo_path:
            label = read_header(label_path, max_pixels)
            if (label.height, label.width) != size:
                found = f"the photo is {size[1]}x{size[0]}, {label_path.name} is {label.width}x{label.height}"
                raise FileProblem(photo_path, "photo and label differ in size", found, "write both in one size")
    except FileProblem as problem:
        return problem
    return size


def _check_content(samples: Samples, reader: Reader, index: int) -> FileProblem | None:
    try:
        reader(samples.photo(index), samples.label(index))
    except FileProblem as problem:
        return problem
    return None


def in_threads(work: Callable[[Any], Item], inputs: Sequence[Any] | npt.NDArray[Any]) -> Iterator[Item]:
    """Results in the order of the inputs; no more are under way than memory bears: each call takes a kilobyte."""
    with ThreadPoolExecutor(max_workers=min(8, available_cores() * 2)) as pool:
        for start in range(0, len(inputs), 4096):
            yield from pool.map(work, inputs[start : start + 4096])


def progress(results: Iterable[Item], total: int, description: str) -> Iterable[Item]:
    """Pass results on as they come, with a progress bar on the terminal."""
    from rich.progress import track

    return track(results, total=total, description=description)


def numeric_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that orders the numbers inside names by value.

    >>> sorted(["10.jpg", "9.jpg", "img_2.png"], key=numeric_key)
    ['9.jpg', '10.jpg', 'img_2.png']
    """
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def list_files(root: Path, folder: Path, endings: frozenset[str]) -> list[str]:
    """Files of a folder with these endings, in numeric order (2.jpg before 10.jpg), relative to the root.

    Here and below paths are strings: a million of those are a tenth of what a million Paths are.
    """
    found = os.listdir(folder) if folder.is_dir() else []
    names = sorted((name for name in found if os.path.splitext(name)[1].lower() in endings), key=numeric_key)
    return [os.path.join(folder.relative_to(root), name) for name in names]


def match_labels(
    photos: Sequence[str],
    labels: Sequence[str],
    label_of: Callable[[str], str],
    photo_of: Callable[[str], str],
    problems: Problems,
) -> tuple[list[str], list[str]]:
    """Keep the photos that have a label; report those without, and labels without a photo.

    Args:
        photos: found photos, relative to the root as all paths here.
        labels: found labels.
        label_of: where the label of a photo belongs.
        photo_of: where the photo of a label belongs.
        problems: unmatched files are added here.

    Returns:
        Photos and labels, paired.
    """
    found = set(labels)
    kept: list[str] = []
    for photo in photos:
        if (expected := label_of(photo)) in found:
            kept.append(photo)
        else:
            problems.add(
                "photo without a label",
                f"{photo}: expected {expected}",
                fix="add the missing files, or move the photos away",
            )
    known = set(photos)
    for label in labels:
        if (expected := photo_of(label)) not in known:
            problems.add(
                "label without a photo",
                f"{label}: expected {expected}",
                fix="add the missing files, or move the labels away",
            )
    return kept, [label_of(photo) for photo in kept]


def describe_folder(root: Path, *parts: str) -> str:
    """What the deepest existing folder of a path holds, for the message that something else was expected there."""
    path = root
    for part in parts:
        if not (path / part).exists():
            break
        path = path / part
    if not path.exists():
        parent = path.parent
        there = f"; {parent} holds {_names(parent)}" if parent.is_dir() else ""
        return f"{path} does not exist{there}"
    if not path.is_dir():
        return f"{path} is a file"
    return f"{path} holds {_names(path)}"


def _names(folder: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(map(printable, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
