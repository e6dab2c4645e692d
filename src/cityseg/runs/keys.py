"""The keys of a config, as they are typed; light, for the commands that answer before torch is imported."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def dotted_keys(config: Any, prefix: str = "") -> list[str]:
    """Every key of a config, as it is typed."""
    keys: list[str] = []
    if isinstance(config, DictConfig):
        for key in map(str, config):
            name = f"{prefix}{key}"
            keys.append(name)
            if not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(config, key):
                keys += dotted_keys(config[key], f"{name}.")
    return keys
