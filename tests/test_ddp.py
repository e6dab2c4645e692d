"""Several processes train as one, and leave what one leaves; on the processor, with gloo."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch

from tests.data.layouts import write_gtfine
from tests.test_commands import ROOT

# No batch normalisation, whose statistics are of each process's own crops where they are not synchronised, which only
# GPUs can; and whole photos with as many void pixels in each, since each process takes the mean of its own loss.
PLAIN = ("model.encoder=tu-test_convnext", "+model.decoder_channels=[16, 8, 8, 8, 8]", "+model.decoder_use_norm=false",
         "model.pretrained=false", "data.crop=64", "data.workers=0", "augment=none",
         "trainer.precision=32-true", "panels=1", "logger=none")  # fmt: skip
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.sync_batchnorm=false")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")


def train(folder, *arguments, launcher=(), code=0):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, *launcher, ROOT / "train.py", *PLAIN, *arguments]
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def history(run):
    return list(csv.DictReader((run / "history.csv").open()))


def files(run):
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path):
    root = write_gtfine(tmp_path / "data", (("train", 4), ("val", 3)), size=(64, 64))
    # An epoch is one step, so that its loss is the step's.
    common = (f"data.root={root}", "trainer.max_epochs=4", "optimizer.lr=0.01")
    output = train(tmp_path / "one", *common, "data.batch_size=4", "trainer.accelerator=cpu")
    train(tmp_path / "torchrun", *common, *TWO, "data.batch_size=2", launcher=TORCHRUN)
    train(tmp_path / "lightning", *common, *TWO, "data.batch_size=2")
    (one,) = (tmp_path / "one/outputs/unet-gtfine").iterdir()
    expected = json.loads((one / "metrics.json").read_text())
    losses = [float(row["train/loss"]) for row in history(one)]
    assert losses[-1] < 0.9 * losses[0], output  # it learns
    for launcher in ("torchrun", "lightning"):
        (run,) = (tmp_path / launcher / "outputs/unet-gtfine").iterdir()  # of the first process alone
        assert files(run) == files(one)
        rows = history(run)
        assert [float(row["train/loss"]) for row in rows] == pytest.approx(losses, abs=1e-5)
        assert [float(row["val/loss"]) for row in rows] == pytest.approx(
            [float(row["val/loss"]) for row in history(one)], abs=1e-5
        )
        for name in ("val/miou", "val/mpa", "val/pixel_accuracy", "val/dice"):
            assert [row[name] for row in rows] == [row[name] for row in history(one)], name
        found = json.loads((run / "metrics.json").read_text())
        assert found["confusion_matrix"] == expected["confusion_matrix"]
        assert found["images"] == 3


class FailingSecond(pl.Callback):
    """Ends the second process in the middle of an epoch, while the first waits for its gradients."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == 1:
            raise RuntimeError("the second process fails")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ()], ids=["torchrun", "lightning"])
def test_an_error_in_one_process_ends_all(tmp_path, launcher):
    root = write_gtfine(tmp_path / "data", (("train", 4), ("val", 2)), size=(64, 64))
    failing = "+callbacks.failing._target_=tests.test_ddp.FailingSecond"
    output = train(tmp_path / "run", f"data.root={root}", *TWO, "data.batch_size=2", failing, launcher=launcher, code=1)
    assert "the second process fails" in output
    (run,) = (tmp_path / "run/outputs/unet-gtfine").iterdir()
    assert not (run / "metrics.json").exists()


class StoppedFirst(pl.Callback):
    """Sends a signal to the first process in the middle of the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.global_rank, trainer.current_epoch, batch_idx) == (0, 1, 0):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ()], ids=["torchrun", "lightning"])
def test_a_signal_to_one_process_stops_all_at_the_same_batch(tmp_path, launcher):
    root = write_gtfine(tmp_path / "data", (("train", 8), ("val", 3)), size=(64, 64))
    common = (f"data.root={root}", *TWO, "data.batch_size=2", "trainer.max_epochs=2")
    train(tmp_path, *common, f"hydra.run.dir={tmp_path}/whole", launcher=launcher)
    stopping = "+callbacks.stopping._target_=tests.test_ddp.StoppedFirst"
    output = train(tmp_path, *common, stopping, f"hydra.run.dir={tmp_path}/run", launcher=launcher, code=75)
    assert "SIGTERM: stopping after this batch" in output
    assert not (tmp_path / "run/metrics.json").exists()
    resume = (f"resume={tmp_path}/run", "trusted=[tests]")  # its batch does not come again
    command = [sys.executable, *launcher, ROOT / "train.py", *resume]
    subprocess.run(list(map(str, command)), check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    weights = [
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "run")
    ]
    assert all(torch.equal(one, weights[1][key]) for key, one in weights[0].items())
    seconds = {"seconds", "images_per_second"}
    one, two = (
        [{k: v for k, v in row.items() if k not in seconds} for row in history(tmp_path / run)]
        for run in ("whole", "run")
    )
    assert one == two


@pytest.mark.slow
def test_fewer_images_than_processes_are_refused(tmp_path):
    root = write_gtfine(tmp_path / "data", (("train", 4), ("val", 1)), size=(64, 64))
    output = train(tmp_path / "run", f"data.root={root}", *TWO, "data.batch_size=2", launcher=TORCHRUN, code=1)
    assert "val: found 1 photos, expected at least one for each of 2 processes" in output


@pytest.mark.slow
def test_shared_out_weights_train_as_whole_ones_and_are_saved_whole(tmp_path):
    root = write_gtfine(tmp_path / "data", (("train", 4), ("val", 3)), size=(64, 64))
    common = (f"data.root={root}", "optimizer.lr=0.0003", "trainer.accelerator=cpu", "model.encoder=tu-convnext_atto",
              "scheduler=none")  # fmt: skip
    fsdp = ("trainer=fsdp", "trainer.devices=2", "data.batch_size=2")
    one, two = tmp_path / "one", tmp_path / "two"
    train(tmp_path, *common, "data.batch_size=4", "trainer.max_epochs=3", f"hydra.run.dir={one}")
    train(tmp_path, *common, *fsdp, "trainer.max_epochs=2", f"hydra.run.dir={two}", launcher=TORCHRUN)
    resume = (f"resume={two}", "trainer.max_epochs=3")
    command = [sys.executable, *TORCHRUN, ROOT / "train.py", *resume]
    subprocess.run(list(map(str, command)), check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for name in ("train/loss", "val/loss"):
        expected = [float(row[name]) for row in history(one)]
        assert [float(row[name]) for row in history(two)] == pytest.approx(expected, rel=1e-4), name
    assert set(torch.load(two / "checkpoints/best.ckpt", weights_only=True)["state_dict"]) == set(
        torch.load(one / "checkpoints/best.ckpt", weights_only=True)["state_dict"])  # fmt: skip
