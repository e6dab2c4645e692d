"""A loss that is not a number stops the run with all that is needed to find out why, or is left out."""

import pytest
import torch

from cityseg.errors import TrainingError
from cityseg.tasks.segmentation import SegmentationTask
from tests.test_resume import equal


def nan_at(patch, *batches):
    step = SegmentationTask.supervised

    def spoilt(self, batch):
        logits, loss = step(self, batch)
        index = self.trainer.fit_loop.epoch_loop.batch_idx
        return logits, loss * float("nan") if (self.current_epoch, index) in batches else loss

    patch.setattr(SegmentationTask, "supervised", spoilt)


def test_a_nan_loss_stops_with_step_files_and_the_last_good_checkpoint(run_tiny, monkeypatch, tmp_path):
    nan_at(monkeypatch, (1, 1))
    with pytest.raises(TrainingError, match=r"batch 1 of epoch 2 \(step 5\): .*leftImg8bit.png, .*Fix: ") as error:
        run_tiny("trainer.max_epochs=2")
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert str(last) in str(error.value)
    weights = torch.load(last, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("trainer.accumulate_grad_batches=2",)])
def test_a_batch_that_is_left_out_changes_no_weight(run_tiny, monkeypatch, extra):
    nan_at(monkeypatch, (0, 0), (0, 1), (0, 2))
    folder = run_tiny("callbacks.finite.skip=3", *extra)
    seen = []
    monkeypatch.setattr(
        SegmentationTask,
        "on_train_start",
        lambda self: seen.append({k: v.clone() for k, v in self.state_dict().items()}),
    )
    run_tiny("callbacks.finite.skip=3", *extra, folder="again")
    after = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    equal(after, seen[0])


@pytest.mark.slow
def test_more_bad_batches_than_allowed_stop_the_run(run_tiny, monkeypatch):
    nan_at(monkeypatch, (0, 0), (0, 1))
    with pytest.raises(TrainingError, match="after 1 batches were left out, batch 1 of epoch 1"):
        run_tiny("callbacks.finite.skip=1")
