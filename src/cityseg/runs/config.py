"""What stands between a composed config and the objects it names: defaults that depend on the machine, and checks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cityseg.crossval.folds import FINAL
from cityseg.errors import CitysegError, ConfigError, Problems, did_you_mean
from cityseg.keys import dotted_keys
from cityseg.tasks.base import Task

TRUSTED = (
    "albumentations.",
    "cityseg.",
    "pytorch_lightning.",
    "segmentation_models_pytorch.",
    "torch.nn.",
    "torch.optim.",
    "torchmetrics.",
)
"""Prefixes of what a config that came with a checkpoint may build. What a user types may build anything."""


def settle(config: DictConfig) -> None:
    """Fix, in place, what depends on the machine and the moment, so that the saved config says what was used.

    The rest keeps its references (``${seed}``), so that a resumed run can override a key and have it followed.
    """
    config.run_dir = str(config.run_dir)
    if config.data.root is not None and "://" not in config.data.root:
        config.data.root = str(Path(config.data.root).expanduser().absolute())
    network = network_node(config)
    if "pretrained" in network and network.pretrained is None:
        network.pretrained = config.data.root is not None
    if "freeze_encoder" in network and network.freeze_encoder is None:
        network.freeze_encoder = bool(network.pretrained)
    if config.trainer.precision == "auto":
        config.trainer.precision = automatic_precision(config.trainer.accelerator)


def network_node(config: DictConfig) -> DictConfig:
    """The config of the segmentation network: the model, or the generator of an adversarial one."""
    return cast(DictConfig, config.model.generator if "generator" in config.model else config.model)


def automatic_precision(accelerator: str) -> str:
    """Mixed bfloat16 where the device computes in it, else float32."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        cpu = Path("/proc/cpuinfo")
        flags = cpu.read_text() if cpu.is_file() else ""
        return "bf16-mixed" if "avx512_bf16" in flags or "amx_bf16" in flags else "32-true"
    return "32-true"


def build(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate a config node.

    The arguments are handed to the target as they are: through Hydra, dataclasses among them would become configs.

    Raises:
        ConfigError: if a target does not exist or does not take an argument, with the nearest one that it takes.
    """
    try:
        if arguments:
            return hydra.utils.instantiate(node, _convert_="all", _partial_=True)(**arguments)
        built = hydra.utils.instantiate(node, _convert_="all")
        if isinstance(built, functools.partial):  # called only when training starts: look at its arguments now
            inspect.signature(built.func).bind_partial(*built.args, **built.keywords)
        return built
    except CitysegError:
        raise
    except TypeError as error:
        raise ConfigError(_wrong_argument(node, error)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"config of {node.get('_target_')}: {str(error).splitlines()[0]}") from error
    except hydra.errors.InstantiationException as error:
        if isinstance(error.__cause__, CitysegError):
            raise error.__cause__ from None
        raise ConfigError(_wrong_argument(node, error.__cause__ or error)) from error


def _wrong_argument(node: DictConfig, error: BaseException) -> str:
    reason = str(error).splitlines()[0]
    hint = ""
    if "unexpected keyword argument" in reason:
        hint = did_you_mean(reason.split("'")[1], _keywords(str(node._target_)))
    return f"{node._target_} could not be built: {reason}{'' if reason.endswith('.') else '.'}{hint}"


def _keywords(target: str) -> list[str]:
    found = hydra.utils.get_object(target)
    names = [name for name in inspect.signature(found).parameters if name != "self"]
    for base in getattr(found, "__mro__", ())[1:-1]:
        names += [name for name in inspect.signature(base.__init__).parameters if name != "self"]
    return list(dict.fromkeys(names))


def task_class(config: DictConfig) -> type[Task]:
    """What the config will train with, before it is built.

    Raises:
        ConfigError: if it is no task.
    """
    target = str(config.task._target_)
    try:
        found = hydra.utils.get_class(target)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"task._target_={target}: {str(error).splitlines()[0]}") from error
    if not issubclass(found, Task):
        raise ConfigError(f"task._target_={target}: expected a subclass of cityseg.tasks.base.Task")
    return found


def check_trusted(config: Mapping[str, Any], extra: Sequence[str] = ()) -> None:
    """Refuse a config that came with a checkpoint if it would build anything but the library's own parts.

    Args:
        config: plain containers.
        extra: further prefixes that the user trusts.

    Raises:
        ConfigError: naming the targets.
    """
    trusted = (*TRUSTED, *(prefix.rstrip(".") + "." for prefix in extra))
    if foreign := sorted({target for target in _targets(config) if not target.startswith(trusted)}):
        raise ConfigError(
            f"the checkpoint's config would build {', '.join(foreign)}, which is refused. Fix: if this is your own "
            f"code, add 'trusted=[{foreign[0].split('.')[0]}]'"
        )


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list | tuple | ListConfig):
        for value in node:
            yield from _targets(value)


def resume_config(saved: Mapping[str, Any], typed: Sequence[str], run_dir: str) -> DictConfig:
    """The config of a run that goes on: as it was saved, with what the user typed beside ``resume=``.

    Raises:
        ConfigError: if a typed key does not exist or chooses a config group.
    """
    config = OmegaConf.create(dict(saved))
    config.run_dir = run_dir
    OmegaConf.set_struct(config, True)
    for override in typed:
        key, _, value = override.partition("=")
        if key == "resume" or key.startswith("hydra."):
            continue
        node = OmegaConf.select(config, key.lstrip("+"))
        if isinstance(node, DictConfig) or "@" in key:
            raise ConfigError(f"{override}: a resumed run keeps its {key}; start a new run for another")
        try:
            OmegaConf.update(config, key, OmegaConf.from_dotlist([f"value={value}"]).value)
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{override}: no such key in the resumed run.{did_you_mean(key, dotted_keys(config))}"
            ) from error
    return config


def check_run_config(config: DictConfig, task: type[Task]) -> None:
    """Collect what is wrong with the run's keys before anything slow starts.

    Args:
        config: the composed config.
        task: what will train, and so which figures an epoch ends with.

    Raises:
        ConfigError: with every problem.
    """
    problems = Problems("the config")
    logged = task.logged
    for key, figure in {"monitor": config.monitor, **_monitors(config)}.items():
        if figure not in logged:
            problems.add(
                f"{key}: no figure {figure!r} is computed.{did_you_mean(str(figure), logged)}",
                fix=f"choose one of {', '.join(logged)}",
            )
    if config.monitor_mode not in ("min", "max"):
        problems.add(f"monitor_mode: found {config.monitor_mode!r}, expected min or max")
    expected = "min" if str(config.monitor).endswith("loss") else "max"
    if config.monitor in logged and config.monitor_mode in ("min", "max") and config.monitor_mode != expected:
        problems.add(f"monitor_mode: found {config.monitor_mode} for {config.monitor}", fix=f"monitor_mode={expected}")
    if config.trainer.get("sync_batchnorm") and config.trainer.accelerator == "cpu":
        problems.add("trainer.sync_batchnorm: it runs on GPUs only", fix="trainer.sync_batchnorm=false")
    if "ModelParallelStrategy" in str(config.trainer.strategy):
        _check_sharded(config, task, problems)
    if task.manual:
        _check_manual(config, problems)
    elif "discriminator" in config.model:
        problems.add(
            "model: a discriminator that this task does not train",
            fix="leave task out (model=gan brings task=adversarial), or train the generator alone (model=fpn_aspp)",
        )
    fold = config.fold
    if fold not in (None, FINAL) and (isinstance(fold, bool) or not isinstance(fold, int)):
        problems.add(f"fold: found {fold!r}, expected a whole number from 0, {FINAL}, or null for no fold")
    if not isinstance(config.seed, int) or config.seed < 0:
        problems.add(f"seed: found {config.seed!r}, expected a whole number from 0")
    problems.raise_if_any(ConfigError)


def check_without_validation(config: DictConfig) -> None:
    """Refuse what waits for a figure of the validation split in a run that has none.

    Raises:
        ConfigError: with every problem.
    """
    problems = Problems("a run without validation (cv.inner_val=0)")
    for key, figure in _monitors(config).items():
        node = OmegaConf.select(config, key.rpartition(".")[0])
        if not str(figure).startswith("train/") and not picks_best(node):
            problems.add(f"{key}: {figure} is not computed", fix="leave it out, or cv.inner_val=0.1")
    problems.raise_if_any(ConfigError)


def picks_best(node: DictConfig) -> bool:
    """Whether a callback keeps the best epoch's checkpoint."""
    return str(node.get("_target_")) == "cityseg.callbacks.best_checkpoint"


def _monitors(config: DictConfig) -> dict[str, str]:
    """Key -> figure of everything that watches one."""
    monitors = {
        f"callbacks.{name}.monitor": node.monitor
        for name, node in config.callbacks.items()
        if node is not None and "monitor" in node
    }
    if "monitor" in config.scheduler:
        monitors["scheduler.monitor"] = config.scheduler.monitor
    return monitors


def _check_sharded(config: DictConfig, task: type[Task], problems: Problems) -> None:
    """Refuse what needs all weights in one process."""
    if task.manual:
        problems.add("trainer=fsdp: it shares out one network with one optimizer, this task has two", fix="trainer=ddp")
    for name, node in config.callbacks.items():
        if node is not None and str(node.get("_target_")).endswith((".WeightEMA", ".EncoderFreezing")):
            problems.add(f"callbacks.{name}: it needs whole weights", fix=f"callbacks.{name}=null, or trainer=ddp")
    if config.compile:
        problems.add("compile=true with trainer=fsdp was never tried", fix="compile=false")


def _check_manual(config: DictConfig, problems: Problems) -> None:
    """Refuse what a task that steps its own optimizers cannot honour."""
    if "discriminator" not in config.model:
        problems.add("model: task=adversarial has no discriminator to train", fix="model=gan generator=NETWORK")
    if config.trainer.get("max_steps", -1) != -1:
        problems.add("trainer.max_steps: an adversarial batch is two optimizer steps", fix="trainer.max_epochs")
    for name, node in config.callbacks.items():
        if node is not None and node.get("every_n_train_steps"):
            problems.add(
                f"callbacks.{name}.every_n_train_steps: an adversarial batch is two optimizer steps",
                fix=f"callbacks.{name}.every_n_epochs",
            )
        if node is not None and str(node.get("_target_")).endswith(".GradientAccumulationScheduler"):
            problems.add(
                f"callbacks.{name}: the adversarial task accumulates by itself", fix="trainer.accumulate_grad_batches"
            )
    if config.trainer.strategy == "ddp":
        problems.add(
            "trainer.strategy=ddp: discriminator and generator take turns, so a step leaves parameters unused",
            fix="trainer.strategy=ddp_find_unused_parameters_true",
        )
