"""A run that is stopped anywhere and resumed ends as one that never was, bit for bit."""

import json
import os
import signal

import pytest
import torch

from cityseg.callbacks.state import Stopped
from cityseg.tasks.adversarial import AdversarialTask
from cityseg.tasks.base import Task
from cityseg.tasks.segmentation import SegmentationTask
from tests.conftest import TINY
from tests.runs.test_training import losses

pytestmark = pytest.mark.slow  # many small runs


def stop_at(patch, hook, epoch, batch, number=signal.SIGTERM):
    """Let this process get a signal while it is at a batch of a fit."""
    for task in (AdversarialTask, SegmentationTask, Task):
        if hook in vars(task):
            patch.setattr(task, hook, signalling(vars(task)[hook], epoch, batch, number))


def signalling(step, epoch, batch, number):
    def stopping(self, inputs, index):
        fitting = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        if fitting and (self.current_epoch, index) == (epoch, batch):
            os.kill(os.getpid(), number)
        return step(self, inputs, index)

    return stopping


def content(folder):
    """All that a run has come to, without times and folders."""
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    for key in ("callbacks", "cityseg"):  # they hold paths
        del checkpoint[key]
    del checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]  # a validation that began twice
    figures = json.loads((folder / "metrics.json").read_text())
    del figures["seconds"], figures["environment"]
    return {"checkpoint": checkpoint, "history": losses(folder), "figures": figures}


def equal(one, two, path=""):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), (path, one.keys() ^ two.keys())
        for key in one:
            equal(one[key], two[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            equal(a, b, f"{path}[{index}]")
    else:
        assert one == two or one != one, (path, one, two)


GAN = ("model=gan", "model@model.generator=unet", "model.generator.encoder=tu-test_resnet")
GAN_BASE = tuple(key for key in TINY if not key.startswith(("model.", "+model.")))
RUNS = {
    "plain": ((), TINY),
    "workers": (("data.workers=2", "data.sampling=class_balanced"), TINY),
    "averaged": (("callbacks=[default,ema,freezing]", "callbacks.freezing.epochs=1", "scheduler=plateau"), TINY),
    "accumulating": (("trainer.accumulate_grad_batches=2", "callbacks=[default,early_stopping]"), TINY),
    "adversarial": (GAN, GAN_BASE),
    "adversarial, accumulating": ((*GAN, "trainer.accumulate_grad_batches=2", "scheduler=plateau"), GAN_BASE),
}
STOPS = [("training_step", 0, 0), ("training_step", 1, 1), ("validation_step", 0, 0), ("validation_step", 1, 1)]
whole = {}


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: f"{stop[0]} {stop[1]}.{stop[2]}")
@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_and_resumed_run_is_one_that_was_not_stopped(run_tiny, monkeypatch, tmp_path, name, stop):
    overrides, base = RUNS[name]
    overrides = ("trainer.max_epochs=3", "augment=strong", "scheduler.warmup_epochs=0.5", *overrides)
    if name not in whole:
        whole[name] = content(run_tiny(*overrides, folder="whole", base=base))
    with monkeypatch.context() as patch:
        stop_at(patch, *stop)
        with pytest.raises(Stopped) as stopped:
            run_tiny(*overrides, folder="stopped", base=base)
    assert stopped.value.code == os.EX_TEMPFAIL
    assert not (tmp_path / "stopped/metrics.json").exists()
    run_tiny(f"resume={tmp_path / 'stopped'}", folder="stopped", base=base)
    equal(whole[name], content(tmp_path / "stopped"))


def test_a_run_that_is_stopped_while_it_scores_scores_again(run_tiny, monkeypatch, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    expected = content(run_tiny(folder="whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Task, "test_step", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(Stopped) as stopped:
            run_tiny(folder="stopped")
    assert stopped.value.code == os.EX_TEMPFAIL
    assert not (tmp_path / "stopped/metrics.json").exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    run_tiny(f"resume={tmp_path / 'stopped'}", folder="stopped")
    equal(expected, content(tmp_path / "stopped"))
