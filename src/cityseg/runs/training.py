"""One training run, from config to finished run folder."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch.distributed.fsdp import FSDPModule

from cityseg.calibration import Calibration
from cityseg.callbacks.history import History
from cityseg.callbacks.state import StepSeed, Stopped
from cityseg.checkpoints import SelfContained, load_checkpoint, load_weights
from cityseg.crossval.folds import FINAL
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.split_files import read_split, write_split
from cityseg.errors import ConfigError, DataError
from cityseg.files import fresh_file
from cityseg.keys import dotted_values
from cityseg.reports.plots import plot_curves
from cityseg.reports.run_files import read_history
from cityseg.reports.tensorboard import TensorBoard
from cityseg.runs.batch_size import find_batch_size
from cityseg.runs.config import network_node
from cityseg.runs.objects import (
    build_callbacks,
    build_loggers,
    build_network,
    build_task,
    build_trainer,
    chooses_epoch,
    own_steps,
)
from cityseg.runs.output import explained
from cityseg.runs.preflight import prepare, try_one_batch
from cityseg.runs.scoring import PerImage, Pictures, score, write_figures
from cityseg.runs.sweeps import INDIFFERENT
from cityseg.tasks.base import Task

log = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit code of a run stopped by Ctrl-C, as shells have it."""


def train(config: DictConfig, run_dir: Path, resume_from: Path | None = None) -> dict[str, Any] | None:
    """Train with a settled config, from a checkpoint on or anew, score the best one, and write the run folder.

    Returns:
        The content of ``metrics.json``; None on processes that are not the first.
    """
    started = time.perf_counter()
    pl.seed_everything(config.seed, workers=False, verbose=False)
    data, task = _prepare(config)
    (run_dir / "metrics.json").unlink(missing_ok=True)  # of what was here before
    trainer = _fit(config, data, task, resume_from)
    if not trainer.is_global_zero:
        return None
    if torch.distributed.is_initialized():  # the final figures come from one process
        torch.distributed.destroy_process_group()
    figures = _score(config, data, task, trainer, run_dir)
    if (run_dir / "history.csv").is_file():  # it can be switched off
        plot_curves(read_history(run_dir / "history.csv"), run_dir / "plots" / "curves.png")
    earlier = next((c.earlier for c in trainer.callbacks if isinstance(c, History)), 0.0)  # type: ignore[attr-defined]
    figures["seconds"] = round(earlier + time.perf_counter() - started, 1)
    write_figures(figures, run_dir, data.label_space, trainer.strategy.root_device)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.log_final(figures, trainer.fit_loop.epoch_loop._batches_that_stepped)
    return figures


def _prepare(config: DictConfig) -> tuple[SegmentationDataModule, Task]:
    """Build data and task; what is wrong with the network is said before the data is touched."""
    data, network = prepare(config)
    node = network_node(config)
    if node.get("freeze_encoder") and not node.get("pretrained"):
        log.warning("model.freeze_encoder=true with model.pretrained=false: the encoder stays random. Fix: change one")
    if data.builtin:
        log.info("data.root is not set: using the built-in synthetic scenes")
    for key, value in data.fit_labels().items():  # into the checkpoint: from there on they are not found again
        config.data[key] = value
    if config.compile:
        if getattr(network, "has_auxiliary", False):
            why = "an auxiliary head is trained through a path that is not compiled"
            raise ConfigError(f"compile=true: {why}. Fix: compile=false, or model.auxiliary_head=false")
        network.compile()  # in place: wrapping it would rename the weights
    task = build_task(config, data, network)
    if data.batch_size == "auto":
        find_batch_size(config, data, task)
    if config.check == "full":
        try_one_batch(config, data, task)
    return data, task


def _fit(config: DictConfig, data: SegmentationDataModule, task: Task, resume_from: Path | None) -> pl.Trainer:
    plain: Any = OmegaConf.to_container(config, resolve=False)
    plain["resume"] = None
    validated = chooses_epoch(config, data)
    own = (StepSeed(config.seed), SelfContained(plain, data.label_space))
    callbacks = [*build_callbacks(config, validated=validated), *own]
    changes = own_steps(task) | ({} if validated else {"limit_val_batches": 0})
    if config.trainer.get("benchmark") is None and not config.trainer.get("deterministic") and data.has_fixed_shapes():
        changes["benchmark"] = True  # worth its first tries only where they are all
    trainer = build_trainer(config, callbacks, build_loggers(config), progress=True, **changes)
    counts = [len(data.samples(split)) for split in ("train", "val")]
    what = data.dataset_name, *counts, *data.crop_size()[::-1], data.label_space.num_classes
    devices = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
    log.info("%s: %d train, %d val photos; crops %dx%d; %s classes; %s on %s", *what, config.trainer.precision, devices)
    _note_split(Path(config.run_dir) / "split.csv", data, write=trainer.is_global_zero)
    for logger in trainer.loggers:
        logger.log_hyperparams(hyperparameters(config))
    try:
        with explained(config, data):
            trainer.fit(task, datamodule=data, ckpt_path=resume_from, weights_only=True)
    except Stopped:
        log.warning("stopped. To go on from there: python train.py resume=%s", config.run_dir)
        raise
    except SystemExit:
        if not trainer.interrupted:  # by Ctrl-C, twice
            raise
        log.warning("stopped at once. To go on from last.ckpt: python train.py resume=%s", config.run_dir)
        sys.exit(INTERRUPTED)
    return trainer


def _note_split(path: Path, data: SegmentationDataModule, *, write: bool) -> None:
    """Write which part each file is in; a run that goes on must have the parts it began with."""
    assert data.split is not None
    names, split = data.split
    if path.is_file():
        before = read_split(path, names)
        if any(not np.array_equal(one, two) for one, two in zip(before, split, strict=True)):
            fix = "resume with the cv and fold that it began with, or start a new run"
            raise DataError(f"{path}: the resumed run would divide the files otherwise. Fix: {fix}")
    elif write:
        write_split(path, names, split)


def _score(
    config: DictConfig, data: SegmentationDataModule, task: Task, trainer: pl.Trainer, run_dir: Path
) -> dict[str, Any]:
    """The figures of the best checkpoint."""
    folder = run_dir / "checkpoints"
    if not chooses_epoch(config, data):  # nothing has chosen an epoch: the last weights are the best known
        with fresh_file(folder / "best.ckpt") as fresh:
            shutil.copyfile(folder / "last.ckpt", fresh)
    best = load_checkpoint(folder / "best.ckpt")
    if isinstance(task.network, FSDPModule):  # its parts are in other processes, which have ended
        task.network, task._device_mesh = build_network(config, data.label_space), None
    load_weights(task, best)
    split = "val" if config.fold in (None, FINAL) else "test"
    samples = data.samples(split)
    pictures = Pictures(run_dir, samples, panels=config.panels, predictions=False)
    per_image = PerImage(run_dir, samples, draw=config.panels > 0)
    scorer = build_trainer(config, [pictures, per_image], devices=1, strategy="auto", num_nodes=1)
    task.calibration = Calibration(ignore_index=data.label_space.ignore_index)
    with explained(config, data):
        figures = score(task, data, split, scorer)
    figures |= {
        "epochs": trainer.current_epoch,
        "best_epoch": best.epochs,
        "train_images": len(data.samples("train")),
        "pretrained": network_node(config).get("pretrained", False),
        "seed": config.seed,
        "batch_size": data.batch_size,
    }
    if config.fold is not None:
        figures |= {"fold": config.fold, "cv": OmegaConf.to_container(config.cv, resolve=True)}
    return figures


def hyperparameters(config: DictConfig) -> dict[str, Any]:
    """What loggers compare runs by: config key -> number, text or truth value, without what changes no result.

    What a group builds is named by the group: ``optimizer`` is ``optim.AdamW``.
    """
    groups = ("data", "model", "loss", "optimizer", "scheduler", "augment", "trainer", "task")
    plain = {key: OmegaConf.to_container(config[key], resolve=True) for key in groups}
    chosen: dict[str, Any] = {"fold": str(config.fold), "seed": config.seed}
    for key, value in dotted_values(plain).items():
        if key.endswith("._target_"):
            chosen[key.removesuffix("._target_")] = ".".join(str(value).split(".")[-2:])
        elif not key.endswith("._partial_") and key not in INDIFFERENT:
            chosen[key] = value
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in chosen.items()}
