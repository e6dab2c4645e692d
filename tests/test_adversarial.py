"""The adversarial maths against values worked out by hand."""

import pytest
import torch
from torch import nn

from cityseg.adversarial import (
    AUXILIARY_MAPS,
    accuracy,
    discriminator_hinge,
    generator_hinge,
    map_channels,
    predicted_map,
    r1_penalty,
    true_map,
)
from cityseg.errors import ConfigError

NOTHING_VOID = torch.zeros(1, 1, 2, dtype=torch.bool)


def pixels(*values):
    """Scores of patches in a row, (1, 1, 1, n)."""
    return torch.tensor(values).view(1, 1, 1, -1)


def test_hinge_losses_by_hand():
    real, fake, weight = pixels(2.0, 0.5), pixels(-2.0, 0.5), pixels(1.0, 1.0)
    # max(0, 1 - 2) = 0, max(0, 1 - 0.5) = 0.5: mean 0.25; max(0, 1 - 2) = 0, max(0, 1 + 0.5) = 1.5: mean 0.75
    assert discriminator_hinge(real, fake, weight).item() == pytest.approx(0.25 + 0.75)
    assert generator_hinge(fake, weight).item() == pytest.approx(0.75)


def test_void_patches_do_not_count():
    real, fake, weight = pixels(2.0, -50.0), pixels(-2.0, 50.0), pixels(1.0, 0.0)
    assert discriminator_hinge(real, fake, weight).item() == 0
    assert generator_hinge(fake, weight).item() == pytest.approx(2.0)
    assert [share.item() for share in accuracy(real, fake, weight)] == [1.0, 1.0]


def test_where_every_patch_is_void_the_losses_are_zero():
    real, fake, weight = pixels(2.0), pixels(-2.0), pixels(0.0)
    assert discriminator_hinge(real, fake, weight).item() == 0
    assert generator_hinge(fake, weight).item() == 0


def test_maps_of_a_prediction_by_hand():
    # three classes: pixel 0 has probabilities (1/4, 1/4, 1/2), pixel 1 (1/2, 1/2, 0)
    logits = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.5, 1e-30]]).log().T.view(1, 3, 1, 2)
    expected = predicted_map(logits, NOTHING_VOID, "expected_index").flatten().tolist()
    assert expected == pytest.approx([(0.25 * 1 + 0.5 * 2) / 2, 0.5 / 2])
    assert predicted_map(logits, NOTHING_VOID, "straight_through").flatten().tolist() == pytest.approx([1.0, 0.0])
    probabilities = predicted_map(logits, NOTHING_VOID, "probabilities")
    assert probabilities.shape == (1, 3, 1, 2)
    assert probabilities[0, :, 0, 0].tolist() == pytest.approx([0.25, 0.25, 0.5])


@pytest.mark.parametrize("kind", AUXILIARY_MAPS)
def test_a_sure_and_right_prediction_has_the_map_of_the_truth_and_void_is_zero_in_both(kind):
    target = torch.tensor([[[2, 1], [0, 255]]], dtype=torch.uint8)
    void = target == 255
    logits = 100 * nn.functional.one_hot(target.long().clamp(max=2), 3).permute(0, 3, 1, 2).float()
    truth, prediction = true_map(target, void, 3, kind), predicted_map(logits, void, kind)
    assert truth.shape == (1, map_channels(kind, 3), 2, 2)
    assert torch.allclose(truth, prediction)
    assert truth[..., 1, 1].abs().sum() == 0


@pytest.mark.parametrize("kind", AUXILIARY_MAPS)
def test_the_gradient_of_the_adversarial_term_reaches_the_logits(kind):
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    void = torch.zeros(2, 3, 3, dtype=torch.bool)
    void[0, 0, 0] = True
    (predicted_map(logits, void, kind) * torch.randn(2, map_channels(kind, 4), 3, 3)).sum().backward()
    assert logits.grad[0, :, 0, 0].abs().sum() == 0
    assert (logits.grad.abs().sum(dim=1)[~void] > 0).all()


def test_an_argmax_map_would_have_no_gradient():
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    assert not (logits.argmax(dim=1, keepdim=True).float() / 3).requires_grad


def test_the_straight_through_gradient_is_that_of_the_expected_index():
    void, weight = torch.zeros(1, 3, 3, dtype=torch.bool), torch.randn(1, 1, 3, 3)
    gradients = []
    for kind in ("straight_through", "expected_index"):
        logits = torch.linspace(-1, 1, 36).view(1, 4, 3, 3).requires_grad_()
        (predicted_map(logits, void, kind) * weight).sum().backward()
        gradients.append(logits.grad)
    assert torch.allclose(*gradients)


def test_an_unknown_map_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="expected_index"):
        map_channels("expected", 3)


def test_r1_by_hand():
    class Linear(nn.Module):
        """A score of 3 x photo + 4 x map at each pixel: the squared gradient of the mean over n pixels is 25 / n."""

        def forward(self, photo, auxiliary):
            return 3 * photo[:, :1] + 4 * auxiliary

    photo, auxiliary, weight = torch.rand(2, 3, 2, 2), torch.rand(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    assert r1_penalty(Linear(), photo, auxiliary, weight).item() == pytest.approx(25 / 4 / 2)
