import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from cityseg.calibration import BINS, Calibration


def test_torchmetrics_gives_the_same_error_over_several_batches_with_void():
    judge = MulticlassCalibrationError(5, n_bins=BINS, norm="l1", ignore_index=255)
    ours = Calibration()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(2, 5, 17, 23, generator=generator) * 3
        target = torch.randint(0, 5, (2, 17, 23), generator=generator)
        target[:, :4] = logits.argmax(1)[:, :4]
        target[torch.rand(target.shape, generator=generator) < 0.1] = 255
        judge.update(logits, target)
        ours.update(logits, logits.argmax(1), target.to(torch.uint8))
    assert ours.scores()["ece"] == pytest.approx(float(judge.compute()), abs=1e-6)


def test_the_table_of_a_case_by_hand():
    # Two classes. Confidences 0.9, 0.9, 0.62 and 0.9 on void; the first and the third are right.
    probabilities = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.62, 0.38], [0.9, 0.1]])
    logits = probabilities.log().T.reshape(1, 2, 1, 4)
    calibration = Calibration()
    calibration.update(logits, logits.argmax(1), torch.tensor([[[0, 0, 0, 255]]], dtype=torch.uint8))
    scores = calibration.scores()
    assert scores["ece"] == pytest.approx((abs(1.8 - 1) + abs(0.62 - 1)) / 3)
    filled = {(round(row["above"], 3), round(row["to"], 3)): row for row in scores["reliability"] if row["pixels"]}
    assert list(filled) == [(0.6, 0.667), (0.867, 0.933)]
    last = filled[0.867, 0.933]
    assert (last["pixels"], last["accuracy"]) == (2, 0.5)
    assert last["confidence"] == pytest.approx(0.9)


def test_a_split_of_void_has_no_error():
    calibration = Calibration()
    logits = torch.zeros(1, 2, 3, 3)
    calibration.update(logits, logits.argmax(1), torch.full((1, 3, 3), 255))
    scores = calibration.scores()
    assert scores["ece"] is None
    assert len(scores["reliability"]) == BINS
    assert all(row["confidence"] is None for row in scores["reliability"])
