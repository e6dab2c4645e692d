"""The ``cv`` folder of a sweep: ``summary.json``, ``summary.md`` and plots."""

from __future__ import annotations

from pathlib import Path

from cityseg.callbacks.history import read_history
from cityseg.crossval.folds import Sweep, read_sweep
from cityseg.crossval.markdown import to_markdown
from cityseg.crossval.statistics import RESAMPLES
from cityseg.crossval.summary import Summary, summarize
from cityseg.files import write_json, write_text
from cityseg.reports.fold_plots import plot_fold_curves, plot_folds
from cityseg.reports.plots import plot_confusion


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
    write_json(folder / "cv" / "summary.json", summary)
    _write_plots(sweep, summary, folder / "cv" / "plots")
    write_text(folder / "cv" / "summary.md", to_markdown(summary))
    return summary


def _write_plots(sweep: Sweep, summary: Summary, folder: Path) -> None:
    histories = {
        group.name: {
            fold: read_history(path)
            for fold, run in group.runs.items()
            if (path := run.folder / "history.csv").is_file()
        }
        for group in sweep.groups
    }
    plot_fold_curves(histories, folder / "curves.png")
    scores = {
        group["name"]: {row["fold"]: row["scores"]["miou"] for row in group["folds"]} for group in summary["groups"]
    }
    plot_folds(scores, {group["name"]: group["scores"]["miou"] for group in summary["groups"]}, folder / "folds.png")
    for number, group in enumerate(summary["groups"], start=1):
        if pooled := group["pooled"]:
            names = list(pooled["per_class"])
            plot_confusion(pooled["confusion_matrix"], names, folder / f"confusion_{number}.png")
