"""Decoded samples on disk, shared by folds, jobs and processes (``data.cache=disk``).

``python -m cityseg.data.cache`` lists them and removes those that are no longer used.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import math
import os
import pickle
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import torch
from rich.filesize import decimal as readable_bytes

from cityseg.data.decoded import PHOTOS, TARGETS, USABLE, CachedPairs, FilePairs, Stack, bytes_needed
from cityseg.errors import DataError
from cityseg.files import refusals_named, write_json

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every cache's name: raised whenever the same files and settings would give other bytes."""

MADE_BY = "cityseg decoded cache"
FOLDER, DATA, INDEX = "decoded", "data.bin", "index.json"
UNFINISHED = re.compile(r"\.index\.\d+\.new\.json")
NAME = re.compile(r".*-(photos|targets)-[0-9a-f]{16}")


def on_disk(cache_dir: Path, splits: Sequence[FilePairs]) -> list[CachedPairs]:
    """Map decoded samples of whole splits from disk, and decode first what is not there as the files are now.

    Of several processes that want the same, one decodes and the others wait. Photos and targets are kept apart:
    another way to read labels, as the clusters of another fold, needs other targets of the same photos.

    Raises:
        DataError: if they do not fit, before anything is decoded; naming a file that cannot be decoded, or one that
            is in the way.
    """
    entries = [[_Entry(cache_dir, split, channels) for channels in (PHOTOS, TARGETS)] for split in splits]
    named = {entry.folder: entry for both in entries for entry in both}
    with contextlib.ExitStack() as locks:
        for folder in sorted(named):  # all in one order, so that no two processes wait for each other
            with refusals_named(folder):
                (lock := _lock_file(folder)).touch()
            locks.enter_context(_locked(lock))
        missing = {folder: entry for folder, entry in named.items() if not entry.is_sound()}
        needed, free = sum(entry.bytes for entry in missing.values()), shutil.disk_usage(cache_dir).free
        if needed > USABLE * free:
            raise DataError(
                f"data.cache=disk: decoded photos and labels take {readable_bytes(needed)}, expected at most "
                f"{USABLE:.0%} of the {readable_bytes(free)} that are free for {cache_dir}. Fix: remove old caches "
                "(python -m cityseg.data.cache --prune DAYS), data.cache_dir on a larger disk, data.cache=none, or a "
                "smaller data.scale"
            )
        if not missing:
            log.info("data.cache=disk: everything is decoded already, in %s", cache_dir / FOLDER)
        for split, both in zip(splits, entries, strict=True):
            _build(split, *(missing.pop(entry.folder, None) for entry in both))
        # Opened under the lock: from here on they are in use.
        return [CachedPairs(photos.open(), targets.open(), np.arange(len(photos.sizes))) for photos, targets in entries]


class _Entry:
    """The place of the photos or targets of a split on disk: one for each way of decoding them."""

    def __init__(self, cache_dir: Path, pairs: FilePairs, channels: int) -> None:
        self.channels, self.sizes = channels, pairs.sizes(channels)
        samples, view, split = pairs.samples, pairs.view, pairs.split
        kind, path_of = ("photos", samples.photo) if channels == PHOTOS else ("targets", samples.label)
        how = (
            (str(samples.root), split, kind, view.crop, FORMAT, PIL.__version__, cv2.__version__),
            float(view.scale) if channels == PHOTOS or view.scale_target else 1.0,
            type(pairs.reader).__name__ if channels == PHOTOS else pickle.dumps(pairs.reader),
        )
        place = hashlib.sha256(repr(how).encode()).hexdigest()[:16]
        self.folder = cache_dir / FOLDER / f"{samples.root.name}-{split}-{kind}-{place}"
        self.data = self.folder / DATA
        self.bytes = bytes_needed(self.sizes, channels)
        made_of = np.ascontiguousarray(self.sizes).tobytes() + samples.fingerprint(path_of).encode()
        self.index: Mapping[str, Any] = {
            "made_by": MADE_BY,
            "data": str(samples.root),
            "split": split,
            "kind": kind,
            "pictures": len(samples),
            "bytes": self.bytes,
            "made_of": hashlib.sha256(made_of).hexdigest(),
        }

    def is_sound(self) -> bool:
        """Whether it may be used as it is; says why not, and removes what may not be used."""
        if not self.folder.exists():
            return False
        found, length = _read_index(self.folder), _size(self.data)
        if found is None:
            why = "unfinished"
        elif found != self.index:
            why = "stale: files were added, removed or changed since it was made"
        elif length != self.bytes:
            why = f"damaged: {length} bytes, expected {self.bytes}"
        else:
            os.utime(self.folder / INDEX)  # last used
            return True
        log.warning("data.cache=disk: %s is %s. It is made anew", self.folder, why)
        self.clear()
        return False

    def clear(self) -> None:
        """Remove it; who has it open can go on reading."""
        if self.folder.exists():
            (self.folder / INDEX).unlink(missing_ok=True)
            _flush(self.folder)  # an index that outlives its data would be believed after a power failure
            self.data.unlink(missing_ok=True)

    def create(self) -> Stack:
        """A file to be filled in."""
        with refusals_named(self.data):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.data.open("xb") as file:
                if hasattr(os, "posix_fallocate"):  # writing to a mapped file kills the process if the disk is full
                    os.posix_fallocate(file.fileno(), 0, self.bytes)
        mapped = torch.from_file(str(self.data), shared=True, size=self.bytes, dtype=torch.uint8)
        return Stack(mapped, self.sizes, self.channels)

    def finish(self) -> None:
        """Declare the data complete: without an index they are never used."""
        with refusals_named(self.data):
            _flush(self.data)
            _flush(self.folder)
        write_json(self.folder / INDEX, self.index)

    def open(self) -> Stack:
        """The pictures, of which only the rows that are looked at are read."""
        return Stack(self.data, self.sizes, self.channels)


def _build(split: FilePairs, photos: _Entry | None, targets: _Entry | None) -> None:
    new = [entry for entry in (photos, targets) if entry is not None]
    if not new:
        return
    kinds, size = " and ".join(entry.index["kind"] for entry in new), readable_bytes(sum(entry.bytes for entry in new))
    log.info("caching %d %s %s on disk: %s", len(split), split.split, kinds, size)
    try:
        split.decode(*(None if entry is None else entry.create() for entry in (photos, targets)))
        for entry in new:
            entry.finish()
    except BaseException:
        for entry in new:
            entry.clear()
        raise


def _read_index(folder: Path) -> dict[str, Any] | None:
    """What a cache says of itself; None if it was not finished, and a DataError if it is none."""
    names = {name for name in os.listdir(folder) if not UNFINISHED.fullmatch(name)}
    strange = sorted(names - {DATA, INDEX})
    index: dict[str, Any] | None = None
    with contextlib.suppress(FileNotFoundError, ValueError):
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    own = index is None or (isinstance(index, dict) and index.get("made_by") == MADE_BY)
    if strange or not own or not NAME.fullmatch(folder.name):
        found = f"found {', '.join(strange[:3])}" if strange else f"{INDEX} is of something else"
        raise DataError(
            f"{folder}: not a decoded cache ({found}), left as it is. Fix: move it away, or another data.cache_dir"
        )
    return index


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _lock_file(folder: Path) -> Path:
    """Beside the cache, and never removed: another process may be waiting for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a file's lock alone, which the system releases if this process dies; yields whether it is held."""
    import fcntl  # not on Windows, where all else in this module works

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            log.info("data.cache=disk: waiting for another process that decodes, by %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing it would leave the lock to processes forked meanwhile


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/cityseg``, or ``~/.cache/cityseg``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cityseg"


def _days(text: str) -> float:
    days = -math.inf if text == "all" else float(text)
    if math.isnan(days) or (days < 0 and text != "all"):
        raise ValueError
    return days


def _line(folder: Path, prune: float | None) -> str:
    """Describe one cache; remove it if it is due and nobody uses it."""
    index, data = _read_index(folder), folder / DATA
    size = readable_bytes(_size(data))
    used = (folder / INDEX if index else folder).stat().st_mtime
    with contextlib.ExitStack() as locks:
        files = [_lock_file(folder), *([data] if data.exists() else [])]
        state = "" if all(locks.enter_context(_locked(file, wait=False)) for file in files) else "in use"
        if prune is not None and not state and (index is None or time.time() - used > prune * 86400):
            shutil.rmtree(folder)
            state = "removed"
    what = f"{index['data']} {index['split']}, {index['pictures']} {index['kind']}" if index else "unfinished"
    last = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
    return "  ".join([folder.name, what, size, f"last used {last}", state]).rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """List the caches, and remove some; returns the exit code, 1 if there is something else among them."""
    what = "List the decoded samples that data.cache=disk has left, and remove those that are no longer used."
    parser = argparse.ArgumentParser(prog="python -m cityseg.data.cache", description=what)
    parser.add_argument("--dir", type=Path, default=default_cache_dir(), help="data.cache_dir (default: %(default)s)")
    what = "remove those last used more than DAYS days ago, or all; never one that is in use"
    parser.add_argument("--prune", type=_days, metavar="DAYS", help=what)
    options = parser.parse_args(arguments)
    folders = sorted(path for path in (options.dir.expanduser() / FOLDER).glob("*") if path.is_dir())
    print(f"{len(folders)} decoded caches in {options.dir}")
    code = 0
    for folder in folders:
        try:
            print(_line(folder, options.prune))
        except DataError as error:
            code = 1
            print(error, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
