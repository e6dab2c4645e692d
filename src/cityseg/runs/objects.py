"""Builds the objects of a run from its config: data, network, loss, task, callbacks, loggers, trainer."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from cityseg.adversarial import map_channels
from cityseg.callbacks import ProgressBar
from cityseg.checkpoints import SealedCheckpointIO
from cityseg.crossval.folds import FINAL
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.splits import Strategy
from cityseg.data.statistics import class_weights_from_counts, image_class_pixels
from cityseg.data.transforms import Augment
from cityseg.errors import CitysegError, ConfigError, Problems, did_you_mean
from cityseg.labels import LabelSpace
from cityseg.runs.config import check_arguments, network_node
from cityseg.tasks.base import Task

Built = TypeVar("Built")


def build(node: Any, kind: type[Built] = object, **arguments: Any) -> Built:  # type: ignore[assignment]
    """Instantiate a config node as an object of a kind, with arguments beside the config's.

    They are handed to the target as they are: through Hydra, dataclasses among them would become configs.

    Raises:
        ConfigError: naming the key, if a target does not exist, does not take an argument (with the nearest one that
            it takes) or fails; of a partial target also when it is called in the end.
    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError(f"found {node!r}, expected a mapping with the key _target_, which names a {kind.__name__}")
    key = str(node._get_full_key(None))
    problems = Problems("the config")
    plain: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    check_arguments({name: value for name, value in plain.items() if name not in arguments}, key, problems)
    problems.raise_if_any(ConfigError)
    with _explained(node, key):
        if arguments:
            built = hydra.utils.instantiate(node, _convert_="all", _partial_=True)(**arguments)
        else:
            built = hydra.utils.instantiate(node, _convert_="all")
        if isinstance(built, functools.partial):  # called only when training starts: look at its arguments now
            inspect.signature(built.func).bind_partial(*built.args, **built.keywords)
            built = functools.partial(_explained(node, key)(built))
    if not isinstance(built, kind):
        raise ConfigError(f"{key}: {node._target_} gives a {type(built).__name__}, expected a {kind.__name__}")
    return built


@contextmanager
def _explained(node: DictConfig, key: str) -> Iterator[None]:
    """Say which node of the config could not be built; a library may raise anything."""
    try:
        yield
    except Exception as error:
        cause = (error.__cause__ if isinstance(error, hydra.errors.InstantiationException) else None) or error
        if isinstance(cause, CitysegError):
            raise cause from None
        reason = " ".join((str(cause) or type(cause).__name__).split())[:300]
        hint = "" if reason.endswith(".") else "."
        if "unexpected keyword argument" in reason:
            hint += did_you_mean(reason.split("'")[1], _keywords(str(node._target_)))
        raise ConfigError(f"{key}: {node._target_} could not be built: {reason}{hint}") from cause


def _keywords(target: str) -> list[str]:
    found = hydra.utils.get_object(target)
    functions = [found, *(base.__init__ for base in getattr(found, "__mro__", ())[1:-1])]
    return [name for function in functions for name in inspect.signature(function).parameters if name != "self"]


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


def build_network(config: DictConfig, label_space: LabelSpace) -> nn.Module:
    """The network, with a logit for each class."""
    return build(network_node(config), nn.Module, num_classes=label_space.num_classes)


def build_loss(config: DictConfig, label_space: LabelSpace, weights: Tensor | None) -> nn.Module:
    """The loss, with class weights already found."""
    space = {"num_classes": label_space.num_classes, "ignore_index": label_space.ignore_index}
    return build(config.loss, nn.Module, **space, class_weights=weights)


def _class_weights(config: DictConfig, data: SegmentationDataModule) -> Tensor | None:
    """The weight of each class ``(C,)`` float32 that the loss config asks for; None for equal weights."""
    wanted, names = config.loss.class_weights, data.label_space.class_names
    if wanted in (None, "none"):
        return None
    if not isinstance(wanted, ListConfig):
        return class_weights_from_counts(image_class_pixels(data).sum(axis=0, dtype="int64"), str(wanted))
    if len(wanted) != len(names):
        raise ConfigError(f"loss.class_weights: found {len(wanted)} numbers, expected {len(names)}: {', '.join(names)}")
    return torch.tensor([float(value) for value in wanted])


def build_task(config: DictConfig, data: SegmentationDataModule, network: nn.Module) -> Task:
    """The task that trains the network."""
    loss = build_loss(config, data.label_space, _class_weights(config, data))
    parts = {"network": network, "loss": loss, "label_space": data.label_space}
    parts |= {name: build(config[name], functools.partial) for name in ("optimizer", "scheduler")}
    if "discriminator" in config.model:
        channels = 3 + map_channels(config.task.auxiliary_map, data.label_space.num_classes)
        parts["discriminator"] = build(config.model.discriminator, in_channels=channels)
    return build(config.task, Task, **parts)


def build_callbacks(config: DictConfig, *, validated: bool) -> list[Callback]:
    """The callbacks that are not null; without a logger none that only feeds one, without validation no best epoch."""
    nodes = [node for node in config.callbacks.values() if node is not None]
    built = [build(node, Callback) for node in nodes if validated or not picks_best(node)]
    logs = any(node is not None for node in (config.logger or {}).values())
    return [callback for callback in built if logs or not isinstance(callback, LearningRateMonitor)]


def picks_best(node: DictConfig) -> bool:
    """Whether a callback keeps the best epoch's checkpoint."""
    return str(node.get("_target_")) == "cityseg.callbacks.best_checkpoint"


def build_loggers(config: DictConfig) -> list[Logger]:
    """The loggers of the config; a name set to null is left out."""
    return [build(node, Logger) for node in (config.logger or {}).values() if node is not None]


def build_trainer(
    config: DictConfig,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    *,
    progress: bool = False,
    **changes: Any,
) -> pl.Trainer:
    """The trainer, with a progress bar where there is a terminal, and other arguments than the config's.

    Our samplers share the data between processes themselves.
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
