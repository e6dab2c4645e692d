import json

import numpy as np
import pytest
from PIL import Image

from cityseg.checkpoints import load_checkpoint
from cityseg.errors import CheckpointError
from cityseg.runs.evaluation import evaluate
from tests.data.layouts import CLASSES, photo, save, write_folders, write_gtfine


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def trained(run_tiny, kept):
    """A checkpoint trained on a data set of one's own, once for this file."""
    root, ckpt = kept / "mine", kept / "best.ckpt"
    if not ckpt.exists():
        write_gtfine(root, size=(64, 64))
        (run_tiny(f"data.root={root}", "model.pretrained=false") / "checkpoints/best.ckpt").rename(ckpt)
    return ckpt, root


@pytest.fixture
def run_evaluate(compose_config, tmp_path):
    def run(*overrides):
        evaluate(compose_config(overrides, name="evaluate"), tmp_path / "scored")
        return json.loads((tmp_path / "scored/metrics.json").read_text())

    return run


def test_a_split_without_labels_is_predicted_not_scored(trained, run_evaluate, tmp_path):
    ckpt, root = trained
    save(photo(48, 80), root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    figures = run_evaluate(f"ckpt={ckpt}", "split=test", "predictions=true")
    assert "miou" not in figures
    assert figures["images"] == 1
    prediction = Image.open(tmp_path / "scored/label_ids/berlin_000000_000019_pred_labelIds.png")
    assert prediction.size == (80, 48)


def test_other_data_of_the_same_layout_can_be_scored(trained, run_evaluate, tmp_path):
    ckpt, _ = trained
    other = write_gtfine(tmp_path / "other", (("train", 1), ("val", 3)), size=(40, 56))
    figures = run_evaluate(f"ckpt={ckpt}", f"data.root={other}", "split=val")
    assert figures["images"] == 3
    assert np.sum(figures["confusion_matrix"]) == 3 * (40 * 56 - 4)


def test_the_training_split_can_be_scored_too(trained, run_evaluate):
    assert run_evaluate(f"ckpt={trained[0]}", "split=train")["images"] == 4


def test_data_of_other_classes_is_refused_naming_both(trained, run_evaluate):
    with pytest.raises(CheckpointError, match=r"19 classes of 'cityscapes19'.*7 classes of 'cityscapes_categories'"):
        run_evaluate(f"ckpt={trained[0]}", "+data.label_space=cityscapes_categories")


def test_own_classes_travel_with_the_checkpoint(run_tiny, run_evaluate, tmp_path):
    root = write_folders(tmp_path / "mine")
    classes = "{" + ", ".join(f"{name}: {color}" for name, color in CLASSES.items()) + "}"
    folder = run_tiny("data=folders", f"data.root={root}", f"data.classes={classes}", "model.pretrained=false")
    ckpt = folder / "checkpoints/best.ckpt"
    assert load_checkpoint(ckpt).label_space.class_names == tuple(CLASSES)
    assert list(run_evaluate(f"ckpt={ckpt}")["per_class"]) == list(CLASSES)


def test_sizes_may_differ_inside_a_split(trained, run_evaluate, tmp_path):
    ckpt, _ = trained
    whole = run_evaluate(f"ckpt={ckpt}", "data.eval_batch_size=1")
    grown = write_gtfine(tmp_path / "mixed", (("val", 2),), size=(64, 64))
    save(photo(50, 70), grown / "leftImg8bit/val/zug/zug_000000_000000_leftImg8bit.png")
    save(np.full((50, 70), 7), grown / "gtFine/val/zug/zug_000000_000000_gtFine_labelIds.png")
    mixed = run_evaluate(f"ckpt={ckpt}", f"data.root={grown}", "data.eval_batch_size=4")
    assert np.sum(mixed["confusion_matrix"]) == np.sum(whole["confusion_matrix"]) + 50 * 70
