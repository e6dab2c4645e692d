"""Hold a metrics.json against the official Cityscapes evaluation of the label ids written beside it.

    python evaluate.py ckpt=PATH predictions=true hydra.run.dir=SCORED
    python benchmarks/official_scores.py SCORED TRUTH

TRUTH is a folder with ``*_gtFine_labelIds.png`` files, at any depth, or a split of composites (``PAIRS/val``), whose
decoded labels are then written as such files first. Needs ``pip install cityseg[cityscapes]``.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from cityseg.data.color_labels import PaletteDecoder
from cityseg.data.pairs import PairsReader
from cityseg.labels import label_space
from cityseg.runs.scoring import official_scores


def differences(ours: Mapping[str, Any], official: Mapping[str, Any]) -> dict[str, float]:
    """Absolute difference of every score that both have; infinite where only one of them has it."""
    pairs = {
        **{name: (score["iou"], official["classScores"][name]) for name, score in ours["per_class"].items()},
        **{
            f"category {name}": (score, official["categoryScores"][name])
            for name, score in ours["category_iou"].items()
        },
        "mean of classes": (ours["miou"], official["averageScoreClasses"]),
        "mean of categories": (ours["category_miou"], official["averageScoreCategories"]),
    }
    return {name: _difference(*pair) for name, pair in pairs.items()}


def _difference(ours: float | None, official: float | None) -> float:
    missing = [value is None or math.isnan(value) for value in (ours, official)]
    if all(missing):
        return 0.0
    return math.inf if any(missing) or ours is None or official is None else abs(ours - official)


def write_truth(composites: Path, folder: Path) -> Path:
    """Decode the label halves of composites as data=pairs does, and write them as label-id files."""
    space = label_space("cityscapes19")
    reader = PairsReader(PaletteDecoder(space))
    for path in composites.iterdir():
        target = reader(path, path).target
        assert target is not None
        Image.fromarray(space.to_label_ids(target)).save(folder / f"{path.stem}_gtFine_labelIds.png")
    return folder


def match(scored: Path, truth: Path) -> tuple[list[Path], list[Path]]:
    """Predictions under a run folder, and the truth of each."""
    truths = {path.name.removesuffix("_gtFine_labelIds.png"): path for path in truth.rglob("*_gtFine_labelIds.png")}
    predictions = sorted((scored / "label_ids").glob("*_pred_labelIds.png"))
    return predictions, [truths[path.name.removesuffix("_pred_labelIds.png")] for path in predictions]


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scored", type=Path, help="run folder of evaluate.py with predictions=true")
    parser.add_argument("truth", type=Path, help="folder of the true label ids")
    options = parser.parse_args()
    ours = json.loads((options.scored / "metrics.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        as_files = any(options.truth.rglob("*_gtFine_labelIds.png"))
        truth = options.truth if as_files else write_truth(options.truth, Path(folder))
        predictions, truths = match(options.scored, truth)
        official = official_scores(predictions, truths, instances=False)
    found = differences(ours, official)
    print(f"{len(predictions)} images, {len(found)} scores, largest difference {max(found.values()):.1e}")
    print(f"mean IoU of classes: {ours['miou']:.6f}, official {official['averageScoreClasses']:.6f}")
    print(f"mean IoU of categories: {ours['category_miou']:.6f}, official {official['averageScoreCategories']:.6f}")


if __name__ == "__main__":
    main()
