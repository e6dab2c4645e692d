"""Scoring a checkpoint from its file alone."""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cityseg.boundaries import Boundaries
from cityseg.calibration import Calibration
from cityseg.checkpoints import Checkpoint, load_checkpoint, load_weights
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.samples import Samples
from cityseg.environment import environment
from cityseg.errors import CheckpointError, ConfigError
from cityseg.files import write_json
from cityseg.inference import Ensemble, Inference, Size
from cityseg.instances import Instances, instance_file
from cityseg.reports.html.run import write_run_page
from cityseg.reports.plots import plot_class_iou, plot_confusion
from cityseg.reports.summary import percent
from cityseg.runs.config import check_keys, network_node
from cityseg.runs.failures import explained
from cityseg.runs.objects import build_data, build_loss, build_network, build_trainer, divide
from cityseg.runs.output import print_closing, quiet_libraries
from cityseg.runs.scoring import (
    BoundaryFigures,
    Cost,
    Figures,
    InstanceFigures,
    PerImage,
    Pictures,
    official_scores,
    score,
)
from cityseg.runs.trust import check_trusted
from cityseg.tasks.base import Task

log = logging.getLogger(__name__)

COMPARED = {"miou": "mIoU", "mpa": "mPA", "pixel_accuracy": "pixel accuracy", "fwiou": "fwIoU", "dice": "Dice"}
"""Figures that stand side by side where there are several checkpoints."""
OFFICIAL = {
    "miou": "averageScoreClasses",
    "category_miou": "averageScoreCategories",
    "miiou": "averageScoreInstClasses",
    "category_miiou": "averageScoreInstCategories",
}
"""Our names of figures -> those of cityscapesScripts."""


@dataclass
class Scorable:
    """A checkpoint, and what its file and the evaluation config make of it."""

    checkpoint: Checkpoint
    run: DictConfig
    data: SegmentationDataModule
    task: Task


def evaluate(config: DictConfig, run_dir: Path) -> float | None:
    """Score one checkpoint, or several and their ensemble, on one split and write the figures and pictures.

    Args:
        config: the composed evaluation config; keys of `data` and `trainer` that are not null replace the
            checkpoint's own.
        run_dir: where everything goes; each of several checkpoints has a folder of its own in ``members``.

    Returns:
        mIoU, of the ensemble where there are several checkpoints; None where the split has no labels.

    Raises:
        CitysegError: for what a user can mend.
    """
    quiet_libraries()
    check_keys(config)
    inference = build_inference(config)
    parts = [_prepare(config, inference, path, run_dir) for path in checkpoint_paths(config)]
    first = parts[0]
    if len(parts) == 1:
        figures = _score(first, config, run_dir)
        origin = {"checkpoint": str(first.checkpoint.path.absolute()), "trained_epochs": first.checkpoint.epochs}
        return _write(figures | origin, first, config, run_dir)
    check_alike([(part.checkpoint, part.run) for part in parts], ("scale", "val_crop"))
    _check_same_images(parts, config.split)
    members: list[dict[str, Any]] = []
    for number, part in enumerate(parts, start=1):
        folder = run_dir / "members" / str(number)
        figures = _score(part, config, folder)
        figures |= {"checkpoint": str(part.checkpoint.path.absolute()), "trained_epochs": part.checkpoint.epochs}
        write_json(folder / "metrics.json", figures)
        members.append(figures)
    first.task.network = Ensemble([part.task.network for part in parts])
    figures = _score(first, config, run_dir)
    kept = ("checkpoint", "trained_epochs", *COMPARED)
    figures["members"] = [
        {
            **{key: member[key] for key in kept if key in member},
            "iou": {name: row["iou"] for name, row in member.get("per_class", {}).items()},
        }
        for member in members
    ]
    miou = _write(figures, first, config, run_dir)
    _print_side_by_side([*members, figures], [*map(str, range(1, len(parts) + 1)), "ensemble"])
    return miou


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
        ConfigError: if one of them has a value without meaning.
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
    """Load a checkpoint and find its data.

    Raises:
        CitysegError: if they do not fit each other, or what is to be scored.
    """
    checkpoint = load_checkpoint(path)
    run = evaluation_config(checkpoint, config, run_dir)
    pl.seed_everything(run.seed, workers=False, verbose=False)
    data = build_data(run)
    _check_label_space(checkpoint, data)
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
    samples = data.samples(config.split)
    task.calibration = Calibration(ignore_index=space.ignore_index) if config.calibration else None
    pictures = Pictures(folder, samples, panels=config.panels, predictions=config.predictions or config.official)
    extra: list[Figures] = [Cost(), PerImage(folder, samples, draw=config.panels > 0)]
    if config.boundary is not None:
        extra.append(BoundaryFigures(Boundaries(space.class_names, config.boundary, ignore_index=space.ignore_index)))
    instances = Instances(space)
    files = _instance_files(samples) if instances.classes and part.run.data.get("val_crop") in (None, "none") else []
    if files:
        extra.append(InstanceFigures(instances, files))
    with explained(part.run, data):
        figures = score(task, data, config.split, build_trainer(part.run, [*extra, pictures], progress=True))
    if config.official:
        figures["official"] = _official(figures, folder, samples, instances=bool(files))
    return figures | {"seconds": round(time.perf_counter() - started, 1)}


def _write(figures: dict[str, Any], part: Scorable, config: DictConfig, run_dir: Path) -> float | None:
    """Write the figures, plots and report, print the table; returns the mIoU."""
    figures["environment"] = environment()
    write_json(run_dir / "metrics.json", figures)
    if "confusion_matrix" in figures:
        space = part.data.label_space
        plot_confusion(np.array(figures["confusion_matrix"]), space.class_names, run_dir / "plots" / "confusion.png")
        plot_class_iou(figures["per_class"], space.colors, run_dir / "plots" / "class_iou.png")
    write_run_page(run_dir, part.data.label_space)
    print_closing(figures, run_dir)
    if config.official:
        _print_side_by_side([figures, figures["official"]], ["cityseg", "cityscapesScripts"])
    return figures.get("miou")


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
    found: dict[str, Any] = {
        ours: None if math.isnan(theirs[name]) else theirs[name] for ours, name in OFFICIAL.items() if ours in figures
    }
    scores = theirs["classScores"]
    found["per_class"] = {
        name: {"iou": None if math.isnan(scores[name]) else scores[name]}
        for name in figures["per_class"]
        if name in scores
    }
    pairs = [(figures[name], found[name]) for name in OFFICIAL if name in found]
    pairs += [(figures["per_class"][name]["iou"], row["iou"]) for name, row in found["per_class"].items()]
    found["largest_difference"] = max(
        (abs(ours - other) for ours, other in pairs if ours is not None and other is not None), default=None
    )
    return found


def _print_side_by_side(columns: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("%")
    for title in titles:
        table.add_column(title, justify="right")
    names = {**COMPARED, "category_miou": "category mIoU", "miiou": "iIoU", "category_miiou": "category iIoU"}
    for key, name in names.items():
        if all(key in figures for figures in columns):
            table.add_row(name, *(percent(figures[key], digits=2) for figures in columns))
    for name in columns[-1].get("per_class", ()):
        table.add_row(Text(name), *(percent(figures["per_class"][name]["iou"], digits=2) for figures in columns))
    Console().print(table)


def evaluation_config(checkpoint: Checkpoint, wanted: DictConfig, run_dir: Path) -> DictConfig:
    """The checkpoint's own config, on one device, with what the user asked for instead.

    Raises:
        ConfigError: if the checkpoint's config would build foreign code.
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
        CheckpointError: naming the first that differs, and how.
    """
    first, first_run = members[0]
    for other, run in members[1:]:
        where = f"ckpt={other.path} beside {first.path}"
        if other.label_space.class_names != first.label_space.class_names:
            raise CheckpointError(
                f"{where}: found {_names(other.label_space)} and {_names(first.label_space)}, expected checkpoints of "
                "the same classes"
            )
        for key in keys:
            found = run.data.get(key), first_run.data.get(key)
            if found[0] != found[1]:
                raise CheckpointError(
                    f"{where}: found data.{key}={found[0]} and {found[1]}, expected one. Fix: set data.{key} for both"
                )


def _check_same_images(parts: Sequence[Scorable], split: str) -> None:
    """Refuse checkpoints that would be scored on different images.

    Raises:
        CheckpointError: naming the first that differs.
    """
    first = parts[0]
    for other in parts[1:]:
        one, two = first.data.samples(split), other.data.samples(split)
        if one.root != two.root or one.names() != two.names():
            raise CheckpointError(
                f"ckpt={other.checkpoint.path} beside {first.checkpoint.path}: split {split} has other images, of "
                f"{two.root} and {one.root}. Fix: set data.root for both, or fold=none where they are of different "
                "folds"
            )


def _check_sizes(task: Task, data: SegmentationDataModule, split: str) -> None:
    """Refuse photos that the network cannot take.

    Raises:
        ConfigError: with the way out.
    """
    check_size = getattr(task.network, "check_size", None)
    if check_size is None:
        return
    for height, width in {(int(h), int(w)) for h, w in data.eval_sizes(split)}:
        for size in task.inference.network_sizes(height, width):
            try:
                check_size(*size)
            except ValueError as error:
                fixed = getattr(task.network, "fixed_size", None)
                fix = f". Fix: inference=sliding window=[{fixed[0]},{fixed[1]}]" if fixed else ""
                raise ConfigError(f"photos of {width}x{height}: {error}{fix}") from error


def _check_official(run: DictConfig, data: SegmentationDataModule, samples: Samples) -> None:
    """Refuse what cityscapesScripts cannot score.

    Raises:
        ConfigError: with the way out.
    """
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise ConfigError("official=true: cityscapesscripts is not installed. Fix: pip install 'cityseg[cityscapes]'")
    label = samples.label(0)
    if label is None or not label.name.endswith("_labelIds.png") or not Instances(data.label_space).classes:
        raise ConfigError(
            f"official=true: found label {label} and label space {data.label_space.name!r}, expected files "
            "*_labelIds.png and Cityscapes classes (data=gtfine)"
        )
    if run.data.get("val_crop") not in (None, "none"):
        raise ConfigError("official=true: whole images only. Fix: data.val_crop=none")


def _check_label_space(checkpoint: Checkpoint, data: SegmentationDataModule) -> None:
    own, given = checkpoint.label_space, data.label_space
    if own.class_names != given.class_names:
        raise CheckpointError(
            f"ckpt={checkpoint.path} was trained on {_names(own)}, the data has "
            f"{_names(given)}. Fix: give data with the checkpoint's classes"
        )


def _names(space: Any) -> str:
    shown = ", ".join(space.class_names[:5]) + (", ..." if space.num_classes > 5 else "")
    return f"{space.num_classes} classes of {space.name!r} ({shown})"
