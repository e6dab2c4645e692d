"""The list of samples of one split, and the check of it that runs once, before training starts."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from cityseg.data.images import MAX_PIXELS, read_header, read_photo
from cityseg.errors import SHOWN, UNPRINTABLE, FileProblem, Problems, printable
from cityseg.labels import ByteArray
from cityseg.machine import available_cores

Item = TypeVar("Item")

QUICK_CHECK = 32  # samples of a split that are decoded before training when not everything is


class Pair(NamedTuple):
    """Photo and target of one sample: ``(H, W, 3)`` uint8 RGB and ``(H, W)`` uint8 train ids, or None."""

    photo: ByteArray
    target: ByteArray | None


class Reader(ABC):
    """How one dataset layout turns the files of a sample into arrays. Must be picklable for loader workers."""

    def __call__(self, photo: Path, label: Path | None) -> Pair:
        """Decode one sample.

        Raises:
            FileProblem: naming a file that is not what the layout says.
        """
        return Pair(read_photo(photo), None if label is None else self.target(label))

    @abstractmethod
    def target(self, label: Path) -> ByteArray:
        """Decode a label alone, likewise, to train ids ``(H, W)`` uint8."""

    def photo_size(self, path: Path, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the photo inside a file of this size.

        Raises:
            FileProblem: if there can be none.
        """
        return size


@dataclass
class Samples:
    """The samples of one split; bytes in arrays take a tenth of what paths do, and loader workers share them.

    Attributes:
        root: folder the paths are relative to.
        photos: ``(N,)`` bytes, paths of the photos.
        labels: ``(N,)`` bytes, paths of the labels (equal to `photos` where one file holds both); None for none.
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

    def fingerprint(self, path_of: Callable[[int], Path | None]) -> str:
        """A hash that changes when a file is added, removed or replaced: of the names, sizes and times of all."""
        digest = hashlib.sha256()
        for path in map(path_of, range(len(self))):
            assert path is not None
            found = path.stat()
            digest.update(f"{path}|{found.st_size}|{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def check(samples: Samples, reader: Reader, *, full: bool, problems: Problems, max_pixels: int = MAX_PIXELS) -> None:
    """Check every header, decode some samples (or all), and fill in the sizes.

    Args:
        samples: what to check; its `sizes` are set.
        reader: decodes a sample, raising FileProblem where it cannot.
        full: decode every sample, with a progress bar, instead of 32 spread over the split.
        problems: what is found wrong is added here, nothing is raised.
        max_pixels: of a file; a larger one is refused before it is decoded.
    """

    def size_of(index: int) -> tuple[int, int]:
        photo, label = samples.photo(index), samples.label(index)
        for path in (photo, label):
            if UNPRINTABLE.search(str(path)):
                raise FileProblem(path, "a name with control characters, or not in UTF-8", "", "rename the file")
        size = reader.photo_size(photo, read_header(photo, max_pixels))
        if label is not None and label != photo and (other := read_header(label, max_pixels)) != size:
            found = f"the photo is {size[1]}x{size[0]}, {label.name} is {other[1]}x{other[0]}"
            raise FileProblem(photo, "photo and label differ in size", found, "write both in one size")
        return size

    def decode(index: int) -> None:
        reader(samples.photo(index), samples.label(index))

    def sound(work: Callable[[int], Item], indices: Sequence[int], bar: str = "") -> Iterator[tuple[int, Item]]:
        def tried(index: int) -> Item | FileProblem:
            try:
                return work(index)
            except FileProblem as problem:
                return problem

        results = in_threads(tried, indices)
        for index, found in zip(indices, progress(results, len(indices), bar) if bar else results, strict=True):
            if isinstance(found, FileProblem):
                problems.add_file(found, samples.root)
            else:
                yield index, found

    if len(samples.sizes) != len(samples):  # those of packed files are known: their headers were checked before
        samples.sizes = np.zeros((len(samples), 2), np.int32)
        for index, size in sound(size_of, range(len(samples))):
            samples.sizes[index] = size
    known = np.flatnonzero(samples.sizes.any(axis=1))
    if not full and len(known) > QUICK_CHECK:
        known = known[np.unique(np.linspace(0, len(known) - 1, QUICK_CHECK).astype(int))]
    for _ in sound(decode, known.tolist(), "checking every file" if full else ""):
        pass


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
    """Sort key that orders the numbers inside names by value."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def list_files(root: Path, folder: Path, endings: frozenset[str]) -> list[str]:
    """Files of a folder with these endings, in numeric order (2.jpg before 10.jpg), relative to the root."""
    # Strings: a million of those are a tenth of what a million Paths are.
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
    """Keep the photos that have a label, and report those without, and labels without a photo.

    Args:
        photos: found photos, relative to the root as all paths here.
        labels: found labels.
        label_of: where the label of a photo belongs.
        photo_of: where the photo of a label belongs.
        problems: unmatched files are added here.
    """
    found, known = set(labels), set(photos)
    for title, files, where, there in (
        ("photo without a label", photos, label_of, found),
        ("label without a photo", labels, photo_of, known),
    ):
        for file in files:
            if (expected := where(file)) not in there:
                fix = f"add the missing files, or move the {title.split()[0]}s away"
                problems.add(title, f"{file}: expected {expected}", fix=fix)
    kept = [photo for photo in photos if label_of(photo) in found]
    return kept, [label_of(photo) for photo in kept]


def describe_folder(root: Path, *parts: str) -> str:
    """What the deepest existing folder of a path holds, for the message that something else was expected there."""
    path = root
    for part in parts:
        if not (path / part).exists():
            break
        path /= part
    if path.is_dir():
        return f"{path} holds {_names(path)}"
    if path.exists():
        return f"{path} is a file"
    return f"{path} does not exist" + (f"; {path.parent} holds {_names(path.parent)}" if path.parent.is_dir() else "")


def _names(folder: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(printable, names[:SHOWN])) + more or "nothing"
