"""Runs that are killed or asked to stop, at any moment, end as if nothing had happened once they are resumed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cityseg.callbacks.state import EXIT_CODES, Stopped
from cityseg.checkpoints import SealedCheckpointIO
from cityseg.tasks.segmentation import SegmentationTask
from tests.conftest import ROOT, TINY
from tests.faults.forked import FAILED, KILLED, finish, job, start
from tests.test_resume import GAN, GAN_BASE, content, equal

KILLS = 15  # of each run
RUNS = {
    "plain": (
        (
            "callbacks=[default,ema,freezing,early_stopping]",
            "callbacks.freezing.epochs=1",
            "callbacks.early_stopping.patience=2",
            "+callbacks.early_stopping.min_delta=1",  # after the third epoch
            "data.sampling=class_balanced",
        ),
        TINY,
    ),
    "adversarial": ((*GAN, "model.discriminator.base_channels=4"), GAN_BASE),
}
COMMON = ("trainer.max_epochs=4", "augment=strong", "scheduler.warmup_epochs=0.5", "checkpoint.every_minutes=0.001")


@pytest.fixture
def run(tmp_path, cache_dir, compose_config):
    """Start a run in a process that may be killed, or go on with one."""

    def started(folder, *overrides, moment=None):
        config = compose_config([*overrides, f"data.cache_dir={cache_dir}"], folder)
        return finish(start(job, config, folder, overrides, moment, output=tmp_path / "output.txt"))

    return started


def everything(folder):
    """All that a run has come to, and the weights that it has chosen."""
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    found = content(folder)
    for averages in found["checkpoint"]["averages"]:  # in the order in which figures first came
        averages.sort(key=lambda average: average["meta"]["name"])
    return {**found, "best": best["state_dict"], "best epochs": best["cityseg"]["epochs"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_was_not(run, tmp_path, name):
    overrides = (*RUNS[name][1], *COMMON, *RUNS[name][0])
    whole, folder, resumed = tmp_path / "whole", tmp_path / "killed", f"resume={tmp_path / 'killed'}"
    assert run(whole, *overrides) == 0
    started, begun, ended = ((whole / file).stat().st_mtime for file in (".lock", "split.csv", "metrics.json"))
    expected, draw, kills, begins = everything(whole), random.Random(name), 0, True
    while kills < KILLS:
        seconds = begun - started + draw.uniform(0, 0.8 * (ended - begun))
        moment = ("seconds", seconds) if kills % 2 else ("write", draw.randint(1, 40))
        code = run(folder, *(overrides if begins else [resumed]), moment=moment)
        if code == KILLED:
            kills += 1
            begins = not any((folder / "checkpoints").glob("[lp]*.ckpt*"))
            assert not begins or run(folder, resumed) == FAILED
            assert len(list((folder / "checkpoints").glob(".*"))) <= 1  # half a file, of this kill alone
        else:
            assert code == 0, (tmp_path / "output.txt").read_text()
            equal(expected, everything(folder))
            shutil.rmtree(folder)
            begins = True
    assert run(folder, *(overrides if begins else [resumed])) == 0
    equal(expected, everything(folder))
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_says_so(run, tmp_path):
    assert run(tmp_path / "run", *TINY, moment=("write", 3)) == KILLED
    assert run(tmp_path / "run", f"resume={tmp_path / 'run'}") == FAILED
    message = "found no checkpoint, expected last.ckpt to go on from. Fix: start a new run"
    assert message in (tmp_path / "output.txt").read_text()
    assert run(tmp_path / "run", *TINY) == 0


unstopped = {}
MOMENTS = {3: signal.SIGINT, "best.ckpt": signal.SIGUSR1, "after 2 epochs": signal.SIGTERM}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_while_a_checkpoint_is_written_loses_no_batch(run_tiny, monkeypatch, tmp_path, moment):
    typed = ("trainer.max_epochs=2", "augment=strong", "checkpoint.every_minutes=0")
    folder, number = tmp_path / "stopped", MOMENTS[moment]
    if not unstopped:
        unstopped.update(everything(run_tiny(*typed, folder="whole")))
    save, step, saved, trained, sent = SealedCheckpointIO.save_checkpoint, SegmentationTask.training_step, [], [], []

    def signalling(self, checkpoint, path, storage_options=None):
        saved.append(path)
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
        if not sent and moment in (len(saved), Path(path).name, f"after {epochs} epochs"):
            sent.append(os.kill(os.getpid(), number))
        save(self, checkpoint, path, storage_options)

    def counted(self, batch, index):
        trained.append(index)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(SealedCheckpointIO, "save_checkpoint", signalling)
        patch.setattr(SegmentationTask, "training_step", counted)
        with pytest.raises(Stopped) as stopped:
            run_tiny(*typed, folder="stopped")
    assert stopped.value.code == EXIT_CODES[number]
    assert not (folder / "metrics.json").exists()
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == len(trained)
    run_tiny(f"resume={folder}", folder="stopped")
    equal(unstopped, everything(folder))


def stopped(folder, number, *typed):
    """Start training as a person does and, once it is at it, send a signal to all its processes; returns its words."""
    last, command = folder / "checkpoints/last.ckpt", [sys.executable, "train.py", *map(str, typed)]
    before = last.stat().st_mtime_ns if last.exists() else 0
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        while number is not None and not (last.exists() and last.stat().st_mtime_ns != before):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        if number is not None:
            os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == (0 if number is None else EXIT_CODES[number]), output
    assert "Traceback" not in output
    return output


LONG = (*TINY, "trainer.max_epochs=4", "augment=strong", "checkpoint.every_minutes=0", "data.workers=2")


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_leaves_with_the_right_code_and_goes_on(run, tmp_path, cache_dir):
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, *LONG) == 0
    typed = (*LONG, f"data.cache_dir={cache_dir}", f"hydra.run.dir={folder}")
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, None):
        output = stopped(folder, number, *typed)
        assert number is None or f"stopped. To go on from there: python train.py resume={folder}" in output
        typed = (f"resume={folder}",)
    equal(everything(whole), everything(folder))


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_says_how_to_go_on_and_the_same_command_does(run, tmp_path, cache_dir):
    whole, folder = tmp_path / "whole", tmp_path / "sweep"
    assert run(whole, *LONG, "fold=0") == 0
    typed = ("-m", "fold=0,1", *LONG, f"data.cache_dir={cache_dir}", f"hydra.sweep.dir={folder}")
    output = stopped(folder / "fold=0", signal.SIGTERM, *typed)
    assert f"to go on with the sweep: python train.py resume={folder}" in output
    assert not (folder / "fold=1").exists()
    output = stopped(folder / "fold=0", None, *typed)
    assert "there already: 0 finished, 1 begun" in output
    assert "over 2 of 5 folds" in output
    equal(everything(whole), everything(folder / "fold=0"))
