"""The page that compares runs, ``report.html`` beside ``compare.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from PIL import Image

from cityseg.reports.compare import Comparison
from cityseg.reports.html.charts import column, line_chart
from cityseg.reports.html.images import Panel, embed, read_tiles
from cityseg.reports.html.page import render
from cityseg.reports.html.run import environment_facts, facts
from cityseg.reports.html.text import SCORE_NAMES
from cityseg.reports.run_files import RunFiles

_CHANGED = 20
_PANELS = 12
_CURVES = (
    ("train/loss", "training loss", 1, False),
    ("val/loss", "validation loss", 1, False),
    ("val/miou", "validation mIoU %", 100, False),
    ("lr", "learning rate", 1, True),
    ("images_per_second", "images per second", 1, True),
)


def comparison_page(comparison: Comparison, runs: Sequence[RunFiles]) -> str:
    """The whole page.

    Args:
        comparison: the content of ``compare.json``.
        runs: that it is of, in the same order.
    """
    by_letter = {entry["letter"]: run for entry, run in zip(comparison["runs"], runs, strict=True)}
    styles = {letter: style for style, letter in enumerate(by_letter)}
    kept = {letter: run.figures.get("best_epoch") for letter, run in by_letter.items()}
    charts = []
    for key, title, factor, zero in _CURVES:
        series = {letter: column(run.history, key, factor) for letter, run in by_letter.items()}
        charts.append(line_chart(title, series, styles, kept if key.startswith("val/") else {}, zero=zero))
    per_class = [value for difference in comparison["differences"] for value in difference["per_class"].values()]
    told = {letter: facts(run.figures) | environment_facts(run.figures) for letter, run in by_letter.items()}
    return render(
        "compare.html",
        comparison=comparison,
        score_keys=list(SCORE_NAMES),
        styles=styles,
        colors={name: color for run in runs for name, color in run.colors.items()},
        most=max((abs(value) for value in per_class if value is not None), default=0),
        changed=_CHANGED,
        charts=[chart for chart in charts if chart is not None],
        panels=_panels(comparison, by_letter),
        facts=told,
        fact_names=list(dict.fromkeys(name for values in told.values() for name in values)),
    )


def _panels(comparison: Comparison, runs: Mapping[str, RunFiles]) -> list[Panel]:
    """Pictures of the images that all runs drew, the most changed first."""
    stems = [{path.stem for path in (run.folder / "predictions").glob("*.png")} for run in runs.values()]
    changes = {
        score.panel: max(abs(change["difference"]) for change in found)
        for score in next(iter(runs.values())).image_scores
        if (
            found := [
                row for each in comparison["differences"] for row in each["images"] if row["image"] == score.image
            ]
        )
    }
    shared = sorted(set.intersection(*stems), key=lambda stem: (-changes.get(stem, 0.0), _numbers(stem)))
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
        letters: list[tuple[Image.Image, list[str]]] = []
        for letter, tiles in drawn.items():
            if what not in tiles or tiles[what].size != first[what].size:
                return {}
            known = next((members for tile, members in letters if tile == tiles[what]), None)
            if known is None:
                letters.append((tiles[what], [letter]))
            else:
                known.append(letter)
        alike |= len(letters) == 1 and what in ("photo", "truth")
        named = len(letters) > 1
        together |= {f"{what} of {', '.join(members)}" if named else what: tile for tile, members in letters}
    return together if alike else {}


def _numbers(stem: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", stem)]
