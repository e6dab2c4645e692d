"""A composed config: what depends on the machine is fixed in it, and its values are compared with type hints."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cityseg.errors import ConfigError, Problems, did_you_mean
from cityseg.keys import dotted_keys
from cityseg.runs.trust import calls

KEYS: dict[str, Any] = {
    **dict.fromkeys(("blending", "input", "monitor", "output", "split"), str),
    **{"check": Literal["quick", "full"], "monitor_mode": Literal["min", "max"]},
    **dict.fromkeys(("calibration", "compile", "official", "overwrite", "predictions"), bool),
    **{"alpha": float, "boundary": float | None, "large": int | None, "max_pixels": int, "panels": int},
    **{"data.scale": float | None, "save": str | list[str], "scales": list[float], "trusted": list[str]},
}
"""Keys that no group has, of all commands, and their types."""


def settle(config: DictConfig) -> None:
    """Fix, in place, what depends on the machine and the moment, so that the saved config says what was used.

    The rest keeps its references (``${seed}``), so that a resumed run can override a key and have it followed; what
    is looked up elsewhere (``${oc.env:HOME}``) is not looked up again from a file.
    """
    nodes = _checked_nodes(config)
    config.run_dir = str(config.run_dir)
    for (*parents, name), _ in list(calls(cast(dict[str, Any], OmegaConf.to_container(config)))):
        node: Any = functools.reduce(operator.getitem, parents, config)
        node[name] = node[name]
    if config.data.root is not None and "://" not in str(config.data.root):
        config.data.root = os.path.abspath(Path(str(config.data.root)).expanduser())
    network = network_node(config)
    if "pretrained" in network and network.pretrained is None:
        network.pretrained = config.data.root is not None
    if "freeze_encoder" in network and network.freeze_encoder is None:
        network.freeze_encoder = bool(network.pretrained)
    if config.trainer.precision == "auto":
        config.trainer.precision = _automatic_precision(config.trainer.accelerator)
    problems = Problems("the config")
    for key in nodes:
        plain: Any = OmegaConf.to_container(OmegaConf.select(config, key), resolve=True, throw_on_missing=True)
        plain.pop("class_weights", None)  # of the loss: the name of a scheme, or numbers
        check_arguments(plain, key, problems)
    problems.raise_if_any(ConfigError)


def _checked_nodes(config: DictConfig) -> list[str]:
    """The keys of the nodes that something is built from, which are mappings; what is said in them is checked later."""
    problems = Problems("the config")
    adversarial = isinstance(config.model, DictConfig) and "generator" in config.model
    networks = ("model.generator", "model.discriminator") if adversarial else ("model",)
    keys = ["data", *networks, "loss", "optimizer", "scheduler", "task", "trainer"]
    for group in ("callbacks", "logger"):
        keys += [f"{group}.{name}" for name, node in (config[group] or {}).items() if node is not None]
    for key in keys:
        node = OmegaConf.select(config, key)
        if not isinstance(node, DictConfig) or "_target_" not in node:
            problems.add(f"{key}: found {node!r}, expected a mapping with the key _target_")
    check_keys(config)
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        problems.add(f"seed: found {config.seed!r}, expected a whole number from 0 to {2**32 - 1}")
    problems.raise_if_any(ConfigError)
    return keys


def check_keys(config: DictConfig) -> None:
    """See that the keys of a command which build nothing have values of their types; raises ConfigError."""
    problems = Problems("the config")
    found = {key: OmegaConf.select(config, key, default=...) for key in KEYS}
    plain = {key: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for key, v in found.items() if v is not ...}
    _check_types(plain, KEYS, "", problems)
    problems.raise_if_any(ConfigError)


def network_node(config: DictConfig) -> DictConfig:
    """The config of the segmentation network: the model, or the generator of an adversarial one."""
    return cast(DictConfig, config.model.generator if "generator" in config.model else config.model)


def _automatic_precision(accelerator: str) -> str:
    """Mixed bfloat16 where the device computes in it, else float32."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        cpu = Path("/proc/cpuinfo")
        flags = cpu.read_text() if cpu.is_file() else ""
        return "bf16-mixed" if "avx512_bf16" in flags or "amx_bf16" in flags else "32-true"
    return "32-true"


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
        if "@" in key or isinstance(OmegaConf.select(config, key.lstrip("+")), DictConfig):
            raise ConfigError(f"{override}: a resumed run keeps its {key}; start a new run for another")
        try:
            OmegaConf.update(config, key, OmegaConf.from_dotlist([f"value={value}"]).value)
        except OmegaConfBaseException as error:
            hint = did_you_mean(key, dotted_keys(config))
            raise ConfigError(f"{override}: no such key in the resumed run.{hint}") from error
    return config


def check_arguments(node: Any, key: str, problems: Problems) -> None:
    """Compare what a node of plain containers would hand to its targets with their type hints; adds what is wrong."""
    if isinstance(node, list):
        for index, value in enumerate(node):
            check_arguments(value, f"{key}[{index}]", problems)
    if isinstance(node, dict):
        if "_target_" in node:
            hints = _target_hints(str(node["_target_"]))
            if hints is None:
                problems.add(f"{key}._target_={node['_target_']}: expected the dotted name of a function or class")
            _check_types(node, {"_partial_": bool, **(hints or {})}, f"{key}.", problems)
        for name, value in node.items():
            check_arguments(value, f"{key}.{name}", problems)


def _check_types(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str, problems: Problems) -> None:
    """Compare plain values with type hints of the same names; names without a hint may be anything."""
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            near = did_you_mean(str(value), [known for known in _literals(hints[name]) if isinstance(known, str)])
            problems.add(f"{prefix}{name}: found {value!r}, expected {_shown(hints[name])}.{near}")


@functools.lru_cache
def _target_hints(target: str) -> dict[str, Any] | None:
    """Type hints of the arguments of a function or class, by its dotted name; None where there is no such thing."""
    try:
        found = hydra.utils.get_object(target)
    except Exception:  # that of a module which could not be imported may be any
        return None
    bases = [vars(base).get("__init__") for base in reversed(found.__mro__)] if isinstance(found, type) else [found]
    hints: dict[str, Any] = {}
    for function in bases:
        with suppress(NameError, TypeError):  # hints for type checkers alone
            hints |= get_type_hints(inspect.unwrap(function))  # type: ignore[arg-type]
    return hints


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is what a type hint asks for; True where the hint, or the value, is no plain one.

    >>> fits(1, float), fits(True, int), fits([1, 2], tuple[float, float]), fits("x", Literal["y"] | None)
    (True, False, True, False)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    kind = NoneType if hint is None else origin or hint
    plain = isinstance(value, str | int | float | list | dict | NoneType)
    if not plain or not isinstance(kind, type) or kind in (object, Any):
        return True
    if isinstance(value, bool | str):  # the one is an integer too, and the other a sequence, where no one means it
        return kind is type(value)
    if isinstance(value, list) and (kind is tuple or issubclass(list, kind)):
        length = len(inner) if kind is tuple and ... not in inner else len(value)
        each = inner if length == len(inner) else inner[:1] * length
        return length == len(value) and (not inner or all(map(fits, value, each)))
    if isinstance(value, dict):  # one with a target is built first
        fitting = issubclass(dict, kind) and all(fits(one, hint) for one in value.values() for hint in inner[1:])
        return "_target_" in value or fitting
    return isinstance(value, kind) or (isinstance(value, int) and kind is float)


def _literals(hint: Any) -> Iterator[Any]:
    for one in get_args(hint):
        yield from _literals(one) if get_args(one) else [one]


def _shown(hint: Any) -> str:
    """A type hint without the modules' names."""
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_shown, get_args(hint)))
    return "None" if hint is NoneType else re.sub(r"\b(\w+\.)+(?=\w)", "", inspect.formatannotation(hint))
