"""Writing files so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from cityseg.errors import CitysegError, WriteError

_held: dict[Path, int] = {}
"""Lock files of the folders that this process keeps to itself, and their numbers on the disk."""
_FIXES = {
    errno.ENOSPC: "make space on the disk",
    errno.EDQUOT: "make space in your quota",
    errno.EROFS: "another folder, since this disk is read-only",
    errno.EACCES: "permissions of the folder, or another one",
    errno.ENOENT: "the folder has gone: bring it back, or start anew",
}


@contextmanager
def fresh_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which gets its name when all is written, and is removed if anything fails.

    Raises:
        WriteError: naming the file and what to do, if the system refuses to write, or a folder that this process has
            locked is no longer there.
    """
    fresh = path.with_name(f".{path.stem}.{os.getpid()}.new{path.suffix}")
    with refusals_named(path):
        for lock, number in _held.items():  # of a folder that has gone the rest is lost: it is not made again
            if lock.parent in path.absolute().parents and lock.stat().st_ino != number:
                raise OSError(errno.ENOENT, "its folder was replaced")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield fresh
            os.replace(fresh, path)
        finally:
            with suppress(OSError):  # of the disk that could not be written to
                fresh.unlink(missing_ok=True)


@contextmanager
def refusals_named(path: Path) -> Iterator[None]:
    """Say of a refusal of the system which file it was about, and what to do.

    Raises:
        WriteError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        fix = _FIXES.get(error.errno or 0, "another folder or disk")
        what = f"not written ({error.strerror or error}); what was there is as it was"
        raise WriteError(f"{path}: {what}. Fix: {fix}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder to this process, and those that it starts, until it is done or dies.

    Raises:
        CitysegError: if another process has it, naming that one.
        WriteError: if the system refuses to write there.
    """
    from pytorch_lightning.utilities import rank_zero_only  # heavy: not needed to answer --help

    if getattr(rank_zero_only, "rank", 0):  # the first process of a run holds it for the others
        yield
        return
    import fcntl  # not on Windows, where all else in this module works

    lock = folder.absolute() / ".lock"
    with ExitStack() as stack:
        with refusals_named(lock):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock.open("ab+", buffering=0))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: loader workers do not inherit it
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().decode() or "another process"
                fix = "wait for it, stop it, or give another name="
                raise CitysegError(f"{folder} is in use by {holder}. Fix: {fix}") from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
            _held[lock] = os.fstat(file.fileno()).st_ino
        stack.callback(_held.pop, lock)
        yield


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is on the disk, not only on its way there, when it gets its name; see :func:`fresh_file`."""
    with fresh_file(path) as fresh, fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see :func:`fresh_file`."""
    with fresh_file(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON.

    Raises:
        ValueError: if a number is not finite.
        WriteError: as :func:`fresh_file`.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
