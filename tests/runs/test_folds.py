"""Runs of a fold: what they train on, choose by and are scored on."""

import csv
import json

import numpy as np
import pytest
from sklearn.model_selection import KFold

from cityseg.checkpoints import load_checkpoint
from cityseg.crossval.folds import outcome
from cityseg.errors import ConfigError, DataError
from cityseg.image_counts import read_image_counts
from cityseg.runs.evaluation import evaluate
from tests.data.layouts import write_gtfine, write_pairs

FOLD = ("data.scenes={train: 10, val: 2, size: 64}", "fold=1", "+trainer.limit_train_batches=2")


def parts(folder):
    with (folder / "split.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    return {part: [row["file"] for row in rows if row["part"] == part] for part in ("train", "val", "test")}


def figures(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_fold_is_scored_on_the_part_that_scikit_learn_holds_out(run_tiny):
    folder = run_tiny(*FOLD, "cv.inner_val=0.25")
    found = parts(folder)
    files = sorted(file for names in found.values() for file in names)
    _, held_out = list(KFold(5, shuffle=True, random_state=42).split(files))[1]
    assert found["test"] == [files[index] for index in held_out]
    assert (len(found["train"]), len(found["val"])) == (6, 2)
    result = figures(folder)
    assert (result["split"], result["images"], result["fold"], result["cv"]["folds"]) == ("test", 2, 1, 5)


def test_a_plain_run_writes_the_folders_own_split(run_tiny):
    folder = run_tiny()
    found = parts(folder)
    assert [len(found[part]) for part in ("train", "val", "test")] == [6, 3, 0]
    assert figures(folder)["train_images"] == 6
    assert outcome(folder)[1:] == ("finished", None)  # what sweeps of other keys than the fold go by
    assert all("/train/" in name for name in found["train"])
    assert all("/val/" in name for name in found["val"])


def test_without_inner_validation_the_last_weights_are_taken(run_tiny):
    folder = run_tiny(*FOLD, "cv.inner_val=0", "trainer.max_epochs=2")
    assert parts(folder)["val"] == []
    best, last = (load_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    assert best.epochs == last.epochs == 2
    assert "val/miou" not in (folder / "history.csv").read_text()
    assert figures(folder)["images"] == 2


@pytest.mark.parametrize("waits", ["scheduler=plateau", "callbacks=[default,early_stopping]"])
def test_without_inner_validation_nothing_may_wait_for_its_figures(run_tiny, waits):
    with pytest.raises(ConfigError, match=r"val/miou is not computed"):
        run_tiny(*FOLD, "cv.inner_val=0", waits)


def test_a_folds_checkpoint_is_scored_on_its_own_parts_or_the_folders(run_tiny, compose_config, tmp_path):
    folder = run_tiny(*FOLD)
    checkpoint = f"ckpt={folder}/checkpoints/best.ckpt"
    evaluate(compose_config([checkpoint, "split=test"], name="evaluate"), tmp_path / "own")
    assert figures(tmp_path / "own")["confusion_matrix"] == figures(folder)["confusion_matrix"]
    evaluate(compose_config([checkpoint, "fold=none"], name="evaluate"), tmp_path / "folders")
    assert figures(tmp_path / "folders")["images"] == 2
    assert np.sum(figures(tmp_path / "folders")["confusion_matrix"]) > 0
    with pytest.raises(ConfigError, match="null for the checkpoint's own fold, or none"):
        evaluate(compose_config([checkpoint, "fold=2"], name="evaluate"), tmp_path / "other")


@pytest.mark.slow
def test_a_written_split_can_be_given_back(run_tiny):
    first = run_tiny(*FOLD, folder="first")
    fold = [word for word in FOLD if word != "fold=1"]
    second = run_tiny(*fold, "fold=0", "cv=files", f"cv.path={first}/split.csv", folder="second")
    assert parts(first) == parts(second)
    assert figures(first)["confusion_matrix"] == figures(second)["confusion_matrix"]


@pytest.mark.slow
def test_clusters_are_found_in_the_folds_own_training_part(run_tiny):
    small = ("data=pairs", "data.labels=kmeans", "data.clusters=4")
    centers = [load_checkpoint(run_tiny(*FOLD, *small, f"fold={fold}", folder=f"fold{fold}") / "checkpoints/best.ckpt")
               .config["data"]["centers"] for fold in (0, 1)]  # fmt: skip
    assert centers[0] != centers[1]
    with pytest.raises(ConfigError, match="cv=stratified"):
        run_tiny(*FOLD, *small, "cv=stratified")


@pytest.mark.parametrize("strategy", ["stratified", "grouped"])
def test_other_strategies_run(run_tiny, strategy):
    found = parts(run_tiny(*FOLD, f"cv={strategy}", "cv.folds=2"))
    assert sum(map(len, found.values())) == 10
    if strategy == "grouped":
        cities = [{name.split("/")[-2] for name in found[part]} for part in found]
        assert not set.intersection(cities[0], cities[2])


@pytest.mark.parametrize(("wrong", "message"), [("fold=5", "from 0 to 4"), ("cv.inner_val=2", "inner_val")])
def test_a_wrong_fold_is_refused(run_tiny, wrong, message):
    with pytest.raises(ConfigError, match=message):
        run_tiny(*FOLD, wrong)


def test_more_folds_than_images_names_both_numbers(run_tiny):
    with pytest.raises(ConfigError, match=r"cv\.folds=12: found 10 training images"):
        run_tiny(*FOLD, "cv.folds=12")


def test_a_photo_in_train_and_val_is_a_leak(run_tiny, tmp_path):
    root = write_gtfine(tmp_path / "data", size=(64, 64))
    source = root / "leftImg8bit/train/ulm/ulm_000000_000000_leftImg8bit.png"
    (root / "leftImg8bit/val/ulm/ulm_000000_000001_leftImg8bit.png").write_bytes(source.read_bytes())
    with pytest.raises(DataError, match="same content in two parts"):
        run_tiny(f"data.root={root}", "model.pretrained=false")


def test_composites_of_no_known_number_have_no_city(run_tiny, tmp_path):
    root = write_pairs(tmp_path / "data", ending="png")
    with pytest.raises(DataError, match="found 12 composites, expected exactly 2975"):
        run_tiny("data=pairs", f"data.root={root}", "model.pretrained=false", "fold=0", "cv=grouped")


def test_a_sweep_over_folds_is_summarised_from_its_folders(run_tiny, capsys):
    from cityseg.crossval.__main__ import main

    rows = []
    for fold in (0, 1):
        folder = run_tiny(*FOLD, "cv.folds=2", f"fold={fold}", folder=f"sweep/fold_{fold}")
        (folder / ".hydra").mkdir()
        (folder / ".hydra/overrides.yaml").write_text(f"- cv.folds=2\n- fold={fold}\n")
        (folder / ".hydra/config.yaml").write_text("cv: {folds: 2}\n")
        rows.append(figures(folder))
        counts = read_image_counts(folder / "per_image.npz")
        assert set(counts.images) == set(parts(folder)["test"])
        np.testing.assert_array_equal(counts.counts.sum(axis=0)[0], np.diagonal(rows[-1]["confusion_matrix"]))
    sweep = folder.parent
    assert main([str(sweep)]) == 0
    summary = json.loads((sweep / "cv/summary.json").read_text())
    scores = [row["miou"] for row in rows]
    (group,) = summary["groups"]
    assert group["scores"]["miou"]["mean"] == pytest.approx(np.mean(scores))
    assert group["scores"]["miou"]["std"] == pytest.approx(np.std(scores, ddof=1))
    pooled = np.sum([row["confusion_matrix"] for row in rows], axis=0)
    np.testing.assert_array_equal(group["pooled"]["confusion_matrix"], pooled)
    assert "2 of 2 folds" in capsys.readouterr().out


def test_a_resumed_run_keeps_the_split_it_began_with(run_tiny):
    folder = run_tiny(*FOLD, folder="run")
    with pytest.raises(DataError, match="would divide the files otherwise"):
        run_tiny(f"resume={folder}", "cv.seed=7", "trainer.max_epochs=2", folder="run")


@pytest.mark.parametrize("target", ["cityseg.tasks.nothing.Task", "torch.nn.Linear"])
def test_what_is_no_task_is_named(run_tiny, target):
    with pytest.raises(ConfigError, match=rf"task\._target_={target}"):
        run_tiny(f"task._target_={target}")
