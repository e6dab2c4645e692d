"""Builds the objects of a run from its config: data, network, loss, task, callbacks, loggers, trainer."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from cityseg.adversarial import map_channels
from cityseg.callbacks.progress import ProgressBar
from cityseg.checkpoints import SealedCheckpointIO
from cityseg.class_weights import class_weights_from_counts
from cityseg.crossval.folds import FINAL
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.splits import Strategy
from cityseg.data.statistics import class_pixel_counts
from cityseg.data.transforms import Augment
from cityseg.errors import ConfigError, Problems
from cityseg.labels import LabelSpace
from cityseg.runs.config import build, network_node, picks_best
from cityseg.tasks.base import Task


def build_data(config: DictConfig) -> SegmentationDataModule:
    """The data module; nothing is read yet."""
    return build(config.data, SegmentationDataModule, augment=build(config.augment, Augment))


def divide(config: DictConfig, data: SegmentationDataModule) -> None:
    """Find the files of a run: the folders' own splits, or those of a fold of the training files."""
    if config.fold in (None, FINAL):
        data.keep_splits()
    else:
        # `final` tells a sweep what follows its folds, and a strategy nothing.
        node = copy.copy(config.cv)
        OmegaConf.set_struct(node, False)
        node.pop("final", None)
        data.divide(build(node, Strategy), config.fold)


def chooses_epoch(config: DictConfig, data: SegmentationDataModule) -> bool:
    """Whether there are images that an epoch may be chosen by."""
    return config.fold != FINAL and len(data.samples("val")) > 0


def fit_labels(config: DictConfig, data: SegmentationDataModule) -> None:
    """Find classes that depend on the training labels, and note them in the config.

    The config goes into the checkpoint: from there on the same classes are built again, not found again.
    """
    for key, value in data.fit_labels().items():
        config.data[key] = value


def build_network(config: DictConfig, label_space: LabelSpace) -> nn.Module:
    """The network, with a logit for each class."""
    return build(network_node(config), nn.Module, num_classes=label_space.num_classes)


def build_loss(config: DictConfig, label_space: LabelSpace, weights: Tensor | None) -> nn.Module:
    """The loss, with class weights already found."""
    return build(
        config.loss,
        nn.Module,
        num_classes=label_space.num_classes,
        ignore_index=label_space.ignore_index,
        class_weights=weights,
    )


def class_weights(config: DictConfig, data: SegmentationDataModule) -> Tensor | None:
    """The weight of each class ``(C,)`` float32 that the loss config asks for; None for equal weights.

    Raises:
        ConfigError: if a list has another length than there are classes, or the scheme is unknown.
    """
    wanted = config.loss.class_weights
    names = data.label_space.class_names
    if wanted in (None, "none"):
        return None
    if isinstance(wanted, ListConfig):
        if len(wanted) != len(names):
            raise ConfigError(
                f"loss.class_weights: found {len(wanted)} numbers, expected {len(names)}: {', '.join(names)}"
            )
        return torch.tensor([float(value) for value in wanted])
    return class_weights_from_counts(class_pixel_counts(data), str(wanted))


def build_task(config: DictConfig, data: SegmentationDataModule, network: nn.Module) -> Task:
    """The task that trains the network."""
    parts = {
        "network": network,
        "loss": build_loss(config, data.label_space, class_weights(config, data)),
        "optimizer": build(config.optimizer, partial),
        "scheduler": build(config.scheduler, partial),
        "label_space": data.label_space,
    }
    if "discriminator" in config.model:
        channels = 3 + map_channels(config.task.auxiliary_map, data.label_space.num_classes)
        parts["discriminator"] = build(config.model.discriminator, in_channels=channels)
    return build(config.task, Task, **parts)


def build_callbacks(config: DictConfig, *, validated: bool) -> list[Callback]:
    """The callbacks of the config.

    A name set to null is left out, without a logger what only feeds loggers, and without validation the choice of the
    best epoch.
    """
    nodes = [node for node in config.callbacks.values() if node is not None]
    built = [build(node, Callback) for node in nodes if validated or not picks_best(node)]
    logs = any(node is not None for node in (config.logger or {}).values())
    return [callback for callback in built if logs or not isinstance(callback, LearningRateMonitor)]


def build_loggers(config: DictConfig) -> list[Logger]:
    """The loggers of the config; a name set to null is left out."""
    nodes = config.logger.values() if config.logger else ()
    return [build(node, Logger) for node in nodes if node is not None]


def build_trainer(
    config: DictConfig,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    *,
    progress: bool = False,
    **changes: Any,
) -> pl.Trainer:
    """The trainer; our samplers share the data between processes themselves.

    Args:
        config: the run's config.
        callbacks: its callbacks.
        loggers: its loggers.
        progress: show a progress bar where there is a terminal.
        changes: arguments of the trainer other than the config's.
    """
    bar = progress and sys.stdout.isatty()
    return build(
        config.trainer,
        pl.Trainer,
        callbacks=[*callbacks, ProgressBar()] if bar else list(callbacks),
        logger=list(loggers) or False,
        default_root_dir=config.run_dir,
        enable_checkpointing=any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
        enable_model_summary=False,
        enable_progress_bar=bar,
        use_distributed_sampler=False,
        plugins=[SealedCheckpointIO()],
        **changes,
    )


def own_steps(task: Task) -> dict[str, Any]:
    """Arguments of the trainer that a task which steps its own optimizers reads itself, and the trainer must not."""
    names = ("gradient_clip_val", "gradient_clip_algorithm")
    return {"accumulate_grad_batches": 1, **dict.fromkeys(names)} if task.manual else {}


def check_fit(network: nn.Module, data: SegmentationDataModule) -> None:
    """Check the network against the sizes it will see, before training starts.

    Raises:
        ConfigError: with every problem.
    """
    problems = Problems("network and data")
    sizes = {"data.crop": data.crop_size()}
    for height, width in {(int(h), int(w)) for h, w in data.eval_sizes("val")}:
        sizes[f"validation photos of {width}x{height}"] = (height, width)
    check_size = getattr(network, "check_size", None)
    if check_size is not None:
        for what, (height, width) in sizes.items():
            try:
                check_size(height, width)
            except ValueError as error:
                problems.add(f"{what}: {error}")
    least = getattr(network, "min_train_batch", 1)
    count = len(data.samples("train"))
    batch = count if data.batch_size == "auto" else min(data.batch_size, count)
    if batch < least:
        problems.add(
            f"data.batch_size: found {batch}, expected at least {least}: this network normalises over the batch after "
            "pooling each image to one value",
            fix=f"data.batch_size={least} or more, or another model",
        )
    problems.raise_if_any(ConfigError)
