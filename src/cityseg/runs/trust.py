"""A config that comes with a checkpoint or a run folder is data: what of it may be followed, and what is refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from cityseg.errors import ConfigError, Problems

TRUSTED = (
    *(f"cityseg.{part}." for part in ("callbacks", "data", "losses", "models", "reports.tensorboard", "schedulers")),
    *("cityseg.tasks.", "albumentations.", "segmentation_models_pytorch.", "torch.nn.", "torch.optim."),
    *(f"pytorch_lightning.{part}." for part in ("callbacks", "loggers", "plugins", "strategies", "trainer")),
    "pytorch_lightning.Trainer",
)
"""Where classes may be from that such a config builds. What a user types may build anything."""
BUILDERS = (
    "cityseg.callbacks.state.best_checkpoint",
    "cityseg.data.stream.stream",
    "cityseg.data.transforms.strict_pixel_transform",
    "cityseg.models.",
    "cityseg.schedulers.",
)
"""Functions that it may call: they build, and read or write no files but weights."""

_NAME = re.compile(r"[a-z]\w*(\.[a-z]\w*)+", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{(oc\.select:)?([a-z_]\w*(?:\.[a-z_]\w*)*)(?(1),\w+)\}", re.IGNORECASE)

Key = tuple[Any, ...]
"""Place of a value: the keys of mappings and the positions in lists that lead to it."""


def check_trusted(config: Mapping[str, Any], extra: Sequence[str] = ()) -> None:
    """Refuse a config of plain containers that would build or look up anything but the library's own parts.

    What has one of the `extra` prefixes the user trusts. Raises ConfigError, naming everything that is refused.
    """
    own = tuple(prefix.rstrip(".") + "." for prefix in extra)
    problems = Problems("the config that came with the checkpoint")
    for key, value in _leaves(config):
        target = str(value)
        if "_target_" in key and not _is_part(target, own):
            fix = f"if this is your own code, add 'trusted=[{target.split('.')[0]}]'"
            problems.add(f"it would build {target}, which is refused", _dotted(key), fix=fix)
    for key, text in calls(config):
        problems.add("an interpolation that is more than a plain value's name", f"{_dotted(key)}={text}")
    problems.raise_if_any(ConfigError)


def _is_part(target: str, own: tuple[str, ...]) -> bool:
    """Whether a name leads to a part of a run, and not by way of it to something that its module imports."""
    is_own = target.startswith(own)
    if not _NAME.fullmatch(target) or not (is_own or target.startswith(TRUSTED)):
        return False
    try:
        found = hydra.utils.get_object(target)
    except Exception:  # importing a module may raise anything; it is logged, and of the user's own raised again
        return is_own
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if is_own:
        return home.split(".")[0] == target.split(".")[0]
    return home.startswith(TRUSTED if inspect.isclass(found) else BUILDERS)


def calls(config: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """Key and text of every interpolation other than one of a plain value's name, or of that with a default."""
    leaves = dict(_leaves(config))

    def removed(match: re.Match[str]) -> str:
        value = leaves.get(tuple(match[2].split(".")), {} if match[1] is None else None)
        return match[0] if isinstance(value, Mapping) or "${" in str(value) else ""

    for key, value in leaves.items():
        if isinstance(value, str) and "${" in _REFERENCE.sub(removed, value):
            yield key, value


def check_inside(config: DictConfig, run_dir: Path, typed: Sequence[str]) -> None:
    """Refuse callbacks, loggers and a trainer of a resumed run that would write outside of its folder.

    What the user has typed may be anywhere. Raises ConfigError, naming the keys.
    """
    trusted = {text.partition("=")[0].lstrip("+") for text in typed}
    problems = Problems("the config that came with the checkpoint")
    resolved = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for key, value in _leaves({group: resolved[group] for group in ("callbacks", "logger", "trainer")}):
        if isinstance(value, str) and _dotted(key) not in trusted and _is_outside(str(key[-1]), value, run_dir):
            fix = "if it is your own, type it again beside resume="
            problems.add("a path outside of the run's folder", f"{_dotted(key)}={value}", fix=fix)
    problems.raise_if_any(ConfigError)


def _is_outside(name: str, value: str, run_dir: Path) -> bool:
    path = Path(value.removeprefix("sqlite:///"))
    if value.startswith(("http://", "https://")):
        return False
    is_path = path.is_absolute() or "://" in value or re.search("path|folder|dir$|uri", name) is not None
    outside = not path.absolute().is_relative_to(run_dir.absolute())
    return ".." in path.parts or value.startswith("~") or (is_path and outside)


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))


def _leaves(node: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Everything that is no container, or an empty one, with its place."""
    if isinstance(node, list | tuple | Mapping):
        for name, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _leaves(value, (*key, name))
    if not isinstance(node, list | tuple | Mapping) or not node:
        yield key, {} if isinstance(node, list | tuple | Mapping) else node
