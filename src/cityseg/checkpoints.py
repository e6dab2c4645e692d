"""Checkpoints that stand alone: weights, the run's config as plain containers, and the label space."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from cityseg import __version__
from cityseg.errors import CheckpointError
from cityseg.files import write_bytes
from cityseg.labels import LabelSpace
from cityseg.paths import check_checkpoints
from cityseg.tensors import load_tensors

log = logging.getLogger(__name__)

KEY = "cityseg"
FORMAT = 1
SEAL = b"cityseg sha256 "
"""Start of the comment that ends a checkpoint, which is a zip archive; the digest of all before the comment follows."""
LAST, NEXT, PREVIOUS = "last.ckpt", "last.ckpt.new", "previous.ckpt"
_MOST_VALUES, _DEEPEST = 100_000, 50  # of the plain values in a checkpoint: a config has a few hundred, six deep


class SealedCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, with a digest of their content, and reads them back."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one.

        Raises:
            WriteError: if the system refuses to.
            CheckpointError: if the disk gives back something else.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        digest = hashlib.sha256(buffer.getbuffer()[:-2]).hexdigest().encode()
        buffer.seek(-2, io.SEEK_END)  # the length of the comment
        buffer.write(struct.pack("<H", len(SEAL + digest)) + SEAL + digest)
        write_bytes(Path(path), buffer.getbuffer())
        if not is_sealed(Path(path)):
            raise CheckpointError(f"{path}: the disk gives back something else than was written. Fix: another disk")

    def remove_checkpoint(self, path: Any) -> None:
        """Remove one. Which, a callback may know from the checkpoint that was resumed.

        Raises:
            CheckpointError: if the name is none that a run gives.
        """
        if Path(path).suffix != ".ckpt" or ".." in Path(path).parts or "://" in str(path):
            raise CheckpointError(f"{path}: not removed: the checkpoint that was resumed calls it the best one so far")
        super().remove_checkpoint(path)


def is_sealed(path: Path) -> bool:
    """Whether a file ends with the digest of its content."""
    comment = len(SEAL) + 64
    with path.open("rb") as file, contextlib.suppress(OSError):
        size = file.seek(-comment - 2, io.SEEK_END)
        file.seek(0)
        digest = hashlib.sha256()
        while size and (part := file.read(min(size, 1 << 20))):
            digest.update(part)
            size -= len(part)
        return file.read() == struct.pack("<H", comment) + SEAL + digest.hexdigest().encode()
    return False


def _has_seal(path: Path) -> bool:
    """Whether a digest was written at the end of a file, be it right or wrong; files of other origin have none."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 4 * len(SEAL) + 64), io.SEEK_END)
        return SEAL in file.read()


def resumable_checkpoint(folder: Path) -> Path:
    """The checkpoint that a run goes on from: the last one or, if that is damaged, the one before.

    A run that was killed between two names may have left the next one, whole, and no last one: it gets the name.

    Raises:
        CheckpointError: if neither is whole.
    """
    found = [folder / name for name in (LAST, NEXT, PREVIOUS) if (folder / name).is_file()]
    sound = next((path for path in found if is_sealed(path)), None)
    if sound is None:
        what = f"{' and '.join(path.name for path in found)} damaged" if found else "no checkpoint"
        raise CheckpointError(f"{folder}: found {what}, expected {LAST} to go on from. Fix: start a new run")
    if sound is not found[0]:
        log.warning("%s is damaged: going on from %s", found[0], sound.name)
    elif sound.name == PREVIOUS:
        log.warning("%s is missing: going on from %s, the one before", folder / LAST, sound.name)
    return sound.replace(folder / LAST) if sound.name == NEXT else sound


class SelfContained(pl.Callback):
    """Puts the run's config (plain containers) and the classes into every checkpoint, so that it stands alone."""

    def __init__(self, config: Mapping[str, Any], label_space: LabelSpace) -> None:
        what = {"config": dict(config), "label_space": label_space.to_dict()}
        self._content = {"format": FORMAT, "version": __version__, **what}

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
        state_dict: weights of the task, on the CPU.
        epochs: finished when it was saved.
        version: of cityseg, when it was saved.
        scores: monitored figure -> its value in the checkpoint's epoch, as ``{"val/miou": 0.5}``.
    """

    path: Path
    config: dict[str, Any]
    label_space: LabelSpace
    state_dict: dict[str, Tensor]
    epochs: int
    version: str
    scores: dict[str, float]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without running anything in it.

    Raises:
        CheckpointError: if the file is missing, damaged, needs code to load, or was not written by cityseg.
    """
    check_checkpoints(path)
    if _has_seal(path) and not is_sealed(path):
        raise CheckpointError(f"ckpt={path}: damaged: not what was written. Fix: another of the run, as {LAST} is")
    try:
        content = load_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"ckpt={path}: {error}") from error
    if not isinstance(content, dict) or KEY not in content or "state_dict" not in content:
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"ckpt={path}: not written by cityseg: expected the key {KEY!r}, found {keys[:200]}")
    try:
        return _checkpoint(path, content[KEY], content)
    except CheckpointError:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"not as cityseg writes it ({type(error).__name__}: {error})"
        raise CheckpointError(f"ckpt={path}: {what}. Fix: use another checkpoint") from error


def _checkpoint(path: Path, own: Mapping[str, Any], content: Mapping[str, Any]) -> Checkpoint:
    if own["format"] > FORMAT:
        raise CheckpointError(f"ckpt={path}: of cityseg {own['version']}, newer than this {__version__}. Fix: update")
    _check_plain(own)
    weights = content["state_dict"]
    if not all(isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()):
        raise TypeError("state_dict: expected tensors by name")
    states = [state for state in content.get("callbacks", {}).values() if state.get("monitor")]
    return Checkpoint(
        path=path,
        config=dict(own["config"]),
        label_space=LabelSpace.from_dict(own["label_space"]),
        state_dict=weights,
        epochs=int(own["epochs"]),
        version=str(own["version"]),
        scores={str(s["monitor"]): float(s["current_score"]) for s in states if s["current_score"] is not None},
    )


def _check_plain(content: Any) -> None:
    """See that there is nothing but plain values, and not a few that are met again and again."""
    waiting, count = [(content, 0)], 0
    while waiting:
        (value, depth), count = waiting.pop(), count + 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError(f"config: found more than {_MOST_VALUES} values, or more than {_DEEPEST} in each other")
        if isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple):
            waiting += [(part, depth + 1) for part in value]
        elif not isinstance(value, str | int | float | None):
            raise TypeError(f"config: found {type(value).__name__}, expected plain values")


def load_weights(module: nn.Module, checkpoint: Checkpoint, prefix: str = "", leave_out: str | None = None) -> None:
    """Load the weights whose names have a prefix, and then not the start of those that the module has no use for.

    Raises:
        CheckpointError: naming the weights that are missing, unknown or of another shape.
    """
    have = module.state_dict()
    chosen = {key.removeprefix(prefix): w for key, w in checkpoint.state_dict.items() if key.startswith(prefix)}
    given = {key: weight for key, weight in chosen.items() if not (leave_out and key.startswith(leave_out))}
    parts = {
        "missing": sorted(have.keys() - given.keys()),
        "unknown": sorted(given.keys() - have.keys()),
        "other shape": [
            f"{key} (file {tuple(given[key].shape)}, network {tuple(weight.shape)})"
            for key, weight in have.items()
            if key in given and weight.shape != given[key].shape
        ],
    }
    if any(parts.values()):
        listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in parts.items() if keys)
        fix = f"give the model it was trained with ({checkpoint.config.get('model', {})})"
        raise CheckpointError(f"ckpt={checkpoint.path}: its weights do not fit the network: {listed}. Fix: {fix}")
    module.load_state_dict(given)
