"""The discriminator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cityseg.errors import ConfigError
from cityseg.models.patchgan import PatchGan


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_score_sees_a_patch_of_the_size_in_the_paper(layers, patch):
    discriminator = PatchGan(4, base_channels=4, layers=layers).double()
    photo = torch.randn(1, 3, 200, 220, dtype=torch.double, requires_grad=True)
    labelling = torch.randn(1, 1, 200, 220, dtype=torch.double, requires_grad=True)
    scores = discriminator(photo, labelling)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    for seen in (photo.grad, labelling.grad):
        rows, columns = seen[0].abs().sum(dim=0).nonzero().T
        assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (patch, patch)


def test_scores_of_the_papers_size_without_a_sigmoid():
    scores = PatchGan(6)(torch.randn(2, 3, 256, 256) * 50, torch.randn(2, 3, 256, 256) * 50)
    assert scores.shape == (2, 1, 30, 30)
    assert scores.min() < 0


def test_it_has_the_papers_layers():
    # 4x4 convolutions 6 -> 64 -> 128 -> 256 -> 512 -> 1, without the batch normalisation
    weights = 16 * (6 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    discriminator = PatchGan(6)
    assert sum(p.numel() for p in discriminator.parameters()) == weights + 64 + 128 + 256 + 512 + 1
    kinds = [type(module) for module in discriminator.layers]
    assert kinds == [nn.Conv2d, nn.LeakyReLU] * 4 + [nn.Conv2d]
    assert {m.negative_slope for m in discriminator.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
    assert [m.stride[0] for m in discriminator.modules() if isinstance(m, nn.Conv2d)] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("spectral", [False, True])
def test_every_weight_learns(spectral):
    discriminator = PatchGan(5, base_channels=4, spectral_norm=spectral)
    discriminator(torch.randn(2, 3, 64, 48), torch.randn(2, 2, 64, 48)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in discriminator.parameters())


def test_spectral_normalisation_bounds_the_largest_singular_value_of_every_layer():
    discriminator = PatchGan(4, base_channels=8, spectral_norm=True)
    with torch.no_grad():
        for module in discriminator.modules():
            if isinstance(module, nn.Conv2d):
                module.parametrizations.weight.original.mul_(9)
        for _ in range(50):  # each pass refines the estimate
            discriminator(torch.randn(1, 3, 32, 32), torch.randn(1, 1, 32, 32))
        for module in discriminator.eval().modules():
            if isinstance(module, nn.Conv2d):
                assert torch.linalg.matrix_norm(module.weight.flatten(1), 2).item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("spectral", [False, True])
def test_bf16_autocast_works(spectral):
    discriminator = PatchGan(4, base_channels=4, spectral_norm=spectral)
    with torch.autocast("cpu", torch.bfloat16):
        scores = discriminator(torch.randn(1, 3, 32, 32), torch.randn(1, 1, 32, 32))
    scores.mean().backward()
    assert scores.dtype == torch.bfloat16
    assert scores.isfinite().all()


def test_a_score_counts_where_half_of_its_cell_is_not_void():
    discriminator = PatchGan(4, base_channels=4, layers=1)
    void = torch.zeros(1, 12, 16, dtype=torch.bool)  # scores of 4x6 cells: 3 rows, 16 / 6 columns
    assert discriminator(torch.zeros(1, 3, 12, 16), torch.zeros(1, 1, 12, 16)).shape == (1, 1, 4, 6)
    assert discriminator.valid_mask(void).shape == (1, 1, 4, 6)
    assert discriminator.valid_mask(void).all()
    assert not discriminator.valid_mask(~void).any()
    void[:, :6] = True  # rows 0 and 1 of the scores
    assert discriminator.valid_mask(void)[0, 0, :, 0].tolist() == [0, 0, 1, 1]
    void[:, 6:7] = True  # a third of row 2's cells: two thirds are left
    assert discriminator.valid_mask(void)[0, 0, :, 0].tolist() == [0, 0, 1, 1]
    void[:, 7:8] = True
    assert discriminator.valid_mask(void)[0, 0, :, 0].tolist() == [0, 0, 0, 1]
    assert discriminator.valid_mask(void).dtype == torch.float32


@pytest.mark.parametrize("size", [(24, 24), (97, 131), (33, 250)])
def test_the_mask_is_as_large_as_the_scores(size):
    discriminator = PatchGan(4, base_channels=4)
    scores = discriminator(torch.zeros(2, 3, *size), torch.zeros(2, 1, *size))
    assert discriminator.valid_mask(torch.zeros(2, *size, dtype=torch.bool)).shape == scores.shape


@pytest.mark.parametrize(("layers", "least"), [(1, 6), (3, 24), (4, 48)])
def test_photos_smaller_than_the_discriminator_takes_are_refused(layers, least):
    discriminator = PatchGan(4, base_channels=4, layers=layers)
    discriminator(torch.zeros(1, 3, least, least), torch.zeros(1, 1, least, least))
    with pytest.raises(ValueError, match=rf"found photos of {least - 1}x64 .*at least {least}x{least}"):
        discriminator(torch.zeros(1, 3, 64, least - 1), torch.zeros(1, 1, 64, least - 1))


def test_options_out_of_range_are_refused_together():
    with pytest.raises(ConfigError, match=r"base_channels=0, layers=0, expected 1 or more"):
        PatchGan(4, base_channels=0, layers=0)
