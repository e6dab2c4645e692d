"""The official Cityscapes evaluation, on predictions we wrote, says what metrics.json says."""

import json

import pytest

from cityseg.runs.evaluation import evaluate

official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")


def official_results(predictions, truths, tmp_path):
    arguments = official.args
    arguments.evalPixelAccuracy = False
    arguments.evalInstLevelScore = False
    arguments.JSONOutput = True
    arguments.exportFile = str(tmp_path / "official.json")
    arguments.quiet = True
    official.evaluateImgLists([str(p) for p in predictions], [str(p) for p in truths], arguments)
    return json.loads((tmp_path / "official.json").read_text())


def test_the_official_script_gives_the_same_figures(run_tiny, compose_config, tmp_path, cache_dir):
    folder = run_tiny("trainer.max_epochs=8", "optimizer.lr=3e-3")
    wanted = [f"ckpt={folder}/checkpoints/best.ckpt", "predictions=true"]
    evaluate(compose_config(wanted, name="evaluate"), tmp_path / "scored")
    ours = json.loads((tmp_path / "scored/metrics.json").read_text())
    truths = sorted(cache_dir.glob("scenes-*-gtfine-6+3-*/gtFine/val/*/*_labelIds.png"))
    predictions = [
        tmp_path / "scored/label_ids" / path.name.replace("gtFine_labelIds", "pred_labelIds") for path in truths
    ]
    assert len(truths) == 3
    theirs = official_results(predictions, truths, tmp_path)
    for name, figures in ours["per_class"].items():
        score = theirs["classScores"][name]
        if figures["iou"] is None:
            assert score is None or score != score
        else:
            assert figures["iou"] == pytest.approx(score, abs=1e-9)
    for name, iou in ours["category_iou"].items():
        assert iou == pytest.approx(theirs["categoryScores"][name], abs=1e-9)
    assert ours["miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-9)
    assert ours["category_miou"] == pytest.approx(theirs["averageScoreCategories"], abs=1e-9)
    assert sum(1 for figures in ours["per_class"].values() if figures["iou"]) >= 3
