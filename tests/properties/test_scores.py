"""Scores of random predictions, with void and absent classes, against scikit-learn, torchmetrics and loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics
from torchmetrics.classification import MulticlassJaccardIndex

from cityseg.labels import VOID, LabelSpace
from cityseg.metrics import SegmentationMetrics
from cityseg.scores import scores_from_confusion


@st.composite
def labellings(draw):
    """Number of classes, predictions and truth ``(B, H, W)``; any class may be absent, and any pixel void."""
    classes = draw(st.sampled_from([1, 2, 3, 5, 19, 255]))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)))
    ids = st.integers(0, classes - 1)
    prediction = draw(arrays.arrays(np.uint8, shape, elements=ids))
    void = st.just(VOID)
    truth = draw(arrays.arrays(np.uint8, shape, elements=draw(st.sampled_from([ids, ids | void, ids | void, void]))))
    return classes, prediction, truth


def space(classes):
    return LabelSpace("drawn", tuple(f"c{i}" for i in range(classes)), tuple((i, 0, 0) for i in range(classes)))


def confusion(classes, prediction, truth):
    metric = SegmentationMetrics(classes)
    metric.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    return metric.confmat.numpy()


@given(labelling=labellings())
def test_the_confusion_matrix_is_that_of_scikit_learn_and_of_torchmetrics(labelling):
    classes, prediction, truth = labelling
    valid = truth != VOID
    found = confusion(*labelling)
    if valid.any():
        expected = metrics.confusion_matrix(truth[valid], prediction[valid], labels=range(classes))
        np.testing.assert_array_equal(found, expected)
    assert found.sum() == valid.sum()
    if classes > 1:
        theirs = MulticlassJaccardIndex(classes, ignore_index=VOID)
        theirs.update(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
        miou = scores_from_confusion(found, space(classes))["miou"]
        if valid.any():
            assert miou == pytest.approx(theirs.compute().item(), abs=1e-6)
        else:
            assert miou is None


@given(labelling=labellings())
def test_every_score_is_that_of_scikit_learn(labelling):
    classes, prediction, truth = labelling
    scores = scores_from_confusion(confusion(*labelling), space(classes))
    valid = truth != VOID
    truth, prediction = truth[valid], prediction[valid]
    if not valid.any():
        assert {scores[key] for key in ("miou", "mpa", "pixel_accuracy", "fwiou", "dice")} == {None}
        return
    occurring, true = np.union1d(truth, prediction).tolist(), np.unique(truth).tolist()
    options = {"labels": occurring, "average": None, "zero_division": 0}
    iou, dice = metrics.jaccard_score(truth, prediction, **options), metrics.f1_score(truth, prediction, **options)
    recall = metrics.recall_score(truth, prediction, labels=true, average=None)
    share = np.array([(truth == i).mean() for i in occurring])
    expected = {
        "miou": iou.mean(), "dice": dice.mean(), "mpa": recall.mean(), "fwiou": (iou * share).sum(),
        "pixel_accuracy": metrics.accuracy_score(truth, prediction),
    }  # fmt: skip
    assert {key: scores[key] for key in expected} == pytest.approx(expected)
    for i in range(classes):
        row = scores["per_class"][f"c{i}"]
        assert row["iou"] == (pytest.approx(iou[occurring.index(i)]) if i in occurring else None)
        assert row["accuracy"] == (pytest.approx(recall[true.index(i)]) if i in true else None)
        assert row["pixels"] == (truth == i).sum()


@given(labelling=labellings(), data=st.data())
def test_parts_merged_are_the_whole(labelling, data):
    classes, prediction, truth = labelling
    cut = data.draw(st.integers(0, len(truth)))
    parts = [slice(None, cut), slice(cut, None)]
    together = SegmentationMetrics(classes)
    for part in parts:
        if len(truth[part]):
            together.update(torch.from_numpy(prediction[part]), torch.from_numpy(truth[part]))
    np.testing.assert_array_equal(together.confmat.numpy(), confusion(*labelling))
    np.testing.assert_array_equal(
        sum(confusion(classes, prediction[i : i + 1], truth[i : i + 1]) for i in range(len(truth))),
        confusion(*labelling),
    )


@given(labelling=labellings(), data=st.data())
def test_scores_do_not_depend_on_the_order_of_pixels_or_classes(labelling, data):
    classes, prediction, truth = labelling
    order = np.array([*data.draw(st.permutations(range(classes))), *range(classes, 256)], np.uint8)
    one = scores_from_confusion(confusion(*labelling), space(classes))
    renamed = scores_from_confusion(confusion(classes, order[prediction], order[truth]), space(classes))
    for key in ("miou", "mpa", "pixel_accuracy", "fwiou", "dice"):
        assert renamed[key] == pytest.approx(one[key])
    assert [renamed["per_class"][f"c{order[i]}"] for i in range(classes)] == [*one["per_class"].values()]
