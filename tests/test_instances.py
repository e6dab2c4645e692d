"""Instance-weighted scores against the official Cityscapes script, on files that PIL alone has written."""

import numpy as np
import pytest
from PIL import Image

from cityseg.errors import FileProblem
from cityseg.instances import Instances, instance_file, read_instance_ids
from cityseg.labels import CITYSCAPES_LABELS, label_space
from cityseg.runs.scoring import official_scores

RAW = [label.id for label in CITYSCAPES_LABELS if label.id >= 0]
WITH_INSTANCES = [label.id for label in CITYSCAPES_LABELS if label.has_instances]


def street(seed, shape=(60, 80)):
    """Label ids and instance ids: bands of stuff, boxes of things that hide each other, some of them groups."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 7, 8, 11, 23, 21, 4], shape[0] // 10).repeat(10)[:, None].repeat(shape[1], 1)
    instances = labels.copy()
    for number in range(25):
        kind = rng.choice([i for i in WITH_INSTANCES if i != 31])  # trains are never true
        top, left, height, width = rng.integers([0, 0, 2, 2], [50, 70, 20, 30])
        place = np.s_[top : top + height, left : left + width]
        labels[place] = kind
        instances[place] = kind if number % 6 == 0 else kind * 1000 + number
    return labels, instances


def confused(labels, allowed, seed):
    rng = np.random.default_rng(seed)
    prediction = np.where(np.isin(labels, allowed), labels, rng.choice(allowed))
    wrong = rng.random(labels.shape) < 0.4
    return np.where(wrong, rng.choice(allowed, labels.shape), prediction)


@pytest.mark.parametrize("name", ["cityscapes19", "cityscapes20", "cityscapes_ids"])
def test_the_official_script_gives_the_same_instance_scores(name, tmp_path):
    pytest.importorskip("cityscapesscripts")
    space = label_space(name)
    ours, predictions, truths = Instances(space), [], []
    confusion = np.zeros((space.num_classes,) * 2, np.int64)
    to_train = {label_id: train_id for train_id, label_id in enumerate(space.label_ids)}
    for number in range(4):
        labels, instances = street(number)
        # No bus is ever true nor predicted.
        labels, instances = np.where(labels == 28, 7, labels), np.where(instances // 1000 == 28, 7, instances)
        instances[instances == 28] = 7
        predicted = confused(labels, [i for i in space.label_ids if i != 28], number)
        stem = tmp_path / f"ulm_000000_{number:06d}"
        for picture, ending, dtype in (
            (labels, "gtFine_labelIds", np.uint8),
            (instances, "gtFine_instanceIds", np.uint16),
            (predicted, "pred_labelIds", np.uint8),
        ):
            Image.fromarray(picture.astype(dtype)).save(f"{stem}_{ending}.png")
        truths.append(tmp_path / f"{stem.name}_gtFine_labelIds.png")
        predictions.append(tmp_path / f"{stem.name}_pred_labelIds.png")
        train_ids = np.vectorize(to_train.get)(predicted).astype(np.uint8)
        ours.update(train_ids, read_instance_ids(instance_file(truths[-1])))
        target = space.encode_table[labels]
        np.add.at(confusion, (target[target != 255], train_ids[target != 255]), 1)
    found, official = ours.scores(confusion), official_scores(predictions, truths, instances=True)
    theirs = official["classInstScores"]
    assert {k for k, v in theirs.items() if not np.isnan(v)} == {k for k, v in found["iiou"].items() if v is not None}
    for class_name, score in found["iiou"].items():
        assert score is None or score == pytest.approx(theirs[class_name], abs=1e-12)
    assert found["iiou"]["bus"] is None
    assert found["iiou"]["train"] == 0  # predicted, never true
    assert found["category_iiou"].keys() == {"human", "vehicle"}
    for category, score in found["category_iiou"].items():
        assert score == pytest.approx(official["categoryInstScores"][category], abs=1e-12)
    assert found["miiou"] == pytest.approx(official["averageScoreInstClasses"], abs=1e-12)
    assert found["category_miiou"] == pytest.approx(official["averageScoreInstCategories"], abs=1e-12)


def test_a_small_instance_counts_as_much_as_a_large_one():
    ids = np.full((10, 10), 7, np.int32)
    ids[:9], ids[9, 0] = 26001, 26002  # 90 pixels and 1 pixel
    prediction = np.full((10, 10), 13, np.uint8)  # car everywhere, but for the small one
    prediction[9] = 0
    instances = Instances(label_space("cityscapes19"))
    instances.update(prediction, ids)
    assert instances.scores(np.zeros((19, 19), np.int64))["iiou"]["car"] == 0.5


@pytest.mark.parametrize("name", ["cityscapes_categories"])
def test_spaces_without_these_classes_are_not_scored(name):
    assert Instances(label_space(name)).classes == {}


def test_files_that_hold_no_instance_ids_are_refused_by_name(tmp_path):
    path = tmp_path / "x_instanceIds.png"
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(FileProblem, match=r"x_instanceIds.*no instance ids.*'RGB'"):
        read_instance_ids(path)
    path.write_bytes(b"text")
    with pytest.raises(FileProblem, match="x_instanceIds"):
        read_instance_ids(path)
