"""``data.batch_size=auto`` finds what fits, changes nothing else, and is found once."""

import copy
import functools
import json
import os
import random
import socket

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only

from cityseg import adversarial
from cityseg.checkpoints import load_checkpoint
from cityseg.errors import ConfigError, TrainingError
from cityseg.runs import preflight
from cityseg.runs.batch_size import find_batch_size
from cityseg.runs.jobs import run_job
from cityseg.runs.objects import build_task
from cityseg.runs.preflight import check_device, prepare
from cityseg.tasks.segmentation import SegmentationTask
from tests.conftest import TINY
from tests.faults import forked

AUTO = "data.batch_size=auto"
GAN = ("model=gan", "model@model.generator=unet", "model.discriminator.base_channels=8")
TWELVE = "data.scenes={train: 12, val: 3, size: 64}"


def fill_above(most, patch=setattr):
    """Let memory be full above so many crops; returns the sizes of the steps to come."""
    tried, supervised = [], SegmentationTask.supervised

    def step(self, batch):
        tried.append(len(batch["photo"]))
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return supervised(self, batch)

    patch(SegmentationTask, "supervised", step)
    return tried


@pytest.fixture
def full_above(monkeypatch):
    monkeypatch.setattr(preflight, "FILLED_WITHOUT_HARM", ("cpu",))
    return functools.partial(fill_above, patch=monkeypatch.setattr)


def parts(compose_config, folder, cache_dir, *typed):
    """Config, data and task of a run that has not begun."""
    base = [key.replace("model.", "model.generator.") if GAN[0] in typed else key for key in TINY]
    config = compose_config([*base, f"data.cache_dir={cache_dir}", TWELVE, AUTO, *typed], folder)
    data, network = prepare(config)
    return config, data, build_task(config, data, network)


def test_a_processor_is_not_searched(compose_config, tmp_path):
    with pytest.raises(ConfigError, match=r"data.batch_size=auto: .* of a GPU.*Fix: data.batch_size=4"):
        check_device(compose_config([*TINY, AUTO], tmp_path))


@pytest.mark.parametrize(("most", "found", "tried", "said"), [
    (5, 4, [1, 1, 2, 2, 4, 4, 8], "4 crops of 64x64; 8 do not fit"),
    (99, 8, [1, 1, 2, 2, 4, 4, 8, 8], "8 crops of 64x64; there are 12 for each device"),
])  # fmt: skip
@pytest.mark.slow
def test_the_largest_power_of_two_that_fits_is_taken_and_nothing_else_changes(
    compose_config, cache_dir, tmp_path, full_above, caplog, most, found, tried, said
):
    caplog.set_level("INFO")
    config, data, task = parts(compose_config, tmp_path, cache_dir)
    weights, states = (
        copy.deepcopy(task.state_dict()),
        (torch.get_rng_state(), np.random.get_state()[1], random.getstate()),
    )
    seen = full_above(most)
    find_batch_size(config, data, task)
    assert (data.batch_size, config.data.batch_size, seen) == (found, found, tried)
    assert caplog.text.count("data.batch_size=auto: ") == 1
    assert said in caplog.text
    assert all(torch.equal(value, weights[key]) for key, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


@pytest.mark.slow
def test_both_networks_of_a_gan_are_tried_past_the_warm_up(
    compose_config, cache_dir, tmp_path, full_above, monkeypatch
):
    typed = (*GAN, "task.warmup_epochs=3", "trainer.max_epochs=5",
             "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0")  # fmt: skip
    config, data, task = parts(compose_config, tmp_path, cache_dir, *typed)
    steps, hinge = [], adversarial.generator_hinge  # not asked for in the warm-up
    monkeypatch.setattr(adversarial, "generator_hinge", lambda *a: steps.append(len(a[0])) or hinge(*a))
    full_above(2)
    find_batch_size(config, data, task)
    assert data.batch_size == 2
    assert steps == [1] * 4 + [2] * 4  # two steps of two batches


@pytest.mark.slow
def test_the_number_found_is_in_what_the_run_leaves_and_is_not_searched_again(
    run_tiny, compose_config, cache_dir, full_above
):
    seen, quick = full_above(3), (AUTO, TWELVE, "panels=0", "logger=none", "callbacks.images=null")
    folder = run_tiny(*quick)
    assert seen == [1, 1, 2, 2, 4] + [2] * 6  # an epoch of 12 photos
    assert json.loads((folder / "metrics.json").read_text())["batch_size"] == 2
    assert load_checkpoint(folder / "checkpoints/last.ckpt").config["data"]["batch_size"] == 2
    (folder / "metrics.json").unlink()  # a sweep that is run again composes its jobs again, and resumes this one
    typed = [*quick, "trainer.max_epochs=2"]
    run_job(compose_config([*TINY, f"data.cache_dir={cache_dir}", *typed], folder), folder, typed, sweep=folder.parent)
    assert seen[11:] == [2] * 6


@pytest.mark.slow
def test_a_batch_that_never_fits_is_said_with_the_figures(compose_config, cache_dir, tmp_path, full_above):
    config, data, task = parts(compose_config, tmp_path, cache_dir)
    full_above(0)
    with pytest.raises(TrainingError, match=r"data.batch_size=1 crops of 64x64 .* Fix: .*a smaller data.crop"):
        find_batch_size(config, data, task)


def rank_job(config, run_dir, rank, port, most):
    """What each of two processes does that another program has started; its memory is its own."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank  # as when torch starts after the variables were set
    preflight.FILLED_WITHOUT_HARM = ("cpu",)
    fill_above(most)
    forked.job(config, run_dir)


@pytest.mark.slow
def test_processes_take_the_least_that_one_of_them_has_found(compose_config, cache_dir, tmp_path):
    ddp = ("trainer=ddp", "trainer.devices=2", "trainer.sync_batchnorm=false", "panels=0", "logger=none")
    typed = [*ddp, *TINY, f"data.cache_dir={cache_dir}", TWELVE, AUTO, "callbacks.images=null"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    config, said = compose_config(typed, tmp_path), [tmp_path / "0.txt", tmp_path / "1.txt"]
    ranks = [
        forked.start(rank_job, config, tmp_path, rank, port, most, output=said[rank])
        for rank, most in enumerate((99, 3))
    ]
    try:
        assert [forked.finish(process) for process in ranks] == [0, 0], said[0].read_text() + said[1].read_text()
    finally:
        for process in ranks:
            process.kill()
    assert "2 crops of 64x64; 4 do not fit" in said[0].read_text()
    assert json.loads((tmp_path / "metrics.json").read_text())["batch_size"] == 2
