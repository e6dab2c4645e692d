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
        CheckpointError: without the file's name, if it needs code, would unpack beyond its own size, or is damaged.
    """
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):  # torch packs without compressing
            with zipfile.ZipFile(path) as archive:
                promised = sum(member.file_size for member in archive.infolist())
            if promised > size:
                raise ValueError(f"it would unpack {size} bytes to {promised}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch and pickle make of damaged bytes has no common base
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                "refused, because it holds more than weights and plain values and loading it could run "
                f"code ({why}). Fix: load it where you trust it and save its state_dict alone"
            ) from error
        raise CheckpointError(
            f"damaged or no checkpoint ({size} bytes: {why}). Fix: use another file, such as last.ckpt beside best.ckpt"
        ) from error
