"""Paths that a user gives and reads; light, so that a wrong one is told before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cityseg.errors import CheckpointError, DataError


def shown(path: Path) -> Path:
    """A path as short as a shell in this folder takes it.

    >>> str(shown(Path.cwd() / "outputs")), str(shown(Path("/elsewhere")))
    ('outputs', '/elsewhere')
    """
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def check_data_root(root: str | None) -> None:
    """Refuse a ``data.root`` that is no folder, no URL (of packed data, read later), and not null for the scenes.

    Raises:
        DataError: naming it.
    """
    path = Path(str(root)).expanduser()
    if root is not None and "://" not in str(root) and not path.is_dir():
        raise DataError(
            f"data.root={root}: {'is a file' if path.exists() else 'no such folder'}, expected the folder of a data "
            "set. Fix: correct the path, or leave data.root out for the built-in scenes"
        )


def check_checkpoints(paths: object) -> None:
    """Refuse a key `ckpt` that does not name files, one or several, and say what is beside the first missing one.

    Raises:
        CheckpointError: naming the file.
    """
    several = paths if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths]
    for path in [Path(str(path)).expanduser() for path in several]:
        if not path.is_file():
            names = ", ".join(sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
            raise CheckpointError(f"ckpt={path}: no such file{names and f'; {path.parent} holds {names}'}")
