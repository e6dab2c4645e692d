"""Numbers that go wrong: NaN, gradients that overflow, memory that runs out, batches without a label."""

import re

import numpy as np
import pytest
import torch

from cityseg.data.loading import TrainDataset
from cityseg.errors import TrainingError
from cityseg.tasks.adversarial import AdversarialTask
from cityseg.tasks.base import Task
from cityseg.tasks.segmentation import SegmentationTask
from tests.callbacks.test_finite import nan_at
from tests.conftest import ROOT, TINY
from tests.runs.test_training import losses
from tests.test_resume import GAN, GAN_BASE, equal

pytestmark = pytest.mark.slow  # small runs

GAN = (*GAN, "model.discriminator.base_channels=4", "+model.generator.decoder_channels=[32, 16, 16, 8, 8]")
LOSSES = sorted(path.stem for path in (ROOT / "conf/loss").glob("*.yaml"))


def weights(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def nan_logits_at(patch, *batches):
    """Let the network itself give NaN, as both losses of an adversarial model then see."""
    forward = Task.forward

    def spoilt(self, photo):
        logits = forward(self, photo)
        index = self.trainer.fit_loop.epoch_loop.batch_idx
        return logits * float("nan") if self.training and (self.current_epoch, index) in batches else logits

    patch.setattr(Task, "forward", spoilt)


@pytest.mark.parametrize("plant", [nan_at, nan_logits_at])
def test_nan_stops_an_adversarial_run_and_names_the_step_and_its_files(run_tiny, monkeypatch, tmp_path, plant):
    plant(monkeypatch, (1, 0))
    with pytest.raises(TrainingError, match=r"batch 0 of epoch 2 \(step \d\): .*leftImg8bit.png, .*Fix: look") as error:
        run_tiny("trainer.max_epochs=2", *GAN, base=GAN_BASE)
    assert str(tmp_path / "run/checkpoints/last.ckpt") in str(error.value)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_all_files_of_accumulated_batches_are_named(run_tiny, monkeypatch):
    nan_at(monkeypatch, (0, 1))
    with pytest.raises(TrainingError) as error:
        run_tiny("trainer.accumulate_grad_batches=2", *GAN, base=GAN_BASE)
    assert len(re.findall("leftImg8bit.png", str(error.value))) == 4


def test_left_out_batches_change_no_weight_of_generator_and_discriminator(run_tiny, monkeypatch):
    nan_logits_at(monkeypatch, (0, 0), (0, 1), (0, 2))
    started = []
    monkeypatch.setattr(
        AdversarialTask,
        "on_fit_start",
        lambda self: started.append({k: v.clone() for k, v in self.state_dict().items()}),
    )
    folder = run_tiny("callbacks.finite.skip=3", *GAN, base=GAN_BASE)
    equal(started[0], weights(folder))
    with pytest.raises(TrainingError, match="after 2 batches were left out, batch 2 of epoch 1"):
        run_tiny("callbacks.finite.skip=2", *GAN, base=GAN_BASE, folder="fewer")


def test_what_is_left_out_and_what_is_still_allowed_is_the_same_after_a_resume(run_tiny, monkeypatch, tmp_path):
    nan_at(monkeypatch, (0, 1), (1, 0), (1, 1))
    with pytest.raises(TrainingError, match="after 2 batches were left out, batch 1 of epoch 2"):
        run_tiny("callbacks.finite.skip=2", "trainer.max_epochs=2")
    with pytest.raises(TrainingError, match="after 2 batches were left out, batch 1 of epoch 2"):
        run_tiny(f"resume={tmp_path / 'run'}")


def test_weights_that_a_gradient_has_spoilt_reach_no_checkpoint(run_tiny, monkeypatch, tmp_path):
    def spoil(self, optimizer):
        if (
            self.current_epoch == 1 and self.trainer.fit_loop.epoch_loop.batch_idx == 2
        ):  # whose loss is the epoch's last
            next(self.parameters()).grad.fill_(float("nan"))

    monkeypatch.setattr(SegmentationTask, "on_before_optimizer_step", spoil)
    with pytest.raises(TrainingError, match=r"weights are NaN or infinite at step 6, .*last.ckpt. Fix: a lower"):
        run_tiny("trainer.max_epochs=3")
    for path in (tmp_path / "run/checkpoints").iterdir():
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values()), path


OUT_OF_MEMORY = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
}


WHERE = [
    ("GPU", SegmentationTask, "supervised", (), TINY),
    ("CPU", AdversarialTask, "_discriminator_step", GAN, GAN_BASE),
    ("GPU", SegmentationTask, "test_step", (), TINY),
]


@pytest.mark.parametrize(("device", "task", "step", "keys", "base"), WHERE)
def test_out_of_memory_says_what_to_reduce_with_the_figures(run_tiny, monkeypatch, device, task, step, keys, base):
    def exhausted(*_):
        raise OUT_OF_MEMORY[device]

    monkeypatch.setattr(task, step, exhausted)
    message = r"out of memory with data.batch_size=2 crops of 64x64 in 32-true \(.*allocate.*Fix: a smaller data.batch"
    with pytest.raises(TrainingError, match=message):
        run_tiny(*keys, base=base)


def void_batches(patch, first, last):
    """Take the labels away from the samples that are drawn in some batches of two."""
    read, drawn = TrainDataset.__getitem__, []

    def reading(self, key):
        sample = read(self, key)
        if first <= len(drawn) // 2 < last:
            sample = sample._replace(target=np.full_like(sample.target, 255))
        drawn.append(key)
        return sample

    patch.setattr(TrainDataset, "__getitem__", reading)


def steps(patch, task):
    """The weights of a task before training and after each batch."""
    seen = []

    def note(self, *_):
        seen.append({name: weight.detach().clone() for name, weight in self.named_parameters()})

    patch.setattr(task, "on_fit_start", note)
    patch.setattr(task, "on_train_batch_end", note)
    return seen


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_of_void_alone_teaches_a_plain_task_nothing(run_tiny, monkeypatch, loss):
    void_batches(monkeypatch, 0, 2)
    seen = steps(monkeypatch, SegmentationTask)
    plain = ("logger=none", "panels=0", "optimizer.weight_decay=0")
    (row,) = losses(run_tiny(f"loss={loss}", *plain))
    assert float(row["train/void_batches"]) == 2
    assert float(row["train/loss"]) > 0
    equal(seen[0], seen[2])  # the gradients are exactly 0
    assert any(not torch.equal(seen[2][name], seen[3][name]) for name in seen[2])  # the third batch teaches
    assert all(weight.isfinite().all() for weight in seen[3].values())


def test_a_batch_of_void_alone_teaches_neither_part_of_an_adversarial_task(run_tiny, monkeypatch):
    void_batches(monkeypatch, 0, 2)
    seen = steps(monkeypatch, AdversarialTask)
    still = ("optimizer.weight_decay=0", "task.discriminator_optimizer.weight_decay=0", "task.warmup_epochs=0")
    (row,) = losses(run_tiny("task.r1_weight=1", *still, *GAN, base=GAN_BASE))
    assert float(row["train/void_batches"]) == 2
    equal(seen[0], seen[2])
    for part in ("network.", "discriminator."):
        assert any(not torch.equal(seen[2][name], seen[3][name]) for name in seen[2] if name.startswith(part))
    assert all(weight.isfinite().all() for weight in seen[3].values())
