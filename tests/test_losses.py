from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import hydra
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from cityseg import losses
from cityseg.data.statistics import class_weights_from_counts
from cityseg.errors import ConfigError
from cityseg.losses import (
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    LovaszLoss,
    OhemCrossEntropyLoss,
    SegmentationLoss,
    WeightedSum,
)

CONF = Path(__file__).parents[1] / "conf" / "loss"
CLASSES = 4
FocalDice = partial(
    WeightedSum, {"focal": FocalLoss, "dice": partial(DiceLoss, smooth=1.0)}, {"focal": 1.0, "dice": 1.1}
)
LOSSES = {
    "cross_entropy": CrossEntropyLoss,
    "smoothed": partial(CrossEntropyLoss, label_smoothing=0.1),
    "focal": FocalLoss,
    "focal_root": partial(FocalLoss, gamma=0.5),
    "dice": DiceLoss,
    "lovasz": LovaszLoss,
    "ohem": OhemCrossEntropyLoss,
    "focal_dice": FocalDice,
}
every_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES.keys())


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, CLASSES, 6, 5, generator=generator)
    target = torch.randint(0, CLASSES, (2, 6, 5), generator=generator)
    target[0, :2] = 255
    return logits, target


def softmax(logits):
    """Probabilities (P, C) and train ids (P,) of the valid pixels in float64 numpy."""
    flat = logits.double().movedim(1, -1).reshape(-1, logits.shape[1]).numpy()
    exp = np.exp(flat - flat.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def valid_pixels(logits, target):
    keep = target.flatten().numpy() != 255
    return softmax(logits)[keep], target.flatten().numpy()[keep]


# What every loss does


@every_loss
def test_void_alone_gives_zero_loss_and_zero_gradients(make):
    logits = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    loss = make(num_classes=CLASSES)(logits, torch.full((2, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@every_loss
def test_void_pixels_do_not_matter(make, batch):
    logits, target = batch
    changed = logits.clone()
    changed[0, :, :2] = 50 * torch.randn(CLASSES, 2, 5)
    loss = make(num_classes=CLASSES)
    assert loss(changed, target).item() == pytest.approx(loss(logits, target).item(), abs=1e-7)


@every_loss
def test_another_ignore_index_is_respected(make, batch):
    logits, target = batch
    expected = make(num_classes=CLASSES)(logits, target)
    other = make(num_classes=CLASSES, ignore_index=-1)(logits, target.masked_fill(target == 255, -1))
    assert other.item() == pytest.approx(expected.item(), abs=1e-7)


@every_loss
def test_byte_targets_give_the_same_loss(make, batch):
    logits, target = batch
    loss = make(num_classes=CLASSES)
    assert torch.equal(loss(logits, target.to(torch.uint8)), loss(logits, target))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_give_a_finite_float32_loss(make, dtype):
    # 70,000 pixels: a sum of probabilities in float16 overflows at 65,504
    logits = (20 * torch.randn(1, 2, 1, 70_000, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits.requires_grad_()
    target = torch.zeros(1, 1, 70_000, dtype=torch.uint8)
    target[..., ::7] = 1
    loss = make(num_classes=2)
    with torch.autocast("cpu", dtype=dtype):
        value = loss(logits, target)
    value.backward()
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert value.item() == pytest.approx(loss(logits.detach().float(), target).item(), rel=1e-6)
    assert torch.isfinite(logits.grad).all()


def test_autocast_is_off_inside_a_loss():
    class Product(SegmentationLoss):
        def compute(self, logits, target):
            return (logits.movedim(1, -1) @ self.class_weights).sum()  # autocast would round this to half

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Product(num_classes=2)(torch.full((1, 2, 1, 1), 1.001), torch.zeros(1, 1, 1).long())
    assert loss.item() == pytest.approx(2.002, rel=1e-6)


@every_loss
def test_certain_pixels_have_finite_gradients(make):
    logits = torch.full((1, CLASSES, 2, 2), -1e4)
    logits[:, 1] = 1e4
    logits.requires_grad_()
    loss = make(num_classes=CLASSES)(logits, torch.tensor([[[1, 1], [1, 2]]]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()


@every_loss
def test_loss_falls_under_gradient_steps(make, batch):
    logits, target = batch
    logits = logits.clone().requires_grad_()
    loss = make(num_classes=CLASSES)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    first = loss(logits, target).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    assert loss(logits, target).item() < 0.5 * first


@every_loss
def test_a_train_id_out_of_range_is_refused(make, batch):
    logits, target = batch
    target[1, 0, 0] = CLASSES
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        make(num_classes=CLASSES)(logits, target)


@every_loss
def test_class_weights_travel_in_the_state_dict(make, batch):
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    weighted, plain = make(num_classes=CLASSES, class_weights=weights), make(num_classes=CLASSES)
    assert plain(*batch).item() != pytest.approx(weighted(*batch).item(), abs=1e-4)
    plain.load_state_dict(weighted.state_dict())
    assert torch.equal(plain(*batch), weighted(*batch))


@every_loss
def test_a_batch_of_classes_without_weight_gives_zero(make):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = make(num_classes=3, class_weights=torch.tensor([0.0, 1.0, 1.0]))(logits, torch.zeros(1, 2, 2).long())
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_shapes_that_do_not_fit_are_named():
    loss = CrossEntropyLoss(num_classes=3)
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\).*\(1, 4, 4\).*\(B, 3, H, W\)"):
        loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\).*\(1, 2, 2\)"):
        loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2))


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_wrong_class_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="class_weights"):
        DiceLoss(num_classes=3, class_weights=torch.tensor(weights))


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (CrossEntropyLoss, {"label_smoothing": 1.5}),
        (FocalLoss, {"gamma": -1}),
        (DiceLoss, {"smooth": -1}),
        (DiceLoss, {"eps": 0}),
        (OhemCrossEntropyLoss, {"threshold": 2}),
        (OhemCrossEntropyLoss, {"min_kept": 1000}),
    ],
)
def test_an_option_out_of_range_is_named(make, option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        make(num_classes=3, **option)


# Cross-entropy


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 4.0]])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cross_entropy_is_that_of_torch(batch, label_smoothing, weights, layout, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 7)  # pixels at a time
    logits, target = batch[0].contiguous(memory_format=layout).requires_grad_(), batch[1]
    weight = None if weights is None else torch.tensor(weights)
    ours = CrossEntropyLoss(num_classes=CLASSES, class_weights=weight, label_smoothing=label_smoothing)
    expected = F.cross_entropy(logits, target, weight, ignore_index=255, label_smoothing=label_smoothing)
    found = ours(logits, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


# Focal


def test_focal_by_hand():
    # true-class probabilities 3/4 and 1/2, and a void pixel
    logits = torch.tensor([[[[math.log(3), 0.0, 9.0]], [[0.0, 0.0, 0.0]]]])
    target = torch.tensor([[[0, 1, 255]]])
    expected = (0.25**2 * -math.log(0.75) + 0.5**2 * -math.log(0.5)) / 2
    assert FocalLoss(num_classes=2)(logits, target).item() == pytest.approx(expected, rel=1e-6)
    weighted = (1 * 0.25**2 * -math.log(0.75) + 3 * 0.5**2 * -math.log(0.5)) / 4
    loss = FocalLoss(num_classes=2, class_weights=torch.tensor([1.0, 3.0]))
    assert loss(logits, target).item() == pytest.approx(weighted, rel=1e-6)


def test_focal_is_damped_pixel_by_pixel(batch):
    logits, target = batch
    p, ids = valid_pixels(logits, target)
    truth = p[np.arange(len(ids)), ids]
    expected = ((1 - truth) ** 3 * -np.log(truth)).mean()
    assert FocalLoss(num_classes=CLASSES, gamma=3.0)(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_focal_without_damping_is_cross_entropy(batch):
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    focal = FocalLoss(num_classes=CLASSES, gamma=0.0, class_weights=weights)(*batch)
    assert focal.item() == pytest.approx(
        CrossEntropyLoss(num_classes=CLASSES, class_weights=weights)(*batch).item(), rel=1e-6
    )


def test_focal_of_two_classes_is_that_of_smp():
    # smp takes sigmoids: logits +z/2 and -z/2 give both its terms the same value as the softmax
    z = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(1))
    target = (torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(2)) > 0.5).long()
    target[0, 0] = 255
    ours = FocalLoss(num_classes=2)(torch.stack([-z / 2, z / 2], dim=1), target)
    theirs = smp.losses.FocalLoss("binary", gamma=2.0, ignore_index=255)(z, target)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


# Dice


def test_dice_by_hand():
    logits = torch.tensor([[[[math.log(3), 0.0, 9.0]], [[0.0, 0.0, 0.0]]]])
    target = torch.tensor([[[0, 1, 255]]])
    # class 0: p = 3/4, 1/2 and one true pixel of p = 3/4; class 1: p = 1/4, 1/2 and one of p = 1/2
    losses = [1 - 2 * 0.75 / (1.25 + 1), 1 - 2 * 0.5 / (0.75 + 1)]
    assert DiceLoss(num_classes=2)(logits, target).item() == pytest.approx(sum(losses) / 2, rel=1e-6)
    weighted = DiceLoss(num_classes=2, class_weights=torch.tensor([1.0, 3.0]))(logits, target)
    assert weighted.item() == pytest.approx((losses[0] + 3 * losses[1]) / 4, rel=1e-6)
    smoothed = [1 - (2 * 0.75 + 1) / (1.25 + 1 + 1), 1 - (2 * 0.5 + 1) / (0.75 + 1 + 1)]
    assert DiceLoss(num_classes=2, smooth=1.0)(logits, target).item() == pytest.approx(sum(smoothed) / 2, rel=1e-6)


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_dice_is_that_of_smp_over_the_classes_present(batch, absent):
    logits, target = batch
    for gone in range(CLASSES - absent, CLASSES):
        target[target == gone] = 0
    # smp sums over the classes present but divides by all
    theirs = smp.losses.DiceLoss("multiclass", ignore_index=255)(logits, target) * CLASSES / (CLASSES - absent)
    assert DiceLoss(num_classes=CLASSES)(logits, target).item() == pytest.approx(theirs.item(), rel=1e-5)


# Lovász


def jaccard_extension(p, truth):
    """The Lovász extension of the Jaccard loss by its definition, on sets of pixels."""

    def jaccard_loss(wrong):
        true = {i for i in range(len(truth)) if truth[i]}
        return 1 - len(true - wrong) / len(true | wrong)

    errors = np.abs(truth - p)
    order = np.argsort(-errors, kind="stable")
    total, before = 0.0, 0.0
    for i in range(len(order)):
        now = jaccard_loss(set(order[: i + 1].tolist()))
        total += errors[order[i]] * (now - before)
        before = now
    return total


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0, 3.0]])
def test_lovasz_is_the_extension_of_the_jaccard_loss(batch, weights):
    logits, target = batch
    target[target == 2] = 0
    p, ids = valid_pixels(logits, target)
    losses = [jaccard_extension(p[:, c], (ids == c).astype(float)) for c in (0, 1, 3)]
    w = np.ones(CLASSES) if weights is None else np.array(weights)
    expected = np.average(losses, weights=w[[0, 1, 3]])
    loss = LovaszLoss(num_classes=CLASSES, class_weights=None if weights is None else torch.tensor(weights))
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_lovasz_of_certain_predictions_is_one_minus_iou():
    prediction = torch.tensor([[[0, 0, 0, 1, 1]]])
    target = torch.tensor([[[0, 0, 1, 1, 255]]])
    logits = 100 * F.one_hot(prediction, 3).movedim(-1, 1).float()
    assert LovaszLoss(num_classes=3)(logits, target).item() == pytest.approx(1 - (2 / 3 + 1 / 2) / 2, rel=1e-6)


def test_lovasz_is_that_of_smp(batch):
    theirs = smp.losses.LovaszLoss("multiclass", ignore_index=255)(*batch)
    assert LovaszLoss(num_classes=CLASSES)(*batch).item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("wrong", [CLASSES, -1])
def test_lovasz_names_train_ids_out_of_range(batch, wrong):
    logits, target = batch
    target[1, 0, 0] = wrong
    with pytest.raises(ValueError, match=rf"found train ids .*{wrong}.*expected 0 to 3 or 255"):
        LovaszLoss(num_classes=CLASSES)(logits, target)


# OHEM


@pytest.mark.parametrize(
    ("threshold", "min_kept", "kept"),
    [
        (0.7, 0.0, [0.5, 0.6]),  # below the threshold
        (0.7, 0.75, [0.5, 0.6, 0.8]),  # filled up to three of the four valid pixels
        (0.4, 0.25, [0.5]),  # none is hard: the hardest
        (0.4, 0.3, [0.5, 0.6]),  # a share is rounded up
        (0.7, 0.25, [0.5, 0.6]),  # the share is already reached
        (1.0, 0.0, [0.5, 0.6, 0.8, 0.9]),
    ],
)
def test_ohem_keeps_the_hard_pixels(threshold, min_kept, kept):
    p = torch.tensor([0.9, 0.6, 0.5, 0.8, 0.1])
    logits = torch.stack([p.log(), (1 - p).log()]).view(1, 2, 1, 5)
    target = torch.tensor([[[0, 0, 0, 0, 255]]])
    loss = OhemCrossEntropyLoss(num_classes=2, threshold=threshold, min_kept=min_kept)(logits, target)
    assert loss.item() == pytest.approx(-np.log(kept).mean(), rel=1e-5)


def test_ohem_weighs_the_kept_pixels_but_not_their_hardness():
    p = torch.tensor([0.9, 0.6])
    logits = torch.stack([p.log(), (1 - p).log()]).view(1, 2, 1, 2)
    logits = torch.cat([logits, logits.flip(1)], dim=3)  # true class 0 twice, then true class 1 twice
    target = torch.tensor([[[0, 0, 1, 1]]])
    loss = OhemCrossEntropyLoss(num_classes=2, min_kept=0.25, class_weights=torch.tensor([1.0, 100.0]))
    assert loss(logits, target).item() == pytest.approx(-math.log(0.6), rel=1e-5)
    logits[0, :, 0, 3] = torch.tensor([0.5, 0.5]).log()
    expected = (-math.log(0.6) - 100 * math.log(0.5)) / 101
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


# Sums


def test_weighted_sum_adds_the_weighted_terms(batch):
    loss = FocalDice(num_classes=CLASSES)
    focal = FocalLoss(num_classes=CLASSES)(*batch).item()
    dice = DiceLoss(num_classes=CLASSES, smooth=1.0)(*batch).item()
    assert loss(*batch).item() == pytest.approx(focal + 1.1 * dice, rel=1e-6)


@pytest.mark.parametrize("weights", [{"dice": 1.0}, {"focal": 1.0}, {"dice": 1.0, "focal": 1.0, "ce": 1.0}])
def test_weighted_sum_names_terms_and_weights_that_do_not_match(weights):
    with pytest.raises(ConfigError) as error:
        WeightedSum({"focal": FocalLoss, "dice": DiceLoss}, weights, num_classes=3)
    assert str(["dice", "focal"]) in str(error.value)
    assert str(sorted(weights)) in str(error.value)


def test_weighted_sum_refuses_a_negative_weight():
    with pytest.raises(ConfigError, match=r"weights\.dice"):
        WeightedSum({"dice": DiceLoss}, {"dice": -1.0}, num_classes=3)


# Class weights

COUNTS = np.array([600, 300, 100, 0])


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("none", [1, 1, 1, 1]),
        # 1/p = 10/6, 10/3, 10 with mean 5
        ("inverse_frequency", [1 / 3, 2 / 3, 2, 0]),
        ("enet", [1 / math.log(1.62), 1 / math.log(1.32), 1 / math.log(1.12), 0]),
        ("median_frequency", [0.5, 1, 3, 0]),
    ],
)
def test_class_weights_by_hand(scheme, expected):
    weights = class_weights_from_counts(torch.from_numpy(COUNTS), scheme)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(class_weights_from_counts(COUNTS, scheme), weights)


def test_median_of_an_even_number_of_classes_is_halfway():
    assert class_weights_from_counts(np.array([30, 10]), "median_frequency").tolist() == pytest.approx([2 / 3, 2])


def test_an_unknown_weight_scheme_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'inverse_frequency'"):
        class_weights_from_counts(COUNTS, "inverse_freq")


@pytest.mark.parametrize("counts", [[0, 0, 0], [5, -1, 3]])
def test_counts_that_give_no_weights_are_refused(counts):
    with pytest.raises(ConfigError, match="pixel counts"):
        class_weights_from_counts(np.array(counts), "enet")


# Config


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_loss_config_builds_with_class_weights(path, batch):
    config = OmegaConf.load(path)
    assert config.class_weights == "none"
    shared = {"num_classes": CLASSES, "ignore_index": 255}
    plain = hydra.utils.instantiate(config, class_weights=None, **shared)
    weighted = hydra.utils.instantiate(config, class_weights=torch.tensor([0.1, 1.0, 5.0, 2.0]), **shared)
    assert math.isfinite(plain(*batch).item())
    assert plain(*batch).item() != pytest.approx(weighted(*batch).item(), abs=1e-4)


def test_focal_dice_config_is_focal_and_eleven_tenths_of_dice(batch):
    config = OmegaConf.load(CONF / "focal_dice.yaml")
    loss = hydra.utils.instantiate(config, num_classes=CLASSES, ignore_index=255, class_weights=None)
    expected = FocalLoss(num_classes=CLASSES)(*batch) + 1.1 * DiceLoss(num_classes=CLASSES)(*batch)
    assert loss(*batch).item() == pytest.approx(expected.item(), rel=1e-6)
