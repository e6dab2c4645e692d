"""Loader processes that die or hang stop a run within its timeout, with a message, and the run goes on later."""

import os
import signal
import time
from multiprocessing import resource_sharer

import pytest
from torch.utils.data import get_worker_info

from cityseg.data.loading import TrainDataset, WholeDataset
from cityseg.errors import TrainingError
from cityseg.runs.evaluation import evaluate
from cityseg.runs.output import explained
from tests.faults.test_disk import result
from tests.test_resume import equal

RUN = ("trainer.max_epochs=2", "augment=strong", "data.workers=2")
HARMS = {
    "killed": (
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        600,
        r"a loader process( \(\d+.*\))? died.*fewer data.workers",
    ),
    "hanging": (lambda: time.sleep(1000), 3, r"no batch came in data.timeout=3 seconds.*a larger data.timeout"),
}
whole = {}


def harmed(patch, dataset, harm, chosen):
    """Let a loader process be harmed when it is asked for certain samples."""
    read = dataset.__getitem__

    def reading(self, key):
        if get_worker_info() is not None and chosen(key):
            harm()
        return read(self, key)

    patch.setattr(dataset, "__getitem__", reading)


def test_a_process_that_dies_while_its_batch_is_fetched_has_died_too(compose_config, tmp_path):
    with pytest.raises(TrainingError, match="a loader process died"), explained(compose_config(), None):
        resource_sharer._resource_sharer.get_connection((str(tmp_path / "gone"), 0))
    told = RuntimeError('Caught EOFError in pin memory thread. File "/python/multiprocessing/resource_sharer.py"')
    with pytest.raises(TrainingError, match="a loader process died"), explained(compose_config(), None):
        raise told
    with pytest.raises(FileNotFoundError), explained(compose_config(), None):
        (tmp_path / "gone").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMS)
def test_a_run_whose_loader_process_is_lost_says_so_and_goes_on(run_tiny, monkeypatch, tmp_path, name):
    harm, timeout, message = HARMS[name]
    if not whole:
        whole["plain"] = result(run_tiny(*RUN, folder="whole"))
    with monkeypatch.context() as patch:
        harmed(patch, TrainDataset, harm, lambda key: key.epoch == 1 and key.sample == 3)
        started = time.monotonic()
        with pytest.raises(TrainingError, match=rf"{message}.*The run can be resumed"):
            run_tiny(*RUN, f"data.timeout={timeout}", folder="stopped")
        assert time.monotonic() - started < 120
    run_tiny(f"resume={tmp_path / 'stopped'}", folder="stopped")
    equal(whole["plain"], result(tmp_path / "stopped"))


@pytest.mark.slow
def test_the_final_scores_and_an_evaluation_say_so_too(run_tiny, monkeypatch, tmp_path, compose_config, cache_dir):
    harm, _, message = HARMS["killed"]
    killed = tmp_path / "killed"
    harmed(monkeypatch, WholeDataset, lambda: (killed.touch(), harm()), lambda index: index == 2)
    with pytest.raises(TrainingError, match=message):
        # Without validation only the final scores read whole photos: in a second pass, after that of the training.
        run_tiny("data.workers=1", "data.timeout=60", "fold=final")
    assert time.time() - killed.stat().st_mtime < 40  # at once, not found dead after the timeout
    ckpt = tmp_path / "run/checkpoints/last.ckpt"
    asked = [f"ckpt={ckpt}", "data.workers=1", f"data.cache_dir={cache_dir}", "trainer.accelerator=cpu"]
    with pytest.raises(TrainingError, match=message):
        evaluate(compose_config(asked, tmp_path, "evaluate"), tmp_path)
