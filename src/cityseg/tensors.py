"""Files of tensors and plain values, read without running anything in them and without more memory than they take."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from cityseg.errors import CheckpointError


def load_tensors(path: Path) -> Any:
    """Read what torch has saved, on the CPU.

    Raises:
        CheckpointError: saying why, without the file's name, if it needs code to load, would unpack to more than its
            own size, or is damaged.
    """
    try:
        check_unpacked_size(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "refused, because it holds more than weights and plain values and loading it could run "
            f"code ({_first_line(error)}). Fix: load it where you trust it and save its state_dict alone"
        ) from error
    except Exception as error:  # what torch and pickle make of damaged bytes has no common base
        raise CheckpointError(
            f"damaged or no checkpoint ({path.stat().st_size} bytes: {_first_line(error)}). Fix: use "
            "another file, such as last.ckpt beside best.ckpt"
        ) from error


def check_unpacked_size(path: Path) -> None:
    """See that a zip archive promises no more bytes than it has: torch and NumPy pack without compressing.

    Raises:
        ValueError: with both sizes.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            promised, size = sum(member.file_size for member in archive.infolist()), path.stat().st_size
        if promised > size:
            raise ValueError(f"it would unpack {size} bytes to {promised}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
