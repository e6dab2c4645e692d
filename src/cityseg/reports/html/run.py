"""The page of one run, ``report.html`` in its folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cityseg.files import write_text
from cityseg.labels import LabelSpace
from cityseg.reports.html.charts import LineChart, column, confusion, line_chart, reliability
from cityseg.reports.html.images import read_panels
from cityseg.reports.html.page import render
from cityseg.reports.html.text import SCORE_NAMES, minutes, parameters
from cityseg.reports.plots import History
from cityseg.reports.run_files import WORST, RunFiles, chosen_by, read_run

_PANELS = 16  # beside those of the worst images

_ENVIRONMENT = {
    "python": "Python",
    "torch": "PyTorch",
    "pytorch_lightning": "PyTorch Lightning",
    "cityseg": "cityseg",
    "platform": "platform",
    "device": "device",
    "git_commit": "git commit",
}


class _Chart(NamedTuple):
    title: str
    columns: str  # a pattern that their names fit as a whole
    factor: float = 1
    zero: bool = False


# A column is in the first chart that it fits; one that fits none has a chart of its own.
_CHARTS = (
    _Chart("loss", r"(train|val)/loss"),
    _Chart("validation scores in %", rf"val/({'|'.join(SCORE_NAMES)})", 100),
    _Chart("adversarial losses", r"train/(adversarial|discriminator)_loss"),
    _Chart("patches the discriminator tells right, in %", r"train/discriminator_\w+_accuracy", 100),
    _Chart("norms of the gradients", r"optim/\w*gradient_norm"),
    _Chart("learning rate", r"lr.*", zero=True),
    _Chart("images per second", r"images_per_second", zero=True),
    _Chart("seconds per epoch", r"seconds", zero=True),
)


def write_run_page(folder: Path, space: LabelSpace | None = None) -> None:
    """Write ``report.html`` into the folder of a run that has its ``metrics.json``.

    Args:
        folder: of the run.
        space: gives the classes their colours; without it those of built-in label spaces are known.

    Raises:
        DataError: if there is no ``metrics.json``.
        OSError: if the folder cannot be written to.
    """
    run = read_run(folder)
    colors = run.colors if space is None else dict(zip(space.class_names, space.colors, strict=True))
    write_text(folder / "report.html", run_page(run, colors))


def run_page(run: RunFiles, colors: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        run: what its folder holds.
        colors: class name -> RGB.
    """
    figures = run.figures
    rank = {score.panel: place for place, score in enumerate(run.image_scores) if score.panel}
    last = len(run.image_scores)
    paths = sorted((run.folder / "predictions").glob("*.png"), key=lambda path: (rank.get(path.stem, last), path))
    worst = [path for path in paths if rank.get(path.stem, WORST) < WORST]
    panels = read_panels(worst, WORST) + read_panels(paths[len(worst) :], _PANELS)
    charts, constant = _charts(run.history, figures.get("best_epoch"))
    per_class = figures.get("per_class", {})
    return render(
        "run.html",
        run=run,
        figures=figures,
        facts=facts(figures),
        environment=environment_facts(figures),
        colors=colors,
        pixels=sum(row["pixels"] for row in per_class.values()),
        most_pixels=max((row["pixels"] for row in per_class.values()), default=0),
        confusion=confusion(figures["confusion_matrix"], list(per_class)) if per_class else None,
        reliability=reliability(figures["calibration"]["reliability"]) if "calibration" in figures else None,
        charts=charts,
        constant=constant,
        panels=panels,
        places={panel.name: place for place, panel in enumerate(panels, start=1)},
        scores={score.panel: score for score in run.image_scores if score.panel},
        worst=run.image_scores[:WORST],
        config=[(key, value, chosen_by(key, run.choices)) for key, value in run.config.items()],
    )


def facts(figures: Mapping[str, Any]) -> dict[str, str]:
    """What the scores are of, beside dataset, split and protocol; what is not recorded is left out."""
    best = figures.get("best_epoch")
    epochs = figures.get("epochs", figures.get("trained_epochs"))
    counts, seconds, weights = (figures.get(key) for key in ("parameters", "seconds", "pretrained"))
    found = {
        "label space": figures.get("label_space"),
        "loss": None if figures.get("loss") is None else f"{figures['loss']:.4f}",
        "fold": figures.get("fold"),
        "images trained on": figures.get("train_images"),
        "epochs": epochs if best is None else f"{epochs}, weights of epoch {best}",
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
    found = figures.get("environment") or {"cityseg": figures.get("cityseg")}
    told = {name: str(found[key]) for key, name in _ENVIRONMENT.items() if found.get(key) is not None}
    if found.get("git_dirty"):
        told[_ENVIRONMENT["git_commit"]] += ", with changes that are not committed"
    return told


def _charts(history: History, best_epoch: int | None) -> tuple[list[LineChart], list[str]]:
    """Charts of all columns, and the names of those that are 0 in every epoch."""
    keys = list(dict.fromkeys(key for row in history for key in row if key != "epoch"))
    constant = [key for key in keys if all(not row.get(key) for row in history)]
    charts = []
    for chart, members in _grouped([key for key in keys if key not in constant]):
        names = {key: _line_name(key) for key in members}
        drawn = line_chart(
            chart.title,
            {name: column(history, key, chart.factor) for key, name in names.items()},
            {name: style for style, name in enumerate(names.values())},
            {name: best_epoch for key, name in names.items() if key.startswith("val/")},
            zero=chart.zero,
        )
        if drawn is not None:
            charts.append(drawn)
    return charts, [_line_name(key) for key in constant]


def _grouped(keys: Sequence[str]) -> Iterator[tuple[_Chart, list[str]]]:
    left = list(keys)
    for chart in _CHARTS:
        members = [key for key in left if re.fullmatch(chart.columns, key)]
        left = [key for key in left if key not in members]
        yield chart, members
    yield from ((_Chart(_line_name(key), ""), [key]) for key in left)


def _line_name(key: str) -> str:
    """How a column of the history is called.

    >>> _line_name("val/miou"), _line_name("train/void_batches")
    ('val mIoU', 'train void batches')
    """
    stage, slash, name = key.rpartition("/")
    return f"{stage}{slash and ' '}{SCORE_NAMES.get(name, name.replace('_', ' '))}"
