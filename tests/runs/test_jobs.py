"""A job leaves a note when it fails, and nothing of itself in its process."""

import json
import os
import warnings
import weakref

import pytest
import torch

from cityseg.errors import ConfigError
from cityseg.runs.jobs import run_job
from tests.conftest import TINY


def test_a_failure_is_noted_in_the_run_folder_and_forgotten_by_the_next_start(run_tiny, tmp_path):
    with pytest.raises(ConfigError):
        run_tiny("monitor=val/nonsense")
    noted = json.loads((tmp_path / "run" / "failed.json").read_text())
    assert "val/nonsense" in noted["error"]
    run_tiny()
    assert not (tmp_path / "run" / "failed.json").exists()


def test_a_bug_is_noted_with_its_type(run_tiny, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("cityseg.runs.jobs.train", broken)
    with pytest.raises(ZeroDivisionError):
        run_tiny()
    assert json.loads((tmp_path / "run" / "failed.json").read_text()) == {"error": "ZeroDivisionError: by nothing"}


def test_figures_of_an_earlier_run_do_not_outlive_the_start_of_another(run_tiny, monkeypatch):
    folder = run_tiny()

    def stopped(*_, **__):
        raise RuntimeError

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", stopped)
    with pytest.raises(RuntimeError):
        run_tiny()
    assert not (folder / "metrics.json").exists()


@pytest.mark.slow
def test_a_job_leaves_its_process_as_it_was(run_tiny):
    run_tiny(folder="warm")  # what is imported or opened once stays
    torch.manual_seed(5)
    state, environment, filters = torch.get_rng_state(), dict(os.environ), list(warnings.filters)
    files, benchmark = len(os.listdir("/proc/self/fd")), torch.backends.cudnn.benchmark
    run_tiny("trainer.deterministic=true", f"+trainer.benchmark={not benchmark}", "data.workers=1", folder="second")
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark == benchmark
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(os.environ) == environment
    assert warnings.filters == filters
    assert len(os.listdir("/proc/self/fd")) <= files


def test_a_failed_job_of_a_sweep_does_not_keep_its_network(compose_config, cache_dir, tmp_path, monkeypatch):
    networks = []

    def out_of_memory(trainer, task, **_):
        networks.append(weakref.ref(task.network))
        raise RuntimeError("out of memory")

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", out_of_memory)
    typed = [*TINY, f"data.cache_dir={cache_dir}"]
    with pytest.raises(RuntimeError) as kept:
        run_job(compose_config(typed, tmp_path / "job"), tmp_path / "job", typed, sweep=tmp_path)
    assert str(kept.value) == "out of memory"
    assert networks[0]() is None


def test_a_job_of_a_sweep_that_has_finished_is_kept(compose_config, cache_dir, tmp_path):
    sweep = tmp_path / "sweep"

    def job():
        typed = [*TINY, f"data.cache_dir={cache_dir}"]
        return run_job(compose_config(typed, sweep / "one"), sweep / "one", typed, sweep=sweep)

    objective = job()
    written = (sweep / "one" / "metrics.json").stat().st_mtime_ns
    assert job() == objective
    assert (sweep / "one" / "metrics.json").stat().st_mtime_ns == written
    (sweep / "one" / "metrics.json").unlink()
    assert job() == objective  # scored again from its last checkpoint
