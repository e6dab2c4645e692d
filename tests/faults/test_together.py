"""Processes that want the same folder at the same moment: one has it, and the others are refused or wait."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityseg.checkpoints import load_checkpoint, resumable_checkpoint
from tests.conftest import TINY
from tests.data.layouts import OPTIONS, write_gtfine
from tests.faults.forked import FAILED, FORKED, KILLED, finish, job, start

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path, cache_dir, compose_config):
    """Start runs in one folder, all at once; what each says goes to a file of its own."""

    def started(*several):
        typed = (*TINY, f"data.cache_dir={cache_dir}")
        configs = [compose_config((*typed, *overrides), tmp_path / "run") for overrides in several]
        outputs = [tmp_path / f"output{index}.txt" for index in range(len(several))]
        pairs = zip(configs, several, outputs, strict=True)
        return [start(job, one, tmp_path / "run", typed, output=output) for one, typed, output in pairs], outputs

    return started


def test_of_runs_in_one_folder_one_has_it_and_the_others_are_refused_by_name(runs, tmp_path):
    processes, outputs = runs((), (), ())
    codes = [finish(process) for process in processes]
    assert sorted(codes) == [0, FAILED, FAILED]
    owner = processes[codes.index(0)]
    for code, output in zip(codes, outputs, strict=True):
        if code:
            assert f"{tmp_path / 'run'} is in use by process {owner.pid} on " in output.read_text()
    assert json.loads((tmp_path / "run/metrics.json").read_text())["epochs"] == 1
    assert not (tmp_path / "run/failed.json").exists()


def test_a_run_is_not_resumed_while_it_goes_on_and_a_killed_one_leaves_its_folder_free(runs, tmp_path):
    (first,), _ = runs(("trainer.max_epochs=1000", "data.workers=2"))
    last = tmp_path / "run/checkpoints/last.ckpt"
    deadline = time.monotonic() + 60
    while not last.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (second,), (output,) = runs((f"resume={tmp_path / 'run'}",))
    assert finish(second) == FAILED
    assert f"in use by process {first.pid} on " in output.read_text()
    loaders = children(first.pid)
    assert len(loaders) >= 2
    first.kill()
    assert finish(first) == KILLED
    more = load_checkpoint(resumable_checkpoint(last.parent)).epochs + 1
    (third,), (output,) = runs((f"resume={tmp_path / 'run'}", f"trainer.max_epochs={more}"))  # loaders have no say
    assert finish(third) == 0, output.read_text()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in loaders):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children(pid):
    """Processes that another one has started, as Linux tells them."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def build(root, cache_dir, barrier, log):
    """Cache a data set that others cache too, and note each file that is read and what comes of it."""
    from cityseg.data import gtfine, samples

    data = gtfine.GtFineDataModule(str(root), cache="disk", cache_dir=str(cache_dir), **OPTIONS)
    data.index(["train", "val"])
    read = samples.read_photo

    def noted(path):
        with log.open("a") as file:
            file.write(f"{path.name}\n")
        time.sleep(0.05)
        return read(path)

    samples.read_photo = noted
    barrier.wait()
    data.setup("fit")
    sums = [int(data._pairs("train", data._train_view)[index].photo.sum()) for index in range(4)]
    print(json.dumps(sums), flush=True)


def test_a_cache_that_several_processes_want_at_once_is_built_once(tmp_path):
    root, log, barrier = write_gtfine(tmp_path / "data"), tmp_path / "read.txt", FORKED.Barrier(4)
    outputs = [tmp_path / f"output{index}.txt" for index in range(4)]
    processes = [start(build, root, tmp_path / "cache", barrier, log, output=output) for output in outputs]
    assert [finish(process) for process in processes] == [0] * 4
    names = sorted(log.read_text().split())
    assert names == sorted(path.name for path in root.rglob("*_leftImg8bit.png"))
    photos = sorted((root / "leftImg8bit/train").rglob("*.png"))
    sums = sorted(int(np.asarray(Image.open(path)).sum()) for path in photos)
    assert all(sorted(json.loads(output.read_text().splitlines()[-1])) == sums for output in outputs)
