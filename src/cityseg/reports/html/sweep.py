"""The page of a sweep over folds, ``cv/report.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cityseg.labels import Color
from cityseg.reports.html.charts import (
    Confusion,
    DotPlot,
    LineChart,
    Row,
    column,
    confusion,
    dot_plot,
    line_chart,
)
from cityseg.reports.html.images import Panel, read_panels
from cityseg.reports.html.page import render
from cityseg.reports.html.text import OWN_CLASSES, SCORE_NAMES, mean_and_std, parameters, points
from cityseg.reports.plots import History

_CURVES = (
    ("train/loss", "training loss", 1),
    ("val/loss", "validation loss", 1),
    ("val/miou", "validation mIoU %", 100),
)
_PANELS = 4  # of a fold's pictures, spread over them: the page stays small enough to send


@dataclass(frozen=True)
class GroupFiles:
    """What a group's run folders hold beside the figures of the summary.

    Attributes:
        histories: fold -> rows of its ``history.csv``.
        colors: class name -> RGB colour, where it is known.
        facts: what else there is to say of the runs, as their protocol.
    """

    histories: Mapping[int, History]
    colors: Mapping[str, Color]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class _Section:
    """A group as the template shows it; ``panels`` are those of the ``best`` and the ``worst`` fold."""

    summary: Mapping[str, Any]
    facts: Mapping[str, str]
    colors: Mapping[str, Color]
    scores: DotPlot
    curves: Sequence[LineChart]
    without_curve: Sequence[str]
    confusion: Confusion | None
    panels: Mapping[str, Sequence[Panel]]


def sweep_page(summary: Mapping[str, Any], files: Mapping[str, GroupFiles], folder: Path) -> str:
    """The whole page.

    Args:
        summary: the content of ``cv/summary.json``.
        files: for each group, by name.
        folder: of the sweep, where the summary's paths begin.
    """
    groups = summary["groups"]
    folds = sorted({fold for group in groups for fold in group["expected"]})
    styles = {fold: index for index, fold in enumerate(folds)}
    pairs = summary["comparison"]["pairs"] if summary["comparison"] else []
    sections = [_section(group, files[group["name"]], styles, folder) for group in groups]
    by_name = {group["name"]: group for group in groups}
    first, *others = [section.facts for section in sections]
    shared = {what: value for what, value in first.items() if all(facts.get(what) == value for facts in others)}
    return render(
        "sweep.html",
        summary=summary,
        sections=sections,
        by_name=by_name,
        shared=shared,
        own_classes=OWN_CLASSES,
        styles=styles,
        ranking=dot_plot(_ranking_rows(summary["comparison"], by_name, styles), limits=(0, 100)),
        differences=dot_plot([_pair_row(pair, styles) for pair in pairs], zero=True),
    )


def _section(group: Mapping[str, Any], files: GroupFiles, styles: Mapping[int, int], folder: Path) -> _Section:
    folds = {row["fold"]: row for row in group["folds"]}
    kept = {f"fold {fold}": row["best_epoch"] for fold, row in folds.items()}
    lines = {f"fold {fold}": style for fold, style in styles.items()}
    curves = {}
    for key, title, factor in _CURVES:
        series = {f"fold {fold}": column(history, key, factor) for fold, history in files.histories.items()}
        curves[title] = line_chart(title, series, lines, kept)
    ends = {"best": group["best"], "worst": group["worst"] if len(folds) > 1 else None}
    pooled = group["pooled"]
    return _Section(
        summary=group,
        facts=_facts(group) | dict(files.facts),
        colors=files.colors,
        scores=dot_plot(
            [_score_row(name, key, group["folds"], group["scores"][key], styles) for key, name in SCORE_NAMES.items()],
            limits=(0, 100),
        ),
        curves=[chart for chart in curves.values() if chart is not None],
        without_curve=[title for title, chart in curves.items() if chart is None],
        confusion=confusion(pooled["confusion_matrix"], list(pooled["per_class"])) if pooled else None,
        panels={
            which: read_panels([folder / path for path in folds[fold]["panels"]], _PANELS)
            for which, fold in ends.items()
            if fold is not None
        },
    )


def _facts(group: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        "data": group["dataset"],
        "scored on": group["split"],
        "label space": group["label_space"],
        "parameters": parameters(group["parameters"]) if group["parameters"] else None,
    }
    return {what: value for what, value in facts.items() if value is not None}


def _score_row(
    label: str, key: str, folds: Sequence[Mapping[str, Any]], spread: Mapping[str, Any], styles: Mapping[int, int]
) -> Row:
    scores = [(row["fold"], row["scores"][key]) for row in folds if row["scores"][key] is not None]
    values = [(100 * score, f"fold {fold}: {100 * score:.1f}", styles[fold]) for fold, score in scores]
    return _row(label, mean_and_std(spread), values, spread)


def _ranking_rows(
    comparison: Mapping[str, Any] | None, groups: Mapping[str, Mapping[str, Any]], styles: Mapping[int, int]
) -> list[Row]:
    """Over the folds that the ranking is over."""
    if comparison is None:
        return []
    rows = []
    for ranked in comparison["ranking"]:
        folds = [row for row in groups[ranked["group"]]["folds"] if row["fold"] in (comparison["folds"] or styles)]
        rows.append(_score_row(ranked["group"], "miou", folds, ranked["miou"], styles))
    return rows


def _pair_row(pair: Mapping[str, Any], styles: Mapping[int, int]) -> Row:
    by_fold = zip(pair["folds"], pair["differences"], strict=True)
    values = [(100 * value, f"fold {fold}: {points(value)}", styles[fold]) for fold, value in by_fold]
    label = f"{pair['a']} \N{MINUS SIGN} {pair['b']}"
    return _row(label, points(pair["test"]["mean"]), values, pair["test"])


def _row(label: str, text: str, values: Sequence[tuple[float, str, int]], spread: Mapping[str, Any]) -> Row:
    mean, ends = spread["mean"], spread["interval"]
    return Row(label, text, values, None if mean is None else 100 * mean, ends and [100 * end for end in ends])
