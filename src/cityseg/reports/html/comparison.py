"""Runs against the first of them: ``compare.json``, and the page beside it, ``report.html``."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cityseg import __version__
from cityseg.crossval.statistics import bootstrap_mean_iou, percentile_interval
from cityseg.errors import DataError, Problems
from cityseg.reports.html.charts import CURVES, line_chart
from cityseg.reports.html.images import Panel, embed
from cityseg.reports.html.page import render
from cityseg.reports.html.run import environment_facts, facts
from cityseg.reports.panels import read_tiles
from cityseg.reports.plots import column
from cityseg.reports.run_files import RunFiles
from cityseg.reports.summary import SCORE_NAMES

# What has to be the same for a difference of scores to be one of the networks.
_SAME = {
    "dataset": "data",
    "split": "split",
    "fold": "fold",
    "images": "number of images",
    "protocol": "protocol",
    "label_space": "label space",
}
_FACTS = (*_SAME, "parameters", "epochs", "best_epoch", "seed", "seconds", "environment")
_PANELS = 12
_CURVES = (*CURVES, ("lr", "learning rate", 1), ("images_per_second", "images per second", 1))


def compare_runs(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Compare runs with the first one.

    Returns:
        The content of ``compare.json``, scores and differences as fractions: ``warnings``; ``runs``, each under its
        letter; ``differences``, of each other run minus the first, with the 95 % interval of the mIoU over images and
        the images, most changed first; ``config``, the keys that differ, None where a run lacks one.

    Raises:
        DataError: if there is nothing that could be compared: a run without scores, other classes, the same run twice.
    """
    _check(runs)
    lettered = dict(zip(string.ascii_uppercase, runs, strict=False))
    compared: list[dict[str, Any]] = [
        {
            "letter": letter,
            "name": run.name,
            "folder": str(run.folder),
            "scores": {key: run.figures.get(key) for key in SCORE_NAMES},
            "per_class": {name: row["iou"] for name, row in run.figures["per_class"].items()},
            "facts": {key: run.figures[key] for key in _FACTS if key in run.figures},
        }
        for letter, run in lettered.items()
    ]
    warnings = list(_warnings(lettered))
    differences = []
    for entry, run in zip(compared[1:], runs[1:], strict=True):
        changed, notes = _changed_images(runs[0], run)
        scores = {what: _minus(entry[what], compared[0][what]) for what in ("scores", "per_class")}
        differences.append({"letter": entry["letter"], **scores, **changed})
        warnings += [f"A and {entry['letter']}: {note}" for note in notes]
    keys = dict.fromkeys(key for run in runs for key in run.config)
    values = {key: {letter: run.config.get(key) for letter, run in lettered.items()} for key in keys}
    return {
        "cityseg": __version__,
        "warnings": warnings,
        "runs": compared,
        "differences": differences,
        "config": {key: row for key, row in values.items() if len(set(row.values())) > 1},
    }


def comparison_page(comparison: Mapping[str, Any], runs: Sequence[RunFiles]) -> str:
    """The whole page of the content of ``compare.json``, with the runs in the same order."""
    by_letter = {entry["letter"]: run for entry, run in zip(comparison["runs"], runs, strict=True)}
    styles = {letter: style for style, letter in enumerate(by_letter)}
    kept = {letter: run.figures.get("best_epoch") for letter, run in by_letter.items()}
    charts = []
    for key, title, factor in _CURVES:
        series = {letter: column(run.history, key, factor) for letter, run in by_letter.items()}
        charts.append(line_chart(title, series, styles, kept if "val/" in key else {}, zero="/" not in key))
    per_class = [value for difference in comparison["differences"] for value in difference["per_class"].values()]
    told = {letter: facts(run.figures) | environment_facts(run.figures) for letter, run in by_letter.items()}
    return render(
        "compare.html",
        comparison=comparison,
        styles=styles,
        colors={name: color for run in runs for name, color in run.colors.items()},
        most=max((abs(value) for value in per_class if value is not None), default=0),
        charts=[chart for chart in charts if chart is not None],
        panels=_panels(comparison, by_letter),
        facts=told,
        fact_names=list(dict.fromkeys(name for values in told.values() for name in values)),
    )


def _check(runs: Sequence[RunFiles]) -> None:
    problems = Problems("the comparison")
    if not 2 <= len(runs) <= len(string.ascii_uppercase):
        problems.add(f"found {len(runs)} runs, expected 2 to {len(string.ascii_uppercase)}")
    for index, run in enumerate(runs):
        if run.folder.resolve() in (other.folder.resolve() for other in runs[:index]):
            problems.add("the same run twice", str(run.folder))
        if "confusion_matrix" not in run.figures:
            problems.add(
                "runs without scores", str(run.folder), fix="score them on a split with labels: python evaluate.py"
            )
    problems.raise_if_any(DataError)
    if len({tuple(run.figures["per_class"]) for run in runs}) > 1:
        for run in runs:
            names = list(run.figures["per_class"])
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            problems.add(
                "other classes: a mean over other classes is another figure",
                f"{run.folder}: {len(names)} classes of {run.figures.get('label_space')} ({shown})",
                fix="compare runs of one label space",
            )
    problems.raise_if_any(DataError)


def _warnings(runs: Mapping[str, RunFiles]) -> Iterator[str]:
    for key, what in _SAME.items():
        members: dict[str, list[str]] = {}
        for letter, run in runs.items():
            members.setdefault(str(run.figures.get(key, "not recorded")), []).append(letter)
        if len(members) > 1:
            yield f"the {what} differs: " + "; ".join(
                f"{', '.join(group)}: {value}" for value, group in members.items()
            )


def _minus(scores: Mapping[str, float | None], first: Mapping[str, float | None]) -> dict[str, float | None]:
    pairs = ((key, score, first[key]) for key, score in scores.items())
    return {key: None if one is None or two is None else one - two for key, one, two in pairs}


def _changed_images(first: RunFiles, other: RunFiles) -> tuple[dict[str, Any], list[str]]:
    """The interval over images and the images of the same name and truth, and what is to be said of them."""
    notes, interval = [], None
    truths = [[row["pixels"] for row in run.figures["per_class"].values()] for run in (first, other)]
    if truths[0] != truths[1]:
        notes.append("their truth has other pixels, so part of each difference is not of the networks")
    if first.images is None or other.images is None:
        notes.append("no comparison of images, for want of a per_image.npz that fits the figures")
        return {"interval": None, "images": []}, notes
    rows = {name: row for row, name in enumerate(other.images.images)}
    pairs = {
        name: (mine, rows[name])
        for mine, name in enumerate(first.images.images)
        if name in rows and np.array_equal(first.images.counts[mine, 1], other.images.counts[rows[name], 1])
    }
    total = len({*first.images.images, *other.images.images})
    if not pairs:
        notes.append("no image has the same name and truth in both, so none are compared")
    elif len(pairs) < total:
        notes.append(f"{len(pairs)} of {total} images have the same name and truth; only they are compared")
    elif total > 1:
        mine, theirs = map(list, zip(*pairs.values(), strict=True))
        drawn = bootstrap_mean_iou([first.images.counts[mine], other.images.counts[theirs]])
        interval = percentile_interval(drawn[1] - drawn[0])
    before, after = ({score.image: score.miou for score in run.image_scores} for run in (first, other))
    images = [
        {"image": name, "first": before[name], "other": after[name], "difference": after[name] - before[name]}
        for name in pairs
        if name in before
    ]
    return {"interval": interval, "images": sorted(images, key=lambda row: -abs(row["difference"]))}, notes


def _panels(comparison: Mapping[str, Any], runs: Mapping[str, RunFiles]) -> list[Panel]:
    """Pictures of the images that all runs drew, the most changed first."""
    stems = [{path.stem for path in (run.folder / "predictions").glob("*.png")} for run in runs.values()]
    most: dict[str, float] = {}
    for row in (row for difference in comparison["differences"] for row in difference["images"]):
        most[row["image"]] = max(abs(row["difference"]), most.get(row["image"], 0.0))
    changes = {score.panel: most.get(score.image, 0.0) for score in next(iter(runs.values())).image_scores}
    shared = sorted(set.intersection(*stems), key=lambda stem: (-changes.get(stem, 0.0), stem))
    panels: list[Panel] = []
    for stem in shared[:_PANELS]:
        drawn = {letter: read_tiles(run.folder / "predictions" / f"{stem}.png") for letter, run in runs.items()}
        if tiles := _together(drawn):
            panels.append(embed(tiles, stem))
        else:
            panels += [embed(tiles, f"{letter}: {stem}") for letter, tiles in drawn.items() if tiles]
    return panels


def _together(drawn: Mapping[str, Mapping[str, Image.Image]]) -> dict[str, Image.Image]:
    """Tiles of several runs, those that are alike once; empty if they are not of the same picture."""
    first = next(iter(drawn.values()))
    together: dict[str, Image.Image] = {}
    alike = False
    for what in first:
        letters: dict[bytes, list[str]] = {}
        for letter, tiles in drawn.items():
            if what not in tiles or tiles[what].size != first[what].size:
                return {}
            letters.setdefault(tiles[what].tobytes(), []).append(letter)
        alike |= len(letters) == 1 and what in ("photo", "truth")
        for members in letters.values():
            together[what if len(letters) == 1 else f"{what} of {', '.join(members)}"] = drawn[members[0]][what]
    return together if alike else {}
