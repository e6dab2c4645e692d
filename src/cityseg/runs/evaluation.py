"""Scoring a checkpoint from its file alone."""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cityseg.boundaries import Boundaries
from cityseg.calibration import Calibration
from cityseg.checkpoints import Checkpoint, load_checkpoint, load_weights
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.samples import Samples
from cityseg.errors import CheckpointError, ConfigError
from cityseg.files import write_json
from cityseg.inference import Ensemble, Inference, Size
from cityseg.instances import Instances, instance_file
from cityseg.labels import LabelSpace
from cityseg.reports.summary import SCORE_NAMES, percent
from cityseg.runs.config import check_keys, network_node
from cityseg.runs.objects import build_data, build_loss, build_network, build_trainer, divide
from cityseg.runs.output import explained, print_closing, quiet_libraries
from cityseg.runs.scoring import (
    BoundaryFigures,
    Cost,
    InstanceFigures,
    PerImage,
    Pictures,
    Scored,
    official_scores,
    score,
    write_figures,
)
from cityseg.runs.trust import check_trusted
from cityseg.tasks.base import Task

log = logging.getLogger(__name__)

OFFICIAL = {
    **{"miou": "averageScoreClasses", "category_miou": "averageScoreCategories"},
    **{"miiou": "averageScoreInstClasses", "category_miiou": "averageScoreInstCategories"},
}
"""Our names of figures -> those of cityscapesScripts."""


class Scorable(NamedTuple):
    """A checkpoint, and what its file and the evaluation config make of it."""

    checkpoint: Checkpoint
    run: DictConfig
    data: SegmentationDataModule
    task: Task


def evaluate(config: DictConfig, run_dir: Path) -> float | None:
    """Score one checkpoint, or several (each in a folder of ``members``) and their ensemble, on one split.

    Returns:
        mIoU, of the ensemble where there are several checkpoints; None where the split has no labels.

    Raises:
        CitysegError: for what a user can mend.
    """
    quiet_libraries()
    check_keys(config)
    inference = build_inference(config)
    parts = [_prepare(config, inference, path, run_dir) for path in checkpoint_paths(config)]
    first, several = parts[0], len(parts) > 1
    check_alike([(part.checkpoint, part.run) for part in parts], ("scale", "val_crop"))
    _check_same_images(parts, config.split)
    members: list[dict[str, Any]] = []
    for number, part in enumerate(parts, start=1):
        folder = run_dir / "members" / str(number) if several else run_dir
        origin = {"checkpoint": str(part.checkpoint.path.absolute()), "trained_epochs": part.checkpoint.epochs}
        members.append(_score(part, config, folder) | origin)
        if several:
            write_json(folder / "metrics.json", members[-1])
    figures = members[0]
    if several:
        first.task.network = Ensemble([part.task.network for part in parts])
        figures = _score(first, config, run_dir)
        figures["members"] = [
            {key: member[key] for key in ("checkpoint", "trained_epochs", *SCORE_NAMES) if key in member}
            | {"iou": {name: row["iou"] for name, row in member.get("per_class", {}).items()}}
            for member in members
        ]
    write_figures(figures, run_dir, first.data.label_space)
    print_closing(figures, run_dir)
    if config.official:
        _print_side_by_side([figures, figures["official"]], ["cityseg", "cityscapesScripts"])
    if several:
        _print_side_by_side([*members, figures], [*map(str, range(1, len(parts) + 1)), "ensemble"])
    return figures.get("miou")


def checkpoint_paths(config: DictConfig) -> list[Path]:
    """The files that the key `ckpt` names, one or several.

    Raises:
        ConfigError: if it names none.
    """
    paths = config.ckpt if isinstance(config.ckpt, ListConfig) else [config.ckpt]
    if not paths:
        raise ConfigError("ckpt: found an empty list, expected a .ckpt file, or several")
    return [Path(str(path)).expanduser() for path in paths]


def build_inference(config: DictConfig) -> Inference:
    """What the keys `inference`, `window`, `stride`, `blending`, `tta` and `scales` ask for.

    Raises:
        ConfigError: if a value is unknown, or the keys do not go together.
    """
    for key, choices in (("inference", ("whole", "sliding")), ("tta", ("none", "flip", "multiscale"))):
        if config[key] not in choices:
            raise ConfigError(f"{key}: found {config[key]!r}, expected one of {', '.join(choices)}")
    sliding, several = config.inference == "sliding", config.tta == "multiscale"
    return Inference(
        window=_size(config, "window") if sliding else None,
        stride=_size(config, "stride") if sliding and config.stride is not None else None,
        blending=config.blending,
        scales=tuple(float(scale) for scale in config.scales) if several else (1.0,),
        flip=config.tta != "none",
    )


def _size(config: DictConfig, key: str) -> Size:
    value = config[key]
    sides = list(value) if isinstance(value, ListConfig) else [value, value]
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise ConfigError(f"{key}: found {value!r}, expected a number of pixels, or [height, width]")
    return sides[0], sides[1]


def _prepare(config: DictConfig, inference: Inference, path: Path, run_dir: Path) -> Scorable:
    """Load a checkpoint and find its data, which have to fit each other."""
    checkpoint = load_checkpoint(path)
    run = evaluation_config(checkpoint, config, run_dir)
    pl.seed_everything(run.seed, workers=False, verbose=False)
    data = build_data(run)
    own, given = checkpoint.label_space, data.label_space
    if own.class_names != given.class_names:
        spaces = f"was trained on {_names(own)}, the data has {_names(given)}"
        raise CheckpointError(f"ckpt={path} {spaces}. Fix: give data with the checkpoint's classes")
    if run.get("fold") is not None:
        divide(run, data)
    task = build_scoring_task(run, checkpoint, data)
    task.inference = inference
    samples = data.samples(config.split)
    if samples.labels is None and not config.predictions:
        log.warning("split %s of %s has no labels: nothing can be scored", config.split, data.dataset_name)
    _check_sizes(task, data, config.split)
    if config.official:
        _check_official(run, data, samples)
    return Scorable(checkpoint, run, data, task)


def _score(part: Scorable, config: DictConfig, folder: Path) -> dict[str, Any]:
    """The figures of one network, or of the ensemble."""
    started = time.perf_counter()
    task, data, space = part.task, part.data, part.data.label_space
    samples, instances = data.samples(config.split), Instances(space)
    task.calibration = Calibration(ignore_index=space.ignore_index) if config.calibration else None
    callbacks: list[Scored] = [Cost(), PerImage(folder, samples, draw=config.panels > 0)]
    if config.boundary is not None:
        boundaries = Boundaries(space.class_names, config.boundary, ignore_index=space.ignore_index)
        callbacks.append(BoundaryFigures(boundaries))
    files = _instance_files(samples) if instances.classes and part.run.data.get("val_crop") in (None, "none") else []
    if files:
        callbacks.append(InstanceFigures(instances, files))
    predictions = config.predictions or config.official
    callbacks.append(Pictures(folder, samples, panels=config.panels, predictions=predictions))
    with explained(part.run, data):
        figures = score(task, data, config.split, build_trainer(part.run, callbacks, progress=True))
    if config.official:
        figures["official"] = _official(figures, folder, samples, instances=bool(files))
    return figures | {"seconds": round(time.perf_counter() - started, 1)}


def _instance_files(samples: Samples) -> list[Path]:
    """The instanceIds file of each sample; empty unless all are there."""
    labels = [samples.label(index) for index in range(len(samples))]
    files = [file for label in labels if label and (file := instance_file(label)) and file.is_file()]
    if 0 < len(files) < len(samples):
        log.warning("%d of %d samples have no instanceIds file: no iIoU", len(samples) - len(files), len(samples))
    return files if len(files) == len(samples) else []


def _official(figures: Mapping[str, Any], folder: Path, samples: Samples, *, instances: bool) -> dict[str, Any]:
    """What cityscapesScripts says of the predictions that were written, under our names, and how far we differ."""
    indices = range(len(samples))
    predictions = [folder / "label_ids" / f"{samples.name(index)}_pred_labelIds.png" for index in indices]
    truths = [label for index in indices if (label := samples.label(index))]
    theirs = official_scores(predictions, truths, instances=instances)
    scores = {name: value for name, value in theirs["classScores"].items() if name in figures["per_class"]}
    found: dict[str, Any] = {ours: _present(theirs[name]) for ours, name in OFFICIAL.items() if ours in figures}
    pairs = [(figures[name], value) for name, value in found.items()]
    pairs += [(figures["per_class"][name]["iou"], _present(value)) for name, value in scores.items()]
    found["per_class"] = {name: {"iou": _present(value)} for name, value in scores.items()}
    differences = [abs(ours - other) for ours, other in pairs if ours is not None and other is not None]
    return found | {"largest_difference": max(differences, default=None)}


def _present(score: float) -> float | None:
    return None if math.isnan(score) else score


def _print_side_by_side(columns: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> None:
    table = Table("%", *(Column(title, justify="right") for title in titles), box=None, pad_edge=False)
    names = {**SCORE_NAMES, "category_miou": "category mIoU", "miiou": "iIoU", "category_miiou": "category iIoU"}
    for key, name in names.items():
        if all(key in figures for figures in columns):
            table.add_row(name, *(percent(figures[key], digits=2) for figures in columns))
    for name in columns[-1].get("per_class", ()):
        table.add_row(Text(name), *(percent(figures["per_class"][name]["iou"], digits=2) for figures in columns))
    Console().print(table)


def evaluation_config(checkpoint: Checkpoint, wanted: DictConfig, run_dir: Path) -> DictConfig:
    """The checkpoint's own config, on one device, with what the user asked for instead; refuses foreign code.

    Raises:
        CitysegError: if something does not fit the checkpoint.
    """
    check_trusted(checkpoint.config, wanted.trusted)
    run = OmegaConf.create(checkpoint.config)
    run.run_dir = str(run_dir)
    run.trainer = {**run.trainer, "devices": 1, "strategy": "auto", "num_nodes": 1, "accelerator": "auto"}
    for group in ("data", "trainer"):
        for key, value in wanted[group].items():
            if value is not None:
                run[group][key] = value
    if wanted.fold not in (None, "none"):
        raise ConfigError(f"fold: found {wanted.fold!r}, expected null for the checkpoint's own fold, or none")
    if wanted.fold == "none":
        run.fold = None
    # The weights are in the checkpoint: nothing is to be fetched.
    if "pretrained" in network_node(run):
        network_node(run).pretrained = False
    return run


def build_scoring_task(run: DictConfig, checkpoint: Checkpoint, data: SegmentationDataModule) -> Task:
    """A task that can score but not train, with the weights of the checkpoint."""
    # Class weights are part of the weights: any of the right shape will do here.
    has_weights = run.loss.get("class_weights") not in (None, "none")
    weights = torch.ones(data.label_space.num_classes) if has_weights else None
    task = Task(build_network(run, data.label_space), build_loss(run, data.label_space, weights), data.label_space)
    load_weights(task, checkpoint, leave_out="discriminator.")
    return task


def check_alike(members: Sequence[tuple[Checkpoint, DictConfig]], keys: Sequence[str]) -> None:
    """Refuse an ensemble of checkpoints that give different classes, or whose runs differ in a key of `data`.

    Raises:
        CheckpointError: naming the key.
    """
    first, first_run = members[0]
    for other, run in members[1:]:
        where = f"ckpt={other.path} beside {first.path}"
        if other.label_space.class_names != first.label_space.class_names:
            spaces = f"{_names(other.label_space)} and {_names(first.label_space)}"
            raise CheckpointError(f"{where}: found {spaces}, expected checkpoints of the same classes")
        for key in keys:
            one, two = run.data.get(key), first_run.data.get(key)
            if one != two:
                found = f"found data.{key}={one} and {two}, expected one"
                raise CheckpointError(f"{where}: {found}. Fix: set data.{key} for both")


def _check_same_images(parts: Sequence[Scorable], split: str) -> None:
    """Refuse checkpoints that would be scored on different images."""
    first = parts[0]
    for other in parts[1:]:
        one, two = first.data.samples(split), other.data.samples(split)
        if one.root != two.root or one.names() != two.names():
            raise CheckpointError(
                f"ckpt={other.checkpoint.path} beside {first.checkpoint.path}: split {split} has other images, of "
                f"{two.root} and {one.root}. Fix: set data.root for both, or fold=none for different folds"
            )


def _check_sizes(task: Task, data: SegmentationDataModule, split: str) -> None:
    """Refuse photos that the network cannot take."""
    check_size = getattr(task.network, "check_size", lambda height, width: None)
    for height, width in {(int(h), int(w)) for h, w in data.eval_sizes(split)}:
        for size in task.inference.network_sizes(height, width):
            try:
                check_size(*size)
            except ValueError as error:
                fixed = getattr(task.network, "fixed_size", None)
                fix = f". Fix: inference=sliding window=[{fixed[0]},{fixed[1]}]" if fixed else ""
                raise ConfigError(f"photos of {width}x{height}: {error}{fix}") from error


def _check_official(run: DictConfig, data: SegmentationDataModule, samples: Samples) -> None:
    """Refuse what cityscapesScripts cannot score."""
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise ConfigError("official=true: cityscapesscripts is not installed. Fix: pip install 'cityseg[cityscapes]'")
    label = samples.label(0)
    if label is None or not label.name.endswith("_labelIds.png") or not Instances(data.label_space).classes:
        found = f"label {label} and label space {data.label_space.name!r}"
        raise ConfigError(f"official=true: found {found}, expected files *_labelIds.png of Cityscapes classes")
    if run.data.get("val_crop") not in (None, "none"):
        raise ConfigError("official=true: whole images only. Fix: data.val_crop=none")


def _names(space: LabelSpace) -> str:
    shown = ", ".join(space.class_names[:5]) + (", ..." if space.num_classes > 5 else "")
    return f"{space.num_classes} classes of {space.name!r} ({shown})"
