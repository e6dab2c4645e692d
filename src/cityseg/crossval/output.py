"""What people read of a sweep: its ``cv`` folder, and the closing lines on the console."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cityseg.crossval.folds import read_sweep
from cityseg.crossval.statistics import RESAMPLES
from cityseg.crossval.summary import summarize
from cityseg.files import write_json, write_text
from cityseg.paths import shown
from cityseg.reports.html.page import mean_and_std, p_value, points, render
from cityseg.reports.html.sweep import sweep_page
from cityseg.reports.plots import plot_confusion, plot_fold_curves, plot_folds
from cityseg.reports.run_files import read_history
from cityseg.reports.summary import SCORE_NAMES, percent


def close_sweep(folder: Path) -> int:
    """Write the summary and print the closing lines; returns the exit code.

    It is 1 if a run failed or was left unfinished; a fold that was never started is named, but no failure.
    """
    summary = write_summary(folder)
    print("\n".join([*closing_lines(summary), f"summary  {shown(folder / 'cv' / 'report.html')}"]))
    runs = [run for group in summary["groups"] for run in (*group["unfinished"], group["final"]) if run is not None]
    return int(any(run["status"] not in ("finished", "not started") for run in runs))


def write_summary(folder: Path, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Summarise a sweep from its run folders and write ``cv`` in it; what an earlier call wrote is replaced.

    Returns:
        The content of ``cv/summary.json``.

    Raises:
        DataError: if the folder holds no run of a fold, or a fold twice.
    """
    sweep = read_sweep(folder)
    summary = summarize(sweep, resamples=resamples)
    histories = {
        group.name: {
            fold: rows for fold, run in group.runs.items() if (rows := read_history(run.folder / "history.csv"))
        }
        for group in sweep.groups
    }
    write_json(folder / "cv" / "summary.json", summary)
    plots, groups = folder / "cv" / "plots", summary["groups"]
    plot_fold_curves(histories, plots / "curves.png")
    scores = {group["name"]: {row["fold"]: row["scores"]["miou"] for row in group["folds"]} for group in groups}
    plot_folds(scores, {group["name"]: group["scores"]["miou"] for group in groups}, plots / "folds.png")
    for number, group in enumerate(groups, start=1):
        if pooled := group["pooled"]:
            plot_confusion(pooled["confusion_matrix"], list(pooled["per_class"]), plots / f"confusion_{number}.png")
    write_text(folder / "cv" / "summary.md", to_markdown(summary))
    write_text(folder / "cv" / "report.html", sweep_page(summary, sweep, histories))
    return summary


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The content of ``cv/summary.md``; plots and panels are linked as seen from there."""
    texts = {"headline": _headline, "unfinished": _unfinished, "final": _final, "fold_and_miou": _fold_and_miou}
    page = render("summary.md", summary=summary, quote=quote, **texts)
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", page)  # names may hold HTML


def closing_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the console shows at the end of a sweep: parameters, scores, what is missing, best against others."""
    lines: list[str] = []
    for group in summary["groups"]:
        lines.append(f"{group['name']}: {_headline(group)}")
        if parameters := group["parameters"]:
            lines.append(f"  parameters {parameters['total']:,}, {parameters['trainable']:,} trainable")
        if group["folds"]:
            means = (f"{SCORE_NAMES[key]} {mean_and_std(group['scores'][key])} %" for key in ("miou", "mpa"))
            lines.append(f"  mean ± std over folds: {', '.join(means)}")
        if group["pooled"]:
            lines.append(f"  pooled over folds: mIoU {percent(group['pooled']['miou'])} %")
        if len(group["folds"]) > 1 and group["best"] is not None:
            by_fold = {row["fold"]: _fold_and_miou(row) for row in group["folds"]}
            lines.append(f"  best fold {by_fold[group['best']]}, worst fold {by_fold[group['worst']]}")
        lines += [f"  {_unfinished(run)}" for run in group["unfinished"]]
        if group["final"]:
            lines.append(f"  final {_final(group['final'])}")
    if comparison := summary["comparison"]:
        best = comparison["ranking"][0]["group"]  # all pairs would be many lines: the page has them
        for pair in (pair for pair in comparison["pairs"] if pair["a"] == best):
            lines.append(
                f"{pair['a']} against {pair['b']}: mIoU {points(pair['test']['mean'])} points over "
                f"{len(pair['folds'])} common folds, p {p_value(pair['test']['p'])}"
                + (f", {p_value(pair['p_holm'])} after Holm" if pair["p_holm"] is not None else "")
            )
    return lines


def _headline(group: Mapping[str, Any]) -> str:
    """The figure people quote, and over how many folds.

    >>> spread = {"mean": 0.612, "std": 0.0134, "interval": None, "folds": 4}
    >>> _headline({"scores": {"miou": spread}, "folds": [{}] * 4, "expected": [0, 1, 2, 3, 4]})
    'mIoU 61.2 ± 1.3 % over 4 of 5 folds'
    """
    finished, expected = len(group["folds"]), len(group["expected"])
    if not finished:
        return f"no fold finished, 0 of {expected}"
    return f"mIoU {mean_and_std(group['scores']['miou'])} % over {finished} of {expected} folds"


def _fold_and_miou(row: Mapping[str, Any]) -> str:
    return f"{row['fold']} ({percent(row['scores']['miou'])} %)"


def _unfinished(run: Mapping[str, Any]) -> str:
    reason = {
        "not started": "not started",
        "unfinished": "unfinished: no metrics.json, and no error recorded",
    }.get(run["status"], f"failed: {(run['error'] or 'no reason recorded').splitlines()[0]}")
    return f"fold {run['fold']} {reason}" + (f" ({run['run']})" if run["run"] else "")


def _final(final: Mapping[str, Any]) -> str:
    what = f"model on all training images ({final['run']})"
    if final["status"] != "finished":
        return f"{what} {final['status']}{': ' + final['error'].splitlines()[0] if final['error'] else ''}"
    scores = ", ".join(f"{SCORE_NAMES[key]} {percent(final['scores'][key])} %" for key in ("miou", "mpa"))
    return f"{what}, {final['epochs']} epochs: {scores} on {final['split']}"
