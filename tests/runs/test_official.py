"""The official Cityscapes evaluation, on predictions we wrote, says what metrics.json says."""

import json

import pytest
from benchmarks.official_scores import differences, match

from cityseg.runs.evaluation import evaluate
from cityseg.runs.scoring import official_scores

pytest.importorskip("cityscapesscripts")


def test_the_official_script_gives_the_same_figures(run_tiny, compose_config, tmp_path, cache_dir):
    folder = run_tiny("trainer.max_epochs=10", "optimizer.lr=3e-3", "data.batch_size=1")
    wanted = [f"ckpt={folder}/checkpoints/best.ckpt", "predictions=true"]
    evaluate(compose_config(wanted, name="evaluate"), tmp_path / "scored")
    ours = json.loads((tmp_path / "scored/metrics.json").read_text())
    (root,) = cache_dir.glob("scenes-*-gtfine-6+3-*")
    predictions, truths = match(tmp_path / "scored", root / "gtFine/val")
    assert len(predictions) == 3
    found = differences(ours, official_scores(predictions, truths, instances=False))
    assert len(found) == 19 + 7 + 2
    assert max(found.values()) < 1e-9
    assert sum(1 for figures in ours["per_class"].values() if figures["iou"]) >= 3


def test_a_wrong_score_would_be_seen():
    ours = {"per_class": {"road": {"iou": 0.5}}, "category_iou": {}, "miou": 0.5, "category_miou": None}
    official = {
        "classScores": {"road": 0.5001},
        "categoryScores": {},
        "averageScoreClasses": 0.5,
        "averageScoreCategories": float("nan"),
    }
    assert differences(ours, official)["road"] == pytest.approx(1e-4)
    official["classScores"]["road"] = None
    assert differences(ours, official)["road"] == float("inf")
