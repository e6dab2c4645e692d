"""What stands between a composed config and the objects it names: defaults that depend on the machine, and checks."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cityseg.crossval.folds import FINAL
from cityseg.errors import CitysegError, ConfigError, Problems, did_you_mean
from cityseg.keys import dotted_keys
from cityseg.runs.arguments import check_arguments, check_types
from cityseg.runs.trust import calls
from cityseg.tasks.base import Task

KEYS = {
    **dict.fromkeys(("blending", "input", "monitor", "monitor_mode", "output", "split"), str),
    **dict.fromkeys(("calibration", "compile", "official", "overwrite", "predictions"), bool),
    **{"alpha": float, "boundary": float | None, "large": int | None, "max_pixels": int, "panels": int},
    **{"data.scale": float | None, "save": str | list[str], "scales": list[float], "trusted": list[str]},
}
"""Keys that no group has, of all commands, and their types."""

Built = TypeVar("Built")


def settle(config: DictConfig) -> None:
    """Fix, in place, what depends on the machine and the moment, so that the saved config says what was used.

    The rest keeps its references (``${seed}``), so that a resumed run can override a key and have it followed; what
    is looked up elsewhere (``${oc.env:HOME}``) is not looked up again from a file.
    """
    nodes = _check_groups(config)
    config.run_dir = str(config.run_dir)
    for (*parents, name), _ in list(calls(cast(dict[str, Any], OmegaConf.to_container(config)))):
        node: Any = functools.reduce(operator.getitem, parents, config)
        node[name] = node[name]
    if config.data.root is not None and "://" not in str(config.data.root):
        config.data.root = str(Path(str(config.data.root)).expanduser().absolute())
    network = network_node(config)
    if "pretrained" in network and network.pretrained is None:
        network.pretrained = config.data.root is not None
    if "freeze_encoder" in network and network.freeze_encoder is None:
        network.freeze_encoder = bool(network.pretrained)
    if config.trainer.precision == "auto":
        config.trainer.precision = automatic_precision(config.trainer.accelerator)
    problems = Problems("the config")
    for key in nodes:
        plain: Any = OmegaConf.to_container(OmegaConf.select(config, key), resolve=True, throw_on_missing=True)
        plain.pop("class_weights", None)  # of the loss: the name of a scheme, or numbers
        check_arguments(plain, key, problems)
    problems.raise_if_any(ConfigError)


def _check_groups(config: DictConfig) -> list[str]:
    """The keys of the nodes that something is built from; what is said of them is checked later.

    Raises:
        ConfigError: with every group that is no mapping, and every key of no group that is of another type.
    """
    problems = Problems("the config")
    adversarial = isinstance(config.model, DictConfig) and "generator" in config.model
    networks = ("model.generator", "model.discriminator") if adversarial else ("model",)
    several = [
        f"{group}.{name}"
        for group in ("callbacks", "logger")
        for name, node in (config[group] or {}).items()
        if node is not None
    ]
    nodes = ["data", *networks, "loss", "optimizer", "scheduler", "task", "trainer", *several]
    for key in nodes:
        node = OmegaConf.select(config, key)
        if not isinstance(node, DictConfig) or "_target_" not in node:
            problems.add(f"{key}: found {node!r}, expected a mapping with the key _target_")
    check_keys(config)
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        problems.add(f"seed: found {config.seed!r}, expected a whole number from 0 to {2**32 - 1}")
    problems.raise_if_any(ConfigError)
    return nodes


def check_keys(config: DictConfig) -> None:
    """See that the keys of a command which build nothing have values of their types.

    Raises:
        ConfigError: with every problem.
    """
    problems = Problems("the config")
    found = {key: OmegaConf.select(config, key, default=...) for key in KEYS}  # ... fits any type
    plain = {key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for key, value in found.items()}
    check_types(plain, KEYS, "", problems)
    problems.raise_if_any(ConfigError)


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


def build(node: Any, kind: type[Built] = object, **arguments: Any) -> Built:  # type: ignore[assignment]
    """Instantiate a config node.

    The arguments are handed to the target as they are: through Hydra, dataclasses among them would become configs.

    Args:
        node: with a ``_target_``; a partial target raises the same error when it is called in the end.
        kind: what it has to be.
        arguments: of the target, beside the config's.

    Raises:
        ConfigError: naming the key, if a target does not exist, does not take an argument (with the nearest one that
            it takes) or fails.
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
            built = functools.partial(_called, node, key, built)
    if not isinstance(built, kind):
        raise ConfigError(f"{key}: {node._target_} gives a {type(built).__name__}, expected a {kind.__name__}")
    return built


def _called(node: DictConfig, key: str, built: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _explained(node, key):
        return built(*args, **kwargs)


@contextmanager
def _explained(node: DictConfig, key: str) -> Iterator[None]:
    """Say which node of the config could not be built; a library may raise anything."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, hydra.errors.InstantiationException) else None
        cause = cause or error
        if isinstance(cause, CitysegError):
            raise cause from None
        reason = " ".join((str(cause) or type(cause).__name__).split())[:300]
        hint = "" if reason.endswith(".") else "."
        if "unexpected keyword argument" in reason:
            hint += did_you_mean(reason.split("'")[1], _keywords(str(node._target_)))
        raise ConfigError(f"{key}: {node._target_} could not be built: {reason}{hint}") from cause


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
    logged = (*task.logged, *_logged_by_callbacks(config))
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
    if config.trainer.get("accumulate_grad_batches", 1) < 1:
        problems.add("trainer.accumulate_grad_batches: found less than 1", fix="trainer.accumulate_grad_batches=1")
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


def _logged_by_callbacks(config: DictConfig) -> Iterator[str]:
    """Figures that callbacks add, by their attribute ``logged``."""
    for node in config.callbacks.values():
        if node is not None and "_target_" in node:
            yield from getattr(hydra.utils.get_object(str(node._target_)), "logged", ())


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
    if config.data.batch_size == "auto":
        problems.add("data.batch_size=auto: it tries whole weights on one device", fix="a number, or trainer=ddp")


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
