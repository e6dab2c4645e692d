"""The ``cv`` folder of a sweep: ``summary.json``, ``summary.md``, ``report.html`` and plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cityseg.crossval.folds import Group, read_sweep
from cityseg.crossval.markdown import to_markdown
from cityseg.crossval.statistics import RESAMPLES
from cityseg.crossval.summary import Summary, summarize
from cityseg.files import write_json, write_text
from cityseg.labels import Color
from cityseg.reports.fold_plots import plot_fold_curves, plot_folds
from cityseg.reports.html.sweep import GroupFiles, sweep_page
from cityseg.reports.plots import plot_confusion
from cityseg.reports.run_files import class_colors, read_history, read_yaml

_FACTS = {
    "protocol": "protocol",
    "train_images": "images trained on",
    "epochs": "epochs",
    "pretrained": "ImageNet weights",
    "precision": "precision",
    "seed": "seed",
    "cityseg": "cityseg",
}


def write_summary(folder: Path, *, resamples: int = RESAMPLES) -> Summary:
    """Summarise a sweep from its run folders and write ``cv`` in it; what an earlier call wrote is replaced.

    Args:
        folder: ``outputs/NAME/multirun/TIMESTAMP``.
        resamples: of the bootstrap over images.

    Returns:
        The content of ``cv/summary.json``.

    Raises:
        DataError: if the folder holds no run of a fold, or a fold twice.
    """
    sweep = read_sweep(folder)
    summary = summarize(sweep, resamples=resamples)
    files = {group.name: _read_files(group) for group in sweep.groups}
    write_json(folder / "cv" / "summary.json", summary)
    _write_plots(summary, files, folder / "cv" / "plots")
    write_text(folder / "cv" / "summary.md", to_markdown(summary))
    write_text(folder / "cv" / "report.html", sweep_page(summary, files, folder))
    return summary


def _read_files(group: Group) -> GroupFiles:
    histories = {
        fold: read_history(path) for fold, run in group.runs.items() if (path := run.folder / "history.csv").is_file()
    }
    return GroupFiles(histories, _class_colors(group), _facts(group))


def _facts(group: Group) -> dict[str, str]:
    """What the runs' figures say beside scores; what differs between folds is listed."""
    facts = {}
    for key, name in _FACTS.items():
        found = [run.figures[key] for run in group.finished.values() if run.figures.get(key) is not None]
        values = [{True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) for value in found]
        if values:
            facts[name] = ", ".join(dict.fromkeys(values))
    return facts


def _class_colors(group: Group) -> dict[str, Color]:
    """Colours of the classes of the first run that has finished."""
    run = next(iter(group.finished.values()), None)
    return {} if run is None else class_colors(run.figures, read_yaml(run.folder / ".hydra" / "config.yaml") or {})


def _write_plots(summary: Summary, files: Mapping[str, GroupFiles], folder: Path) -> None:
    plot_fold_curves({name: held.histories for name, held in files.items()}, folder / "curves.png")
    scores = {
        group["name"]: {row["fold"]: row["scores"]["miou"] for row in group["folds"]} for group in summary["groups"]
    }
    plot_folds(scores, {group["name"]: group["scores"]["miou"] for group in summary["groups"]}, folder / "folds.png")
    for number, group in enumerate(summary["groups"], start=1):
        if pooled := group["pooled"]:
            names = list(pooled["per_class"])
            plot_confusion(pooled["confusion_matrix"], names, folder / f"confusion_{number}.png")
