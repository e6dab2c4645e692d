"""The page of one run, ``report.html`` in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cityseg.files import write_text
from cityseg.labels import LabelSpace
from cityseg.reports.html.charts import LineChart, axis, confusion, line_chart
from cityseg.reports.html.images import read_panels
from cityseg.reports.html.page import minutes, parameters, render
from cityseg.reports.plots import History, column
from cityseg.reports.run_files import WORST, chosen_by, read_run
from cityseg.reports.summary import SCORE_NAMES

_PANELS = 16  # beside those of the worst images

_NAMES = {"python": "Python", "torch": "PyTorch", "pytorch_lightning": "PyTorch Lightning", "git_commit": "git commit"}

# Title, a pattern that the names of its columns fit as a whole, the factor to its unit, and whether 0 is on the axis.
# A column is in the first chart that it fits; one that fits none has a chart of its own.
_CHARTS = (
    ("loss", r"(train|val)/loss", 1, False),
    ("validation scores in %", rf"val/({'|'.join(SCORE_NAMES)})", 100, False),
    ("adversarial losses", r"train/(adversarial|discriminator)_loss", 1, False),
    ("patches the discriminator tells right, in %", r"train/discriminator_\w+_accuracy", 100, False),
    ("norms of the gradients", r"optim/\w*gradient_norm", 1, False),
    ("learning rate", r"lr.*", 1, True),
    ("images per second", r"images_per_second", 1, True),
    ("seconds per epoch", r"seconds", 1, True),
)


def write_run_page(folder: Path, space: LabelSpace | None = None) -> None:
    """Write ``report.html`` into the folder of a run that has its ``metrics.json``.

    Classes have the colours of the label space; without one those of built-in label spaces are known.

    Raises:
        DataError: if there is no ``metrics.json``.
        OSError: if the folder cannot be written to.
    """
    run = read_run(folder)
    figures, scores = run.figures, run.image_scores
    rank = {score.panel: place for place, score in enumerate(scores) if score.panel}
    paths = sorted((folder / "predictions").glob("*.png"), key=lambda path: (rank.get(path.stem, len(scores)), path))
    worst = [path for path in paths if rank.get(path.stem, WORST) < WORST]
    panels = read_panels(worst, WORST) + read_panels(paths[len(worst) :], _PANELS)
    charts, constant = _charts(run.history, figures.get("best_epoch"))
    per_class = figures.get("per_class", {})
    page = render(
        "run.html",
        run=run,
        figures=figures,
        facts=facts(figures),
        environment=environment_facts(figures),
        colors=run.colors if space is None else dict(zip(space.class_names, space.colors, strict=True)),
        pixels=sum(row["pixels"] for row in per_class.values()),
        most_pixels=max((row["pixels"] for row in per_class.values()), default=0),
        confusion=confusion(figures["confusion_matrix"], list(per_class)) if per_class else None,
        reliability=[row for row in figures.get("calibration", {}).get("reliability", ()) if row["pixels"]],
        percent_axis=axis((0, 100), ticks=6),
        charts=charts,
        constant=constant,
        panels=panels,
        places={panel.name: place for place, panel in enumerate(panels, start=1)},
        scores={score.panel: score for score in scores if score.panel},
        worst=scores[:WORST],
        config=[(key, value, chosen_by(key, run.choices)) for key, value in run.config.items()],
    )
    write_text(folder / "report.html", page)


def facts(figures: Mapping[str, Any]) -> dict[str, str]:
    """What the scores are of, beside dataset, split and protocol; what is not recorded is left out."""
    loss, counts, seconds, weights = (figures.get(key) for key in ("loss", "parameters", "seconds", "pretrained"))
    found = {
        "label space": figures.get("label_space"),
        "loss": None if loss is None else f"{loss:.4f}",
        "fold": figures.get("fold"),
        "images trained on": figures.get("train_images"),
        "epochs": figures.get("epochs", figures.get("trained_epochs")),
        "weights of epoch": figures.get("best_epoch"),
        "parameters": parameters(counts) if counts else None,
        "ImageNet weights": ("no", "yes")[weights] if isinstance(weights, bool) else weights,
        "precision": figures.get("precision"),
        "seed": figures.get("seed"),
        "minutes": None if seconds is None else minutes(seconds),
        "checkpoint": figures.get("checkpoint"),
    }
    return {what: str(value) for what, value in found.items() if value is not None}


def environment_facts(figures: Mapping[str, Any]) -> dict[str, str]:
    """What the run ran on, as far as it was recorded."""
    found: dict[str, Any] = dict(figures.get("environment") or {"cityseg": figures.get("cityseg")})
    if found.pop("git_dirty", None):
        found["git_commit"] += ", with changes that are not committed"
    return {_NAMES.get(key, key): str(value) for key, value in found.items() if value is not None}


def _charts(history: History, best_epoch: int | None) -> tuple[list[LineChart], list[str]]:
    """Charts of all columns, and the names of those that are 0 in every epoch."""
    names = {key: _line_name(key) for row in history for key in row if key != "epoch"}
    constant = [key for key in names if all(not row.get(key) for row in history)]
    left, charts = [key for key in names if key not in constant], []
    for title, pattern, factor, zero in (*_CHARTS, *((names[key], re.escape(key), 1, False) for key in left)):
        keys = [key for key in left if re.fullmatch(pattern, key)]
        left = [key for key in left if key not in keys]
        chart = line_chart(
            title,
            {names[key]: column(history, key, factor) for key in keys},
            {names[key]: style for style, key in enumerate(keys)},
            {names[key]: best_epoch for key in keys if key.startswith("val/")},
            zero=zero,
        )
        if chart is not None:
            charts.append(chart)
    return charts, [names[key] for key in constant]


def _line_name(key: str) -> str:
    """How a column of the history is called.

    >>> _line_name("val/miou"), _line_name("train/void_batches")
    ('val mIoU', 'train void batches')
    """
    stage, slash, name = key.rpartition("/")
    return f"{stage}{slash and ' '}{SCORE_NAMES.get(name, name.replace('_', ' '))}"
