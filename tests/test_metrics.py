from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex

from cityseg.errors import ConfigError
from cityseg.labels import custom_label_space, label_space
from cityseg.metrics import SegmentationMetrics
from cityseg.scores import scores_from_confusion

CLASSES = 19
SPACE = label_space("cityscapes19")
THREE = custom_label_space({"road": [1, 0, 0], "car": [2, 0, 0], "sky": [3, 0, 0]})


@pytest.fixture
def batch():
    """Predictions and truth of two images: class 7 absent, class 5 predicted but never true, some void."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, CLASSES, (2, 40, 50))
    preds = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, CLASSES, target.shape))
    preds[preds == 7] = 8
    target[np.isin(target, [5, 7])] = 255
    return torch.from_numpy(preds), torch.from_numpy(target)


def collect(preds, target, classes=CLASSES, **options):
    metric = SegmentationMetrics(classes, **options)
    for i in range(len(preds)):
        metric.update(preds[i : i + 1], target[i : i + 1])
    return metric


# The metric


@pytest.mark.parametrize("preds_dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("target_dtype", [torch.int64, torch.uint8])
def test_confusion_is_that_of_sklearn(batch, preds_dtype, target_dtype):
    preds, target = batch
    metric = collect(preds.to(preds_dtype), target.to(target_dtype))
    valid = target != 255
    expected = confusion_matrix(target[valid], preds[valid], labels=range(CLASSES))
    assert metric.confmat.dtype == torch.int64
    np.testing.assert_array_equal(metric.confmat.numpy(), expected)


def test_inputs_are_left_as_they_are(batch):
    preds, target = batch[0].int(), batch[1].int()
    copies = preds.clone(), target.clone()
    collect(preds, target)
    assert torch.equal(preds, copies[0])
    assert torch.equal(target, copies[1])


def test_logits_count_as_their_argmax(batch):
    preds, target = batch
    logits = torch.randn(*preds.shape, CLASSES).movedim(-1, 1)
    assert torch.equal(collect(logits, target).confmat, collect(logits.argmax(1), target).confmat)


def test_two_hundred_and_fifty_five_classes_do_not_overflow():
    metric = SegmentationMetrics(255)
    metric.update(torch.tensor([[[254, 3]]], dtype=torch.uint8), torch.tensor([[[254, 255]]], dtype=torch.uint8))
    assert metric.confmat.sum() == 1
    assert metric.confmat[254, 254] == 1


def test_miou_is_that_of_torchmetrics(batch):
    theirs = MulticlassJaccardIndex(CLASSES, ignore_index=255)
    theirs.update(*batch)
    assert torch.equal(collect(*batch).compute(), theirs.compute())


@pytest.mark.parametrize("ignored", [-1, 2, 3, 1000])
def test_another_ignore_index_is_left_out(ignored):
    metric = SegmentationMetrics(3, ignore_index=ignored)
    metric.update(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 1, ignored]]]))
    assert metric.confmat.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_deterministic_algorithms_use_no_mesh_of_pixels_and_cells(batch, monkeypatch):
    expected = collect(*batch).confmat
    used = []
    bincount = torch.bincount
    monkeypatch.setattr(torch, "bincount", lambda *a, **k: used.append(1) or bincount(*a, **k))
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(collect(*batch).confmat, expected)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(used) == 2


def test_clone_and_reset_start_from_nothing(batch):
    metric = collect(*batch)
    copy = metric.clone()
    metric.reset()
    assert metric.confmat.sum() == 0
    assert copy.confmat.sum() == (batch[1] != 255).sum()


# The scores


def test_scores_by_hand():
    # road: 6 true, 5 found; car: absent from the truth, one pixel claimed; sky: neither
    confusion = np.array([[5, 1, 0], [0, 0, 0], [0, 0, 0]])
    scores = scores_from_confusion(confusion, THREE)
    assert scores["per_class"] == {
        "road": {"iou": 5 / 6, "accuracy": 5 / 6, "dice": 10 / 11, "pixels": 6},
        "car": {"iou": 0.0, "accuracy": None, "dice": 0.0, "pixels": 0},
        "sky": {"iou": None, "accuracy": None, "dice": None, "pixels": 0},
    }
    assert scores["miou"] == pytest.approx(5 / 12, abs=1e-15)
    assert scores["mpa"] == pytest.approx(5 / 6, abs=1e-15)
    assert scores["pixel_accuracy"] == pytest.approx(5 / 6, abs=1e-15)
    assert scores["fwiou"] == pytest.approx(5 / 6, abs=1e-15)
    assert scores["dice"] == pytest.approx(5 / 11, abs=1e-15)
    assert scores["confusion_matrix"] == confusion.tolist()
    assert "category_miou" not in scores
    assert "category_iou" not in scores


def test_means_differ_as_they_should():
    # road 8 of 10 found, car 1 of 2, sky 4 of 4 and two more claimed
    confusion = np.array([[8, 0, 2], [1, 1, 0], [0, 0, 4]])
    scores = scores_from_confusion(confusion, THREE)
    iou = [8 / 11, 1 / 2, 4 / 6]
    assert scores["miou"] == pytest.approx(sum(iou) / 3)
    assert scores["mpa"] == pytest.approx((0.8 + 0.5 + 1) / 3)
    assert scores["pixel_accuracy"] == pytest.approx(13 / 16)
    assert scores["fwiou"] == pytest.approx((10 * iou[0] + 2 * iou[1] + 4 * iou[2]) / 16)
    assert scores["dice"] == pytest.approx((16 / 19 + 2 / 3 + 8 / 10) / 3)


def test_per_class_iou_is_that_of_sklearn(batch):
    preds, target = batch
    valid = target != 255
    expected = jaccard_score(target[valid], preds[valid], labels=range(CLASSES), average=None, zero_division=0)
    scores = scores_from_confusion(collect(preds, target).confmat.numpy(), SPACE)
    ours = [row["iou"] for row in scores["per_class"].values()]
    assert ours[7] is None
    assert ours[5] == 0
    assert [iou or 0 for iou in ours] == pytest.approx(expected.tolist(), abs=1e-12)


def test_miou_of_metric_and_scores_agree(batch):
    metric = collect(*batch)
    scores = scores_from_confusion(metric.confmat.numpy(), SPACE)
    assert scores["miou"] == pytest.approx(metric.compute().item(), abs=1e-6)


def test_void_alone_scores_nothing():
    metric = SegmentationMetrics(CLASSES)
    metric.update(torch.zeros(1, 4, 4).long(), torch.full((1, 4, 4), 255, dtype=torch.uint8))
    scores = scores_from_confusion(metric.confmat.numpy(), SPACE)
    for key in ("miou", "mpa", "pixel_accuracy", "fwiou", "dice", "category_miou"):
        assert scores[key] is None, key
    assert set(scores["category_iou"].values()) == {None}
    assert all(row["iou"] is None and row["pixels"] == 0 for row in scores["per_class"].values())


def test_scores_survive_json(batch):
    scores = scores_from_confusion(collect(*batch).confmat.numpy(), SPACE)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_counts_beyond_float32_are_exact():
    confusion = np.array([[2**53 - 1, 0, 0], [1, 2**24 + 1, 0], [0, 0, 0]])
    row = scores_from_confusion(confusion, THREE)["per_class"]["car"]
    assert row["pixels"] == 2**24 + 2
    assert row["accuracy"] == (2**24 + 1) / (2**24 + 2)


def test_a_matrix_of_another_space_is_refused():
    with pytest.raises(ConfigError, match=r"\(3, 3\).*\(19, 19\).*cityscapes19"):
        scores_from_confusion(np.zeros((3, 3), np.int64), SPACE)


# The official script


@pytest.fixture
def official(batch):
    """The official functions, our matrix, and the same counts in the script's 34 label ids."""
    module = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    ours = collect(*batch).confmat.numpy()
    theirs = np.zeros((34, 34), np.ulonglong)
    theirs[np.ix_(SPACE.label_ids, SPACE.label_ids)] = ours
    # pixels of ignored labels, which the script must leave out as we leave out void
    theirs[np.ix_([0, 3, 4, 9], SPACE.label_ids)] = 1000
    return SimpleNamespace(module=module, args=SimpleNamespace(evalLabels=list(range(34))), ours=ours, theirs=theirs)


def test_per_class_iou_and_mean_are_those_of_the_official_script(official):
    scores = scores_from_confusion(official.ours, SPACE)
    theirs = {
        name: official.module.getIouScoreForLabel(label, official.theirs, official.args)
        for name, label in zip(SPACE.class_names, SPACE.label_ids, strict=True)
    }
    ours = {name: math.nan if row["iou"] is None else row["iou"] for name, row in scores["per_class"].items()}
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    assert math.isnan(theirs["traffic sign"])
    average = official.module.getScoreAverage(theirs, official.args)
    assert scores["miou"] == pytest.approx(average, abs=1e-12)


def test_category_iou_and_mean_are_those_of_the_official_script(official):
    scores = scores_from_confusion(official.ours, SPACE)
    theirs = {
        name: official.module.getIouScoreForCategory(name, official.theirs, official.args)
        for name in dict.fromkeys(SPACE.categories)
    }
    assert scores["category_iou"] == pytest.approx(theirs, abs=1e-12)
    average = official.module.getScoreAverage(theirs, official.args)
    assert scores["category_miou"] == pytest.approx(average, abs=1e-12)
