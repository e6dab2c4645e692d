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
from torch import nn
from torch.distributed.fsdp import FSDPModule

from cityseg.calibration import Calibration
from cityseg.callbacks.state import StepSeed, Stopped
from cityseg.checkpoints import SelfContained, load_checkpoint, load_weights
from cityseg.crossval.folds import FINAL
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.split_files import read_split, write_split
from cityseg.environment import environment
from cityseg.errors import ConfigError, DataError
from cityseg.files import fresh_file, write_json
from cityseg.keys import dotted_values
from cityseg.reports.html.run import write_run_page
from cityseg.reports.plots import plot_class_iou, plot_confusion, plot_curves
from cityseg.reports.run_files import read_history
from cityseg.reports.tensorboard import TensorBoard
from cityseg.runs.batch_size import find_batch_size
from cityseg.runs.config import network_node
from cityseg.runs.failures import explained
from cityseg.runs.objects import (
    build_callbacks,
    build_loggers,
    build_network,
    build_task,
    build_trainer,
    chooses_epoch,
    fit_labels,
    own_steps,
)
from cityseg.runs.preflight import prepare, try_one_batch
from cityseg.runs.scoring import PerImage, Pictures, score
from cityseg.runs.sweeps import INDIFFERENT
from cityseg.tasks.base import Task

log = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit code of a run stopped by Ctrl-C, as shells have it."""


def train(config: DictConfig, run_dir: Path, *, resume_from: Path | None = None) -> dict[str, Any] | None:
    """Train, score the best checkpoint, and write the run folder.

    Args:
        config: the run's config, settled.
        run_dir: where everything goes.
        resume_from: the checkpoint after which a stopped run goes on.

    Returns:
        The content of ``metrics.json``; None on processes that are not the first.

    Raises:
        CitysegError: for what a user can mend.
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
    figures = _finish(config, data, task, trainer, run_dir)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    figures["environment"] = environment(trainer.strategy.root_device)
    write_json(run_dir / "metrics.json", figures)
    write_run_page(run_dir, data.label_space)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.log_final(figures, trainer.fit_loop.epoch_loop._batches_that_stepped)
    return figures


def _prepare(config: DictConfig) -> tuple[SegmentationDataModule, Task]:
    """Build data and task; what is wrong with the network is said before the data is touched."""
    data, network = prepare(config)
    node = network_node(config)
    if node.get("freeze_encoder") and not node.get("pretrained"):
        log.warning(
            "model.freeze_encoder=true with model.pretrained=false: the encoder stays random. Give it weights "
            "(model.pretrained=true or a file) or train it (model.freeze_encoder=false)"
        )
    if data.builtin:
        log.info("data.root is not set: using the built-in synthetic scenes")
    fit_labels(config, data)
    if config.compile:
        _compile(network)
    task = build_task(config, data, network)
    if data.batch_size == "auto":
        find_batch_size(config, data, task)
    if config.check == "full":
        try_one_batch(config, data, task)
    counts = {split: len(data.samples(split)) for split in ("train", "val")}
    log.info(
        "%s: %d train, %d val photos; crops %dx%d; %s classes; %s on %s",
        data.dataset_name, counts["train"], counts["val"], *data.crop_size()[::-1], data.label_space.num_classes,
        config.trainer.precision, config.trainer.accelerator,
    )  # fmt: skip
    return data, task


def _compile(network: nn.Module) -> None:
    if getattr(network, "has_auxiliary", False):
        raise ConfigError(
            "compile=true: an auxiliary head is trained through a path that is not compiled. Fix: compile=false, or "
            "model.auxiliary_head=false"
        )
    network.compile()  # in place: wrapping it would rename the weights


def _fit(config: DictConfig, data: SegmentationDataModule, task: Task, resume_from: Path | None) -> pl.Trainer:
    plain: Any = OmegaConf.to_container(config, resolve=False)
    plain["resume"] = None
    validated = chooses_epoch(config, data)
    callbacks = [
        *build_callbacks(config, validated=validated),
        StepSeed(config.seed),
        SelfContained(plain, data.label_space),
    ]
    changes = own_steps(task) | ({} if validated else {"limit_val_batches": 0})
    if config.trainer.get("benchmark") is None and not config.trainer.get("deterministic") and data.has_fixed_shapes():
        changes["benchmark"] = True  # worth its first tries only where they are all
    trainer = build_trainer(config, callbacks, build_loggers(config), progress=True, **changes)
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
        if any(not np.array_equal(one, two) for (_, one), (_, two) in zip(before.items(), split.items(), strict=True)):
            raise DataError(
                f"{path}: the resumed run would divide the files otherwise. Fix: resume with the cv and fold that it "
                "began with, or start a new run"
            )
    elif write:
        write_split(path, names, split)


def _finish(
    config: DictConfig, data: SegmentationDataModule, task: Task, trainer: pl.Trainer, run_dir: Path
) -> dict[str, Any]:
    """Score the best checkpoint and draw the plots."""
    folder = run_dir / "checkpoints"
    if not chooses_epoch(config, data):  # nothing has chosen an epoch: the last weights are the best known
        with fresh_file(folder / "best.ckpt") as fresh:
            shutil.copyfile(folder / "last.ckpt", fresh)
    best = load_checkpoint(folder / "best.ckpt")
    if isinstance(task.network, FSDPModule):  # its parts are in other processes, which have ended
        task.network, task._device_mesh = build_network(config, data.label_space), None
    load_weights(task, best)
    split = "val" if config.fold in (None, FINAL) else "test"
    pictures = Pictures(run_dir, data.samples(split), panels=config.panels, predictions=False)
    per_image = PerImage(run_dir, data.samples(split), draw=config.panels > 0)
    scorer = build_trainer(config, [pictures, per_image], devices=1, strategy="auto", num_nodes=1)
    task.calibration = Calibration(ignore_index=data.label_space.ignore_index)
    with explained(config, data):
        figures = score(task, data, split, scorer)
    figures |= {
        "epochs": trainer.current_epoch,
        "best_epoch": best.epochs,
        "pretrained": network_node(config).get("pretrained", False),
        "seed": config.seed,
        "batch_size": data.batch_size,
    }
    if config.fold is not None:
        plain = OmegaConf.to_container(config.cv, resolve=True)
        figures |= {"fold": config.fold, "cv": plain, "train_images": len(data.samples("train"))}
    plots = run_dir / "plots"
    if (run_dir / "history.csv").is_file():  # it can be switched off
        plot_curves(read_history(run_dir / "history.csv"), plots / "curves.png")
    plot_confusion(np.array(figures["confusion_matrix"]), data.label_space.class_names, plots / "confusion.png")
    plot_class_iou(figures["per_class"], data.label_space.colors, plots / "class_iou.png")
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
