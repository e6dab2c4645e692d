"""The share of a machine that one job of a sweep takes."""

import multiprocessing
import subprocess
import sys
import threading
import warnings

import pytest
from hydra import compose, initialize_config_dir

from cityseg.machine import claim_gpu, restore_start_method, shares_gpus, threads_of_a_job
from tests.conftest import ROOT


def launcher(name, *overrides):
    """The node of conf/hydra/launcher, whether or not the plugin is installed."""
    typed = [f"hydra/launcher={name}", *overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), warnings.catch_warnings():
        # Hydra merges a file into the plugin's own config of the same name, and calls that deprecated.
        warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against")
        return compose("train", typed, return_hydra_config=True).hydra.launcher


@pytest.mark.parametrize(
    ("name", "overrides", "threads"),
    [
        ("basic", (), None),
        ("joblib", ("hydra.launcher.n_jobs=2",), 4),
        ("joblib", ("hydra.launcher.n_jobs=3",), 2),
        ("joblib", ("hydra.launcher.n_jobs=100",), 1),
        ("joblib", ("hydra.launcher.n_jobs=-1",), 1),
        ("joblib", ("hydra.launcher.n_jobs=-7",), 4),
        ("joblib", ("hydra.launcher.n_jobs=-100",), 8),
        ("submitit_local", ("hydra.launcher.cpus_per_task=2",), 2),
        ("submitit_slurm", ("hydra.launcher.cpus_per_task=4",), 4),
        ("submitit_slurm", ("hydra.launcher.cpus_per_task=100",), 8),
        ("submitit_slurm", ("hydra.launcher.cpus_per_task=null", "hydra.launcher.cpus_per_gpu=4"), None),
        ("ray", ("hydra.launcher.ray.remote.num_cpus=3",), 3),
        ("ray", ("hydra.launcher.ray.remote.num_cpus=0.5",), 1),
        ("ray", ("~hydra.launcher.ray.remote.num_cpus",), 1),
    ],
)
def test_a_job_takes_its_share_of_eight_cores(name, overrides, threads):
    assert threads_of_a_job(launcher(name, *overrides), cores=8) == threads


@pytest.mark.parametrize(
    ("name", "overrides", "shared"),
    [
        ("basic", (), False),
        ("joblib", (), True),
        ("submitit_local", (), True),
        ("submitit_slurm", (), False),
        ("ray", (), True),
        ("ray", ("hydra.launcher.ray.remote.num_gpus=1",), False),
    ],
)
def test_engines_that_show_every_job_the_same_gpus(name, overrides, shared):
    assert shares_gpus(launcher(name, *overrides)) is shared


def test_jobs_at_once_hold_different_gpus(tmp_path):
    with claim_gpu(tmp_path, 2) as one, claim_gpu(tmp_path, 2) as two:
        assert {one, two} == {0, 1}


def test_a_job_waits_until_a_gpu_is_free(tmp_path):
    claimed = threading.Event()

    def claim():
        with claim_gpu(tmp_path, 1, pause=0.001):
            claimed.set()

    waiting = threading.Thread(target=claim)
    with claim_gpu(tmp_path, 1):
        waiting.start()
        assert not claimed.wait(0.05)
    assert claimed.wait(10)
    waiting.join()


def test_the_gpu_of_a_process_that_died_is_free(tmp_path):
    code = (
        "import sys; from pathlib import Path; from cityseg.machine import claim_gpu\n"
        "with claim_gpu(Path(sys.argv[1]), 1): print('claimed', flush=True); sys.stdin.read()"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with job:
        assert job.stdout.readline() == "claimed\n"
        with claim_gpu(tmp_path, 2) as other:
            assert other == 1
        job.kill()
    with claim_gpu(tmp_path, 1) as again:
        assert again == 0


def test_without_gpus_there_is_none_to_claim(tmp_path):
    with pytest.raises(ValueError, match="count=0"), claim_gpu(tmp_path, 0):
        pass


def test_a_worker_of_joblib_starts_processes_as_others_do():
    loky = pytest.importorskip("joblib.externals.loky.backend.context")
    assert loky  # registers the start method
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        multiprocessing.set_start_method("loky", force=True)
        restore_start_method()
        assert multiprocessing.get_start_method() in multiprocessing.get_all_start_methods()
        assert multiprocessing.get_start_method() != "loky"
        multiprocessing.set_start_method("spawn", force=True)
        restore_start_method()
        assert multiprocessing.get_start_method() == "spawn"
    finally:
        multiprocessing.set_start_method(before, force=True)
