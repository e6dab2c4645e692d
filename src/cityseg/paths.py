"""Whether the paths that a user gives are there; light, so that a wrong one is told before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cityseg.errors import CheckpointError, DataError


def check_data_root(root: str | None) -> None:
    """See that ``data.root`` is a folder, a URL (of packed data, read later), or null for the built-in scenes.

    Raises:
        DataError: if it is not.
    """
    path = Path(str(root)).expanduser()
    if root is not None and "://" not in str(root) and not path.is_dir():
        what = "is a file" if path.exists() else "no such folder"
        raise DataError(
            f"data.root={root}: {what}, expected the folder of a data set. Fix: correct the path, or leave data.root "
            "out for the built-in scenes"
        )


def check_checkpoints(paths: object) -> None:
    """See that the key `ckpt` names files, one or several.

    Raises:
        CheckpointError: naming the first that is not there, and what is beside it.
    """
    several = paths if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths]
    for path in [Path(str(path)).expanduser() for path in several]:
        if not path.is_file():
            names = ", ".join(sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
            raise CheckpointError(f"ckpt={path}: no such file{names and f'; {path.parent} holds {names}'}")
