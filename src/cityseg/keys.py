"""The keys of a config, as they are typed; light, for the commands that answer before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def dotted_keys(config: Any, prefix: str = "") -> list[str]:
    """Every key of a config, as it is typed."""
    keys: list[str] = []
    plain: Any = OmegaConf.to_container(config) if isinstance(config, DictConfig) else config
    for key, value in plain.items() if isinstance(plain, dict) else ():
        keys += [f"{prefix}{key}", *dotted_keys(value, f"{prefix}{key}.")]
    return keys


def dotted_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested plain mappings by dotted key; an empty mapping is a value.

    >>> dotted_values({"data": {"crop": 64, "scenes": {}}})
    {'data.crop': 64, 'data.scenes': {}}
    """
    values: dict[str, Any] = {}
    for key, value in config.items():
        deeper = isinstance(value, Mapping) and value
        values |= dotted_values(value, f"{prefix}{key}.") if deeper else {f"{prefix}{key}": value}
    return values
