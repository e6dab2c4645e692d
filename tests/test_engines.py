"""The folds of a sweep give the same figures whatever starts them: jobs in turn, on this machine or on a cluster.

Each job has one thread: with more or fewer, sums are rounded in another order.
"""

import json

import pytest

from tests.conftest import ROOT, TINY
from tests.test_commands import command

pytestmark = pytest.mark.slow

ENGINES = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "ray": ("hydra_plugins.hydra_ray_launcher", ["hydra.launcher.ray.init.num_cpus=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", ["hydra.sweeper.max_batch_size=2"]),
}
SCENES = "data.scenes={train: 10, val: 2, size: 64}"


def sweep(launcher, overrides, folder, cache_dir):
    """Run five folds as typed in `folder`; returns the figures of each but for the time it took."""
    folder.mkdir()
    given = [f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep", *overrides]
    data = [SCENES, f"data.cache_dir={cache_dir}", "logger=none"]
    command(ROOT / "train.py", "-m", *TINY, *data, "fold=0,1,2,3,4", *given, cwd=folder, timeout=550)
    runs = sorted((folder / "sweep").glob("fold=*"))
    assert [run.name for run in runs] == [f"fold={fold}" for fold in range(5)]
    assert all("epoch 1/1" in (run / "train.log").read_text() for run in runs)
    figures = [json.loads((run / "metrics.json").read_text()) for run in runs]
    return [{key: value for key, value in each.items() if key != "seconds"} for each in figures]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory, cache_dir):
    return sweep("basic", [], tmp_path_factory.mktemp("basic") / "run", cache_dir)


@pytest.mark.parametrize("launcher", ENGINES)
def test_each_fold_has_the_figures_of_a_sweep_in_turn(launcher, in_turn, tmp_path, cache_dir):
    plugin, overrides = ENGINES[launcher]
    pytest.importorskip(plugin)
    # With a loader process, since each engine starts its jobs' own in another way.
    assert sweep(launcher, [*overrides, "data.workers=1"], tmp_path / "run", cache_dir) == in_turn
