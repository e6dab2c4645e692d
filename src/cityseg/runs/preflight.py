"""What can be seen to fail before hours are spent: all of it is looked at, and said at once."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.seed import isolate_rng
from rich.filesize import decimal as readable_bytes
from torch import nn

from cityseg.crossval.folds import FINAL
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.errors import CitysegError, ConfigError, Problems, WriteError, did_you_mean
from cityseg.files import fresh_file
from cityseg.runs.objects import build_data, build_network, build_trainer, chooses_epoch, divide, own_steps, picks_best
from cityseg.runs.output import explained
from cityseg.tasks.base import Task

CHECKPOINTS = 4  # best, last, the one before, and the next while it is written
COPIES = 3  # of the weights in a checkpoint: themselves and Adam's two averages
FILLED_WITHOUT_HARM = ("cuda",)  # devices that raise an error when they are full; a processor swaps or kills


@contextmanager
def _collected(errors: list[CitysegError]) -> Iterator[None]:
    """Keep the error of one check, so that one run shows those of all checks that do not need each other."""
    try:
        yield
    except CitysegError as error:
        errors.append(error)


def prepare(config: DictConfig) -> tuple[SegmentationDataModule, nn.Module]:
    """Build data and network, and check config, machine, files and sizes, all at once.

    Raises:
        CitysegError: with every problem.
    """
    data, network = build_data(config), None
    errors: list[CitysegError] = []
    with _collected(errors):
        check_run_config(config)
    with _collected(errors):
        network = build_network(config, data.label_space)
    with _collected(errors):
        _check_folder(Path(config.run_dir), network)
    with _collected(errors):
        check_device(config)
    with _collected(errors):
        divide(config, data)
        if not chooses_epoch(config, data):
            _check_without_validation(config)
        if network is not None:
            _check_fit(network, data)
    if len(errors) > 1:
        listed = "\n\n".join(map(str, errors))
        raise CitysegError(f"{len(errors)} things to mend before training can start:\n\n{listed}")
    if network is None or errors:
        raise errors[0]
    return data, network


def check_run_config(config: DictConfig) -> None:
    """Collect what is wrong with the run's keys before anything slow starts.

    Raises:
        ConfigError: with every problem.
    """
    task, problems = hydra.utils.get_object(str(config.task._target_)), Problems("the config")
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise ConfigError(f"task._target_={config.task._target_}: expected a subclass of cityseg.tasks.base.Task")
    trainer, fold = config.trainer, config.fold
    callbacks = {f"callbacks.{name}": node for name, node in config.callbacks.items() if node is not None}
    targets = [str(node._target_) for node in callbacks.values() if "_target_" in node]
    logged = [*task.logged, *(name for t in targets for name in getattr(hydra.utils.get_object(t), "logged", ()))]
    for key, figure in {"monitor": config.monitor, **_monitors(config)}.items():
        if figure not in logged:
            hint = did_you_mean(str(figure), logged)
            problems.add(f"{key}: no figure {figure!r} is computed.{hint}", fix=f"choose one of {', '.join(logged)}")
    mode = "min" if str(config.monitor).endswith("loss") else "max"
    if config.monitor_mode != mode:
        problems.add(f"monitor_mode: found {config.monitor_mode} for {config.monitor}", fix=f"monitor_mode={mode}")
    if trainer.get("accumulate_grad_batches", 1) < 1:
        problems.add("trainer.accumulate_grad_batches: found less than 1", fix="trainer.accumulate_grad_batches=1")
    if trainer.get("sync_batchnorm") and trainer.accelerator == "cpu":
        problems.add("trainer.sync_batchnorm: it runs on GPUs only", fix="trainer.sync_batchnorm=false")
    if fold not in (None, FINAL) and (isinstance(fold, bool) or not isinstance(fold, int)):
        problems.add(f"fold: found {fold!r}, expected a whole number from 0, {FINAL}, or null for no fold")
    if "discriminator" in config.model and not task.manual:
        fix = "leave task out (model=gan brings task=adversarial), or train the generator alone (model=fpn_aspp)"
        problems.add("model: a discriminator that this task does not train", fix=fix)
    if "ModelParallelStrategy" in str(trainer.strategy):
        _check_sharded(config, task, callbacks, problems)
    if task.manual:
        _check_manual(config, callbacks, problems)
    problems.raise_if_any(ConfigError)


def _check_sharded(config: DictConfig, task: type[Task], callbacks: dict[str, DictConfig], problems: Problems) -> None:
    """Refuse what needs all weights in one process."""
    if task.manual:
        problems.add("trainer=fsdp: it shares out one network with one optimizer, this task has two", fix="trainer=ddp")
    for key, node in callbacks.items():
        if str(node.get("_target_")).endswith((".WeightEMA", ".EncoderFreezing")):
            problems.add(f"{key}: it needs whole weights", fix=f"{key}=null, or trainer=ddp")
    if config.compile:
        problems.add("compile=true with trainer=fsdp was never tried", fix="compile=false")
    if config.data.batch_size == "auto":
        problems.add("data.batch_size=auto: it tries whole weights on one device", fix="a number, or trainer=ddp")


def _check_manual(config: DictConfig, callbacks: dict[str, DictConfig], problems: Problems) -> None:
    """Refuse what a task that steps its own optimizers cannot honour."""
    twice = "an adversarial batch is two optimizer steps"
    if "discriminator" not in config.model:
        problems.add("model: task=adversarial has no discriminator to train", fix="model=gan generator=NETWORK")
    if config.trainer.get("max_steps", -1) != -1:
        problems.add(f"trainer.max_steps: {twice}", fix="trainer.max_epochs")
    for key, node in callbacks.items():
        if node.get("every_n_train_steps"):
            problems.add(f"{key}.every_n_train_steps: {twice}", fix=f"{key}.every_n_epochs")
        if str(node.get("_target_")).endswith(".GradientAccumulationScheduler"):
            problems.add(f"{key}: the adversarial task accumulates itself", fix="trainer.accumulate_grad_batches")
    if config.trainer.strategy == "ddp":
        what = "discriminator and generator take turns, so a step leaves parameters unused"
        problems.add(f"trainer.strategy=ddp: {what}", fix="trainer.strategy=ddp_find_unused_parameters_true")


def _monitors(config: DictConfig) -> dict[str, str]:
    """Key -> figure of everything that watches one."""
    nodes = {f"callbacks.{name}": node for name, node in config.callbacks.items()} | {"scheduler": config.scheduler}
    return {f"{key}.monitor": node.monitor for key, node in nodes.items() if node is not None and "monitor" in node}


def _check_without_validation(config: DictConfig) -> None:
    """Refuse what waits for a figure of the validation split in a run that has none."""
    problems = Problems("a run without validation (cv.inner_val=0)")
    for key, figure in _monitors(config).items():
        node = OmegaConf.select(config, key.rpartition(".")[0])
        if not str(figure).startswith("train/") and not picks_best(node):
            problems.add(f"{key}: {figure} is not computed", fix="leave it out, or cv.inner_val=0.1")
    problems.raise_if_any(ConfigError)


def _check_folder(folder: Path, network: nn.Module | None) -> None:
    """See that the run's folder can be written to, and has room for its checkpoints."""
    with fresh_file(folder / ".writable") as fresh:
        fresh.touch()
    (folder / ".writable").unlink()
    weights = [] if network is None else [p.numel() * p.element_size() for p in network.parameters()]
    needed, free = sum(weights) * COPIES * CHECKPOINTS, shutil.disk_usage(folder).free
    if needed > free:
        room = f"{readable_bytes(free)} are free, expected {readable_bytes(needed)} for the checkpoints"
        raise WriteError(f"{folder}: {room}. Fix: make space, or another hydra.run.dir")


def check_device(config: DictConfig) -> None:
    """See that the device is there, and may be filled if that is asked for.

    Raises:
        ConfigError: if it is not.
    """
    try:
        device = build_trainer(config).strategy.root_device
    except ConfigError as error:
        if not isinstance(error.__cause__, MisconfigurationException):
            raise
        raise ConfigError(f"{error} Fix: trainer.accelerator=cpu, trainer=cpu or trainer=gpu") from error
    if config.data.batch_size == "auto" and device.type not in FILLED_WITHOUT_HARM:
        what = f"it fills the memory of a GPU, and the device is {device.type}"
        raise ConfigError(f"data.batch_size=auto: {what}. Fix: data.batch_size=4")


def _check_fit(network: nn.Module, data: SegmentationDataModule) -> None:
    """Check the network against the sizes it will see, before training starts."""
    problems = Problems("network and data")
    evaluated = {(int(height), int(width)) for height, width in data.eval_sizes("val")}
    sizes = {"data.crop": data.crop_size()} | {f"validation photos of {w}x{h}": (h, w) for h, w in evaluated}
    check_size = getattr(network, "check_size", lambda height, width: None)
    for what, size in sizes.items():
        try:
            check_size(*size)
        except ValueError as error:
            problems.add(f"{what}: {error}")
    least, count = getattr(network, "min_train_batch", 1), len(data.samples("train"))
    batch = count if data.batch_size == "auto" else min(data.batch_size, count)
    if batch < least:
        why = "this network normalises over the batch after pooling each image to one value"
        fix = f"data.batch_size={least} or more, or another model"
        problems.add(f"data.batch_size: found {batch}, expected at least {least}: {why}", fix=fix)
    problems.raise_if_any(ConfigError)


def try_one_batch(config: DictConfig, data: SegmentationDataModule, task: Task) -> None:
    """Train a copy of the task on one batch, and validate it on one; raises CitysegError as training would."""
    trainer = build_trainer(config, fast_dev_run=1, **own_steps(task))
    with explained(config, data), isolate_rng(), torch.random.fork_rng():
        trainer.fit(copy.deepcopy(task), datamodule=data)
