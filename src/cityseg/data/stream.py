"""Packed data sets: files inside WebDataset shards on this disk or a remote one, read as if they lay in folders.

An index says in which shard and at which byte each file lies, so that any file is one read of its own bytes: samples,
their order and scores are those of the files that were packed, and nothing is kept on this disk.
"""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any, Self, cast, get_type_hints

import fsspec  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.folders import FoldersDataModule
from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.pairs import PairsDataModule
from cityseg.data.samples import Samples, in_threads
from cityseg.errors import ConfigError, DataError, FileProblem, Problems

INDEX = "index.npz"
FORMAT = 1
LAYOUTS: dict[str, type[SegmentationDataModule]] = {
    layout.layout: layout for layout in (FoldersDataModule, GtFineDataModule, PairsDataModule)
}
AGAIN = "copy the shard again, or pack the files again"


@dataclass(frozen=True, eq=False)
class Pack:
    """What the index of a packed data set says."""

    url: str  # the folder, in any place that fsspec can read
    about: dict[str, Any]  # layout, its settings, the shards (name and bytes), and when they were packed (time_ns)
    names: npt.NDArray[np.bytes_]  # (F,), paths of the files, sorted
    places: npt.NDArray[np.int64]  # (F, 3), number of the shard, first byte and length of each
    splits: dict[str, npt.NDArray[Any]]  # SPLIT/photos and SPLIT/labels (N,) bytes, SPLIT/sizes (N, 2) int32

    @classmethod
    def load(cls, root: str) -> Pack:
        """Read an index.

        Raises:
            CitysegError: if there is none, it is damaged or too new, or fsspec cannot read there.
        """
        url = root if "://" in root else os.path.abspath(Path(root).expanduser())
        where = f"data.root={root}"
        try:
            fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from error
        try:
            arrays = dict(np.load(io.BytesIO(_read(url, INDEX)), allow_pickle=False))
            about = json.loads(arrays.pop("about").item())
            newer = about["format"] > FORMAT or about["layout"] not in LAYOUTS
            if any("/" in shard or "\\" in shard for shard, _ in about["shards"]):
                raise ValueError("a shard outside of the folder")
            pack = cls(url, about, arrays.pop("names"), arrays.pop("places"), arrays)
        except FileNotFoundError as error:
            raise DataError(
                f"{where}: found no {INDEX}, expected the folder that python -m cityseg.data.pack has written"
            ) from error
        except (zipfile.BadZipFile, KeyError, MemoryError, TypeError, ValueError, EOFError) as error:
            raise DataError(f"{where}: {INDEX} is damaged ({error}). Fix: copy it again, or pack again") from error
        if newer:
            raise DataError(f"{where}: written by a newer cityseg (layout {about['layout']}); update")
        return pack

    def place(self, name: str) -> tuple[str, int, int]:
        """Shard, first byte and length of a file.

        Raises:
            FileNotFoundError: if it was not packed.
        """
        key = os.fsencode(name)
        row = int(np.searchsorted(self.names, key))
        if row == len(self.names) or self.names[row] != key:
            raise FileNotFoundError(name)
        shard, start, length = self.places[row].tolist()
        return self.about["shards"][shard][0], start, length

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileProblem: if its shard is missing or too short.
        """
        shard, start, length = self.place(name)
        try:
            content = _read(self.url, shard, start, start + length)
        except FileNotFoundError as error:
            raise FileProblem(name, "missing shard", f"{self.url}/{shard}", AGAIN) from error
        if len(content) != length:
            found = f"{self.url}/{shard}: found {len(content)} bytes from byte {start}, expected {length}"
            raise FileProblem(name, "truncated shard", found, AGAIN)
        return content

    def check_shards(self, problems: Problems) -> None:
        """Add every shard that is missing or of another size to the problems."""

        def found(shard: tuple[str, int]) -> str:
            filesystem, folder = fsspec.core.url_to_fs(self.url)
            try:
                return f"{filesystem.size(f'{folder}/{shard[0]}')} bytes"
            except FileNotFoundError:
                return "no such file"

        shards = self.about["shards"]
        for (shard, size), there in zip(shards, in_threads(found, shards), strict=True):
            if there not in (f"{size} bytes", "None bytes"):  # some servers do not tell
                offender = f"{shard}: found {there}, expected {size} bytes"
                problems.add("shards missing or truncated", offender, fix=AGAIN)


def _read(url: str, name: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes of a file; the filesystem is asked for each time, since it must not be taken along into another process."""
    filesystem, folder = fsspec.core.url_to_fs(url)
    return cast(bytes, filesystem.cat_file(f"{folder}/{name}", start=start, end=end))


class PackedPath(PosixPath):
    """A file of a packed data set, where a path is expected: to be joined, opened for reading and asked its size."""

    pack: Pack | None = None
    inside = ""

    def __truediv__(self, key: str | os.PathLike[str]) -> Self:
        """A file or folder below."""
        path = super().__truediv__(key)
        path.pack, path.inside = self.pack, f"{self.inside}/{key}".lstrip("/")
        return path

    @classmethod
    def of(cls, pack: Pack, inside: str = "") -> Self:
        """The path of a file, or of the folder that the files seem to lie in."""
        path = cls(pack.url, inside) if inside else cls(pack.url)
        path.pack, path.inside = pack, inside
        return path

    def __reduce__(self) -> tuple[Any, ...]:
        """For loader workers that are spawned."""
        return PackedPath.of, (self.pack, self.inside)

    def open(self, *mode: Any, **options: Any) -> io.BytesIO:  # type: ignore[override]
        """The content, as an open file."""
        if self.pack is None:
            raise FileNotFoundError(str(self))
        return io.BytesIO(self.pack.read(self.inside))

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size, and when it was packed."""
        if self.pack is None:
            raise FileNotFoundError(str(self))
        size, time = self.pack.place(self.inside)[2], self.pack.about["time_ns"]
        return os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, size, *(time // 10**9,) * 3), {"st_mtime_ns": time})


class _Packed(SegmentationDataModule):
    """Lists the files of a pack in place of those of a folder; mixed into the layout that was packed."""

    pack: Pack

    def _resolve_root(self) -> Path:
        return PackedPath.of(self.pack)

    def find(self, root: Path, split: str, problems: Problems) -> Samples:
        """The samples of a split, with the sizes that they were packed with."""
        self.pack.check_shards(problems)
        photos, labels, sizes = (self.pack.splits.get(f"{split}/{part}") for part in ("photos", "labels", "sizes"))
        if photos is None or sizes is None:
            problems.add(f"split {split!r} is not packed")
            return Samples.from_paths(root, [], None)
        return Samples(root, photos, labels, sizes)


def stream(root: str | None, *, centers: Any = None, **options: Any) -> SegmentationDataModule:
    """The data module of a packed data set: that of its layout, with the settings it was packed with.

    Args:
        root: folder or URL of the pack.
        centers: of K-means classes, see :class:`PairsDataModule`.
        options: see :class:`SegmentationDataModule`.

    Raises:
        CitysegError: if the index cannot be read, or an option does not go with packed data.
    """
    if root is None:
        raise ConfigError("data=stream: data.root is not set. Fix: the folder that python -m cityseg.data.pack wrote")
    pack = Pack.load(root)
    layout = LAYOUTS[pack.about["layout"]]
    settings = pack.about["settings"] | ({} if centers is None else {"centers": centers})
    module = type(f"Packed{layout.__name__}", (_Packed, layout), {"pack": pack})
    return cast(SegmentationDataModule, module(root, **settings, **options))


# What a config may say is checked against these.
stream.__annotations__ = {**get_type_hints(SegmentationDataModule.__init__), **stream.__annotations__}
