"""The page of a sweep over folds, ``cv/report.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cityseg.crossval.folds import Group, Sweep, read_yaml
from cityseg.reports.html.charts import CURVES, Row, confusion, dot_plot, line_chart
from cityseg.reports.html.images import read_panels
from cityseg.reports.html.page import mean_and_std, points, render
from cityseg.reports.html.run import facts
from cityseg.reports.plots import History, column
from cityseg.reports.run_files import class_colors
from cityseg.reports.summary import SCORE_NAMES

_FACTS = {"dataset": "data", "split": "scored on", "protocol": "protocol", "cityseg": "cityseg"}
_SHOWN = (
    *("data", "scored on", "label space", "parameters", "protocol", "images trained on", "epochs"),
    *("ImageNet weights", "precision", "seed", "cityseg"),
)
_PANELS = 4  # of a fold's pictures, spread over them: the page stays small enough to send


def sweep_page(summary: Mapping[str, Any], sweep: Sweep, histories: Mapping[str, Mapping[int, History]]) -> str:
    """The whole page of the content of ``cv/summary.json``; histories are ``[group][fold]``."""
    by_name = {group["name"]: group for group in summary["groups"]}
    folds = sorted({fold for group in by_name.values() for fold in group["expected"]})
    styles = {fold: style for style, fold in enumerate(folds)}
    comparison = summary["comparison"] or {"ranking": [], "pairs": [], "folds": []}
    ranking = []
    for ranked in comparison["ranking"]:
        rows = [row for row in by_name[ranked["group"]]["folds"] if row["fold"] in (comparison["folds"] or styles)]
        ranking.append(_score_row(ranked["group"], "miou", rows, ranked["miou"], styles))
    sections = [
        _section(said, group, histories[group.name], styles, sweep.folder)
        for said, group in zip(summary["groups"], sweep.groups, strict=True)
    ]
    first, *others = [section["facts"] for section in sections]
    return render(
        "sweep.html",
        summary=summary,
        sections=sections,
        by_name=by_name,
        shared={what: value for what, value in first.items() if all(facts.get(what) == value for facts in others)},
        styles=styles,
        ranking=dot_plot(ranking),
        differences=dot_plot([_pair_row(pair, styles) for pair in comparison["pairs"]], differences=True),
    )


def _section(
    summary: Mapping[str, Any],
    group: Group,
    histories: Mapping[int, History],
    styles: Mapping[int, int],
    folder: Path,
) -> dict[str, Any]:
    """What the template shows of a group; ``panels`` are those of the best and the worst fold."""
    folds = {row["fold"]: row for row in summary["folds"]}
    kept = {f"fold {fold}": row["best_epoch"] for fold, row in folds.items()}
    lines = {f"fold {fold}": style for fold, style in styles.items()}
    curves = {}
    for key, title, factor in CURVES:
        series = {f"fold {fold}": column(history, key, factor) for fold, history in histories.items()}
        curves[title] = line_chart(title, series, lines, kept)
    rows = [
        _score_row(name, key, summary["folds"], summary["scores"][key], styles) for key, name in SCORE_NAMES.items()
    ]
    pooled, runs = summary["pooled"], list(group.finished.values())
    config = read_yaml(runs[0].folder / ".hydra" / "config.yaml") or {} if runs else {}
    return {
        "summary": summary,
        "facts": _facts([run.figures for run in runs]),
        "colors": class_colors(runs[0].figures, config) if runs else {},
        "scores": dot_plot(rows),
        "curves": [chart for chart in curves.values() if chart is not None],
        "without_curve": [title for title, chart in curves.items() if chart is None],
        "confusion": confusion(pooled["confusion_matrix"], list(pooled["per_class"])) if pooled else None,
        "panels": {
            which: read_panels([folder / path for path in folds[summary[which]]["panels"]], _PANELS)
            for which in ("best", "worst")[: len(folds)]
            if summary[which] is not None
        },
    }


def _facts(figures: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the runs' figures say beside scores; what differs between folds is listed."""
    told = [
        {name: str(row[key]) for key, name in _FACTS.items() if row.get(key) is not None} | facts(row)
        for row in figures
    ]
    values = {name: dict.fromkeys(each[name] for each in told if name in each) for name in _SHOWN}
    return {name: ", ".join(found) for name, found in values.items() if found}


def _score_row(
    label: str, key: str, folds: Sequence[Mapping[str, Any]], spread: Mapping[str, Any], styles: Mapping[int, int]
) -> Row:
    scores = [(row["fold"], row["scores"][key]) for row in folds if row["scores"][key] is not None]
    values = [(100 * score, f"fold {fold}: {100 * score:.1f}", styles[fold]) for fold, score in scores]
    return _row(label, mean_and_std(spread), values, spread)


def _pair_row(pair: Mapping[str, Any], styles: Mapping[int, int]) -> Row:
    by_fold = zip(pair["folds"], pair["differences"], strict=True)
    values = [(100 * value, f"fold {fold}: {points(value)}", styles[fold]) for fold, value in by_fold]
    return _row(f"{pair['a']} \N{MINUS SIGN} {pair['b']}", points(pair["test"]["mean"]), values, pair["test"])


def _row(label: str, text: str, values: Sequence[tuple[float, str, int]], spread: Mapping[str, Any]) -> Row:
    mean, ends = spread["mean"], spread["interval"]
    return Row(label, text, values, None if mean is None else 100 * mean, ends and [100 * end for end in ends])
