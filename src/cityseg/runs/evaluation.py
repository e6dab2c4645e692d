"""Scoring a checkpoint from its file alone."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from cityseg.checkpoints import Checkpoint, load_checkpoint, load_weights
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.errors import CheckpointError, ConfigError
from cityseg.files import write_json
from cityseg.reports.plots import plot_class_iou, plot_confusion
from cityseg.runs.config import check_trusted, network_node
from cityseg.runs.objects import build_data, build_loss, build_network, build_trainer, divide
from cityseg.runs.output import print_closing, quiet_libraries
from cityseg.runs.scoring import PerImage, Pictures, score
from cityseg.tasks.base import Task

log = logging.getLogger(__name__)


def evaluate(config: DictConfig, run_dir: Path) -> float | None:
    """Score one checkpoint on one split and write the figures and pictures.

    Args:
        config: the composed evaluation config; keys of `data` and `trainer` that are not null replace the
            checkpoint's own.
        run_dir: where everything goes.

    Returns:
        mIoU; None where the split has no labels.

    Raises:
        CitysegError: for what a user can mend.
    """
    started = time.perf_counter()
    quiet_libraries()
    checkpoint = load_checkpoint(Path(config.ckpt).expanduser())
    run = evaluation_config(checkpoint, config, run_dir)
    pl.seed_everything(run.seed, workers=False, verbose=False)
    data = build_data(run)
    _check_label_space(checkpoint, data)
    if run.get("fold") is not None:
        divide(run, data)
    task = build_scoring_task(run, checkpoint, data)
    samples = data.samples(config.split)
    if samples.labels is None and not config.predictions:
        log.warning("split %s of %s has no labels: nothing can be scored", config.split, data.dataset_name)
    pictures = Pictures(run_dir, samples, panels=config.panels, predictions=config.predictions)
    figures = score(task, data, config.split, build_trainer(run, [pictures, PerImage(run_dir, samples)], progress=True))
    figures |= {
        "checkpoint": str(checkpoint.path.absolute()),
        "trained_epochs": checkpoint.epochs,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(run_dir / "metrics.json", figures)
    if "confusion_matrix" in figures:
        confusion = np.array(figures["confusion_matrix"])
        plot_confusion(confusion, data.label_space.class_names, run_dir / "plots" / "confusion.png")
        plot_class_iou(figures["per_class"], data.label_space.colors, run_dir / "plots" / "class_iou.png")
    print_closing(figures, run_dir)
    return figures.get("miou")


def evaluation_config(checkpoint: Checkpoint, wanted: DictConfig, run_dir: Path) -> DictConfig:
    """The checkpoint's own config, on one device, with what the user asked for instead.

    Raises:
        ConfigError: if the checkpoint's config would build foreign code.
    """
    check_trusted(checkpoint.config, wanted.trusted)
    run = OmegaConf.create(checkpoint.config)
    run.run_dir = str(run_dir)
    run.trainer = {**run.trainer, "devices": 1, "strategy": "auto", "num_nodes": 1, "accelerator": "auto"}
    for group in ("data", "trainer"):
        for key, value in wanted[group].items():
            if value is not None:
                run[group][key] = value
    if wanted.fold not in (None, "none"):
        raise ConfigError(f"fold: found {wanted.fold!r}, expected null for the checkpoint's own fold, or none")
    if wanted.fold == "none":
        run.fold = None
    # The weights are in the checkpoint: nothing is to be fetched.
    if "pretrained" in network_node(run):
        network_node(run).pretrained = False
    return run


def build_scoring_task(run: DictConfig, checkpoint: Checkpoint, data: SegmentationDataModule) -> Task:
    """A task that can score but not train, with the weights of the checkpoint."""
    # Class weights are part of the weights: any of the right shape will do here.
    has_weights = run.loss.get("class_weights") not in (None, "none")
    weights = torch.ones(data.label_space.num_classes) if has_weights else None
    task = Task(build_network(run, data.label_space), build_loss(run, data.label_space, weights), data.label_space)
    load_weights(task, checkpoint, leave_out="discriminator.")
    return task


def _check_label_space(checkpoint: Checkpoint, data: SegmentationDataModule) -> None:
    own, given = checkpoint.label_space, data.label_space
    if own.class_names != given.class_names:
        raise CheckpointError(
            f"ckpt={checkpoint.path} was trained on {_names(own)}, the data has "
            f"{_names(given)}. Fix: give data with the checkpoint's classes"
        )


def _names(space: Any) -> str:
    shown = ", ".join(space.class_names[:5]) + (", ..." if space.num_classes > 5 else "")
    return f"{space.num_classes} classes of {space.name!r} ({shown})"
