"""What a run folder holds, read back for the pages that show it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import yaml  # type: ignore[import-untyped]

from cityseg.crossval.folds import read_scored_counts, read_yaml
from cityseg.crossval.statistics import mean_iou
from cityseg.errors import ConfigError, DataError
from cityseg.image_counts import ImageCounts
from cityseg.keys import dotted_values
from cityseg.labels import Color, custom_label_space, label_space
from cityseg.reports.plots import History

WORST = 20  # images that are named, and drawn, because their mIoU is lowest


class ImageScore(NamedTuple):
    """Fractions of one image; ``panel`` is the name of its picture in ``predictions/``, if it can have one."""

    image: str
    miou: float
    wrong: float
    panel: str | None


class Choice(NamedTuple):
    """A key, or a group of keys, that was not left as it is; ``experiment`` if that set it, else it was typed."""

    value: str
    experiment: bool


@dataclass(frozen=True)
class RunFiles:
    """A run folder with figures."""

    folder: Path
    figures: Mapping[str, Any]  # content of metrics.json
    history: History  # rows of history.csv; empty where there is none
    config: Mapping[str, str]  # dotted key -> value as text, of .hydra/config.yaml
    choices: Mapping[str, Choice]  # dotted key or group -> what the command line or the experiment set it to
    experiment_file: bool  # False if an experiment was chosen whose file is not to be found
    parts: Mapping[str, int]  # part -> images, of split.csv
    images: ImageCounts | None  # pixel counts of each image; None where there are none that fit the figures
    colors: Mapping[str, Color]  # of the classes, where they are known

    @property
    def name(self) -> str:
        """``NAME/TIMESTAMP``."""
        return "/".join(self.folder.absolute().parts[-2:])

    @cached_property
    def image_scores(self) -> list[ImageScore]:
        """Score of each image that has a valid pixel, the worst first."""
        if self.images is None:
            return []
        stems = [PurePath(image).stem.removesuffix("_leftImg8bit") for image in self.images.images]
        times = Counter(stems)
        hits, truth, _ = np.moveaxis(self.images.counts.sum(axis=-1), -1, 0)
        scores = [
            ImageScore(image, float(miou), 1 - hit / true, stem if times[stem] == 1 else None)
            for image, miou, hit, true, stem in zip(
                self.images.images, mean_iou(self.images.counts), hits.tolist(), truth.tolist(), stems, strict=True
            )
            if true
        ]
        return sorted(scores, key=lambda score: score.miou)


def read_run(folder: Path) -> RunFiles:
    """Read a run folder of training or evaluation; what is missing beside ``metrics.json`` is left out.

    Raises:
        DataError: if there is no ``metrics.json`` that can be read.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise DataError(f"found no {path}, expected the folder of a run that has finished")
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        config = read_yaml(folder / ".hydra" / "config.yaml") or {}
        choices, experiment_file = _choices(folder / ".hydra")
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{folder} cannot be read: {error}") from error
    try:
        images = read_scored_counts(folder, figures)
    except DataError:
        images = None
    history = read_history(folder / "history.csv")
    parts = Counter(row["part"] for row in _rows(folder / "split.csv"))
    colors = class_colors(figures, config)
    return RunFiles(folder, figures, history, _texts(config), choices, experiment_file, parts, images, colors)


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of a ``history.csv``; empty cells are left out, and where there is no file there are no rows."""
    rows = [{key: float(value) for key, value in row.items() if value} for row in _rows(path)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def class_colors(figures: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Color]:
    """Colours of a built-in label space, or of the classes that the config names; none where neither is known."""
    try:
        space = label_space(str(figures.get("label_space")))
    except ConfigError:
        classes = (config.get("data") or {}).get("classes")
        if not classes:
            return {}
        space = custom_label_space(classes)
    return dict(zip(space.class_names, space.colors, strict=True))


def _choices(folder: Path) -> tuple[dict[str, Choice], bool]:
    """What was typed, when the run began and when it was resumed, and what the experiment set.

    The configs the run was composed from are read as plain YAML, where they still are: a choice of a group that is
    the default is left out then. Values are not compared with defaults: those may be others by now.
    """
    resumed = sorted(folder.glob("resumed_*/overrides.yaml"))
    typed = [str(text) for path in (folder / "overrides.yaml", *resumed) for text in read_yaml(path) or []]
    pairs = [text.lstrip("+~").partition("=")[::2] for text in typed]
    chosen = {key.partition("@")[2] or key: Choice(value, False) for key, value in pairs if key != "resume"}
    hydra = (read_yaml(folder / "hydra.yaml") or {}).get("hydra") or {}
    experiment = f"experiment/{chosen['experiment'].value}.yaml" if "experiment" in chosen else None
    found = not experiment
    for listed in (hydra.get("runtime") or {}).get("config_sources", ()):
        if listed["schema"] != "file":
            continue
        source = Path(listed["path"])
        if experiment and (content := read_yaml(source / experiment)) is not None:
            groups = {key.removeprefix("override ").lstrip("/"): value for key, value in _defaults(content).items()}
            values = _texts(groups) | _texts(content)
            chosen |= {key: Choice(value, True) for key, value in values.items() if key not in chosen}
            found = True
        main = read_yaml(source / f"{(hydra.get('job') or {}).get('config_name')}.yaml") or {}
        for group, default in _defaults(main).items():
            if group in chosen and yaml.safe_load(chosen[group].value) == default:
                del chosen[group]
    return chosen, found


def _defaults(content: dict[str, Any]) -> dict[str, Any]:
    """Take the groups and their choices out of the head of a config."""
    return {
        key: value
        for entry in content.pop("defaults", ())
        if isinstance(entry, dict)  # else it is _self_
        for key, value in entry.items()
    }


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for key, value in dotted_values(config).items()
    }


def chosen_by(key: str, choices: Mapping[str, Choice]) -> Choice | None:
    """The choice that set a key of the config, the most particular one; None for a default.

    >>> chosen_by("model.encoder", {"model": Choice("unet", False)})
    Choice(value='unet', experiment=False)
    """
    parts = key.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((choices[name] for name in names if name in choices), None)
