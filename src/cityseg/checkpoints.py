"""Checkpoints that stand alone: weights, the run's config as plain containers, and the label space."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from cityseg import __version__
from cityseg.errors import CheckpointError
from cityseg.labels import LabelSpace
from cityseg.paths import check_checkpoints

KEY = "cityseg"
FORMAT = 1


class SelfContained(pl.Callback):
    """Puts into every checkpoint what is needed to rebuild the network without the run folder.

    Args:
        config: the run's config, plain containers only, so that loading needs no code.
        label_space: the classes.
    """

    def __init__(self, config: Mapping[str, Any], label_space: LabelSpace) -> None:
        """See the class."""
        self._content = {
            "format": FORMAT,
            "version": __version__,
            "config": dict(config),
            "label_space": label_space.to_dict(),
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the content."""
        progress: Any = trainer.fit_loop.epoch_progress.current
        # A checkpoint taken while validating closes the epoch that is still being counted.
        checkpoint[KEY] = {**self._content, "epochs": progress.processed + int(trainer.validating)}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, apart from the state of the optimizer and the loops.

    Attributes:
        path: the file.
        config: the run's config.
        label_space: the classes.
        state_dict: weights of the task, on the CPU.
        epochs: finished when it was saved.
        version: of cityseg, when it was saved.
    """

    path: Path
    config: dict[str, Any]
    label_space: LabelSpace
    state_dict: dict[str, Tensor]
    epochs: int
    version: str


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without running anything in it.

    Raises:
        CheckpointError: if the file is missing, damaged, needs code to load, or was not written by cityseg.
    """
    check_checkpoints(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"ckpt={path}: refused, because it holds more than weights and plain values and loading it could run "
            f"code ({_first_line(error)}). Fix: load it where you trust it and save its state_dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise CheckpointError(
            f"ckpt={path}: damaged or no checkpoint ({path.stat().st_size} bytes: {_first_line(error)}). Fix: use "
            "another checkpoint of the run, such as last.ckpt beside best.ckpt"
        ) from error
    if not isinstance(content, dict) or KEY not in content or "state_dict" not in content:
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"ckpt={path}: not written by cityseg: expected the key {KEY!r}, found {keys}")
    own = content[KEY]
    if own["format"] > FORMAT:
        raise CheckpointError(
            f"ckpt={path}: written by cityseg {own['version']}, newer than this {__version__}; update"
        )
    return Checkpoint(
        path,
        own["config"],
        LabelSpace.from_dict(own["label_space"]),
        content["state_dict"],
        int(own["epochs"]),
        str(own["version"]),
    )


def load_weights(module: nn.Module, checkpoint: Checkpoint, leave_out: str | None = None) -> None:
    """Load the weights of a checkpoint into a task built from the same config.

    Args:
        module: the task.
        checkpoint: the weights.
        leave_out: start of the names of weights that the task has no use for.

    Raises:
        CheckpointError: naming the weights that are missing, unknown or of another shape.
    """
    have = module.state_dict()
    given = {key: w for key, w in checkpoint.state_dict.items() if not (leave_out and key.startswith(leave_out))}
    shapes = [
        f"{key} (file {tuple(given[key].shape)}, network {tuple(have[key].shape)})"
        for key in have
        if key in given and have[key].shape != given[key].shape
    ]
    parts = {
        "missing": sorted(have.keys() - given.keys()),
        "unknown": sorted(given.keys() - have.keys()),
        "other shape": shapes,
    }
    if any(parts.values()):
        listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in parts.items() if keys)
        raise CheckpointError(
            f"ckpt={checkpoint.path}: its weights do not fit the network: {listed}. Fix: give the model it was trained "
            f"with ({checkpoint.config.get('model', {})})"
        )
    module.load_state_dict(given)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
