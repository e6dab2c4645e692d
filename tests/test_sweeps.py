"""Sweeps as they are typed: all jobs run, what is there is kept, and the summary is of all."""

import csv
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from cityseg.cli import expand_resume
from tests.conftest import ROOT, TINY

FOLDS = "fold=0,1,2,3,4"
SMALL = (*TINY, "data.scenes={train: 10, val: 3, size: 64}", "trainer.max_epochs=2")


def start(*arguments, base=SMALL):
    """The command, already running."""
    command = [sys.executable, "train.py", *base, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(*arguments, code=0, base=SMALL):
    process = start(*arguments, base=base)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def figures(run):
    return {key: value for key, value in json.loads((run / "metrics.json").read_text()).items() if key != "seconds"}


def weights(run):
    return torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]


def history(run):
    with (run / "history.csv").open() as handle:
        timed = ("seconds", "images_per_second")
        return [{key: value for key, value in row.items() if key not in timed} for row in csv.DictReader(handle)]


def assert_same_run(one, two):
    assert figures(one) == figures(two)
    assert history(one) == history(two)
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def summary(sweep, name):
    """Without what tells one sweep from another."""
    content = json.loads((sweep / "cv" / "summary.json").read_text())
    content["name"] = name
    for group in content["groups"]:
        group["name"] = name
        for row in (*group["folds"], *filter(None, [group["final"]])):
            del row["seconds"]
    return content


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    return f"data.cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, common):
    """A sweep that nothing happened to, with its final model."""
    sweep = tmp_path_factory.mktemp("sweeps") / "whole"
    output = run("-m", FOLDS, common, f"hydra.sweep.dir={sweep}", "cv.final=true")
    return sweep, output


@pytest.mark.slow
def test_a_sweep_says_what_it_does_and_ends_with_its_summary(whole):
    sweep, output = whole
    assert "5 jobs one after the other on this machine" in output
    assert "1 of 5 jobs done" in output
    assert "over 5 of 5 folds" in output
    scores = [figures(sweep / f"fold={fold}")["miou"] for fold in range(5)]
    found = json.loads((sweep / "cv" / "summary.json").read_text())["groups"][0]
    assert found["scores"]["miou"]["mean"] == pytest.approx(np.mean(scores), rel=1e-12)
    assert found["scores"]["miou"]["std"] == pytest.approx(np.std(scores, ddof=1), rel=1e-12)
    matrix = np.sum([figures(sweep / f"fold={fold}")["confusion_matrix"] for fold in range(5)], axis=0)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    assert found["pooled"]["miou"] == pytest.approx(np.mean((np.diag(matrix) / union)[union > 0]), rel=1e-12)
    assert f"{100 * np.mean(scores):.1f} ± {100 * np.std(scores, ddof=1):.1f} %" in output


@pytest.mark.slow
def test_the_final_model_trains_on_all_images_for_the_median_best_epoch(whole):
    sweep, output = whole
    best = [figures(sweep / f"fold={fold}")["best_epoch"] for fold in range(5)]
    final = figures(sweep / "fold=final")
    assert final["epochs"] == int(np.ceil(np.median(best)))
    assert (final["split"], final["images"], final["train_images"]) == ("val", 3, 10)
    assert "final model on all training images" in output
    with (sweep / "fold=final" / "split.csv").open() as handle:
        parts = [row["part"] for row in csv.DictReader(handle)]
    assert (parts.count("train"), parts.count("val"), parts.count("test")) == (10, 3, 0)


@pytest.mark.slow
def test_a_fold_run_alone_equals_the_fold_in_the_sweep(whole, common, tmp_path):
    run("fold=3", common, f"hydra.run.dir={tmp_path}/alone", "cv.final=true")
    assert_same_run(tmp_path / "alone", whole[0] / "fold=3")


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_and_ends_as_one_that_was_not(whole, common, tmp_path):
    sweep = tmp_path / "killed"
    typed = ("-m", FOLDS, common, f"hydra.sweep.dir={sweep}", "cv.final=true")
    process = start(*typed)
    deadline = time.monotonic() + 120
    while not (sweep / "fold=2" / "checkpoints" / "last.ckpt").is_file():
        assert time.monotonic() < deadline, "fold 2 has not begun"
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (sweep / "fold=2" / "metrics.json").exists()
    before = [(sweep / f"fold={fold}" / "metrics.json").stat().st_mtime_ns for fold in (0, 1)]
    output = run(*typed)
    assert "2 finished, 1 begun" in output
    assert "goes on after" in output
    assert [(sweep / f"fold={fold}" / "metrics.json").stat().st_mtime_ns for fold in (0, 1)] == before
    for fold in (*range(5), "final"):
        assert_same_run(sweep / f"fold={fold}", whole[0] / f"fold={fold}")
    assert summary(sweep, "same") == summary(whole[0], "same")


@pytest.mark.slow
def test_a_failing_fold_stops_no_other_and_is_trained_when_the_sweep_is_resumed(common, tmp_path):
    sweep = tmp_path / "sweep"
    (sweep / "fold=1").mkdir(parents=True)
    (sweep / "fold=1" / "checkpoints").touch()  # no folder can be made here
    output = run("-m", FOLDS, common, f"hydra.sweep.dir={sweep}", "cv.final=true", "trainer.max_epochs=1", code=1)
    assert "over 4 of 5 folds" in output
    assert "fold 1 failed: " in output
    assert not (sweep / "fold=final").exists()
    assert "no final model, since fold 1 has not finished" in output
    (sweep / "fold=1" / "checkpoints").unlink()
    output = run(f"resume={sweep}", base=())
    assert output.count("has finished before, and is kept") == 4
    assert "over 5 of 5 folds" in output
    assert "final model" in output
    assert FOLDS in (sweep / "multirun.yaml").read_text()  # what was typed, not what followed it


@pytest.mark.slow
def test_a_sweep_folder_is_not_continued_with_other_settings(whole, common):
    sweep, _ = whole
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("*") if path.is_file()}
    output = run("-m", "fold=0,1", common, f"hydra.sweep.dir={sweep}", "trainer.max_epochs=3", code=1)
    assert "fold=0: trainer.max_epochs was 2, now 3" in output
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_processes_that_would_start_the_sweep_again_are_refused(common, tmp_path):
    sweep = tmp_path / "sweep"
    output = run("-m", "fold=0,1", common, f"hydra.sweep.dir={sweep}", "trainer.strategy=ddp", code=1)
    assert "would start the sweep again" in output
    assert f"hydra.run.dir={sweep}/fold=$fold" in output
    assert not sweep.exists()


@pytest.mark.slow
def test_other_sweeps_get_short_names_and_a_list(common, tmp_path):
    sweep = tmp_path / "sweep"
    output = run("seed=0,1", common, "-m", f"hydra.sweep.dir={sweep}", "trainer.max_epochs=1")
    assert {path.name for path in sweep.iterdir()} == {"seed=0", "seed=1", "multirun.yaml"}
    for seed in (0, 1):
        assert f"seed={seed}: mIoU {100 * figures(sweep / f'seed={seed}')['miou']:.1f} %" in output


def test_a_sweep_is_resumed_with_what_was_typed_then(tmp_path):
    (tmp_path / "multirun.yaml").write_text(
        "hydra:\n  overrides:\n    hydra: [hydra.mode=MULTIRUN, hydra.sweep.dir=old, hydra/launcher=joblib]\n"
        "    task: ['fold=0,1', data.workers=2]\n"
    )
    found = expand_resume([f"resume={tmp_path}", "data.workers=0"])
    assert found == ["-m", "hydra/launcher=joblib", "fold=0,1", "data.workers=0", f"hydra.sweep.dir='{tmp_path}'"]
