"""The decoder in the manner of SegNet on a frozen encoder."""

from __future__ import annotations

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from cityseg.errors import ConfigError
from cityseg.models.efficient_segnet import DecoderStage, build
from cityseg.models.network import count_parameters


def photos(height=97, width=131, batch=2):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def test_it_has_exactly_the_parameters_it_should():
    assert count_parameters(build(num_classes=20)) == {"total": 4832656, "trainable": 825108, "encoder": 4007548}


def test_the_maps_of_efficientnet_b0_have_the_channels_and_sizes_of_its_stages():
    encoder = build(num_classes=20).body.encoder
    assert encoder.channels == [24, 40, 80, 112, 1280]
    assert encoder.reductions == [4, 8, 16, 16, 32]
    with torch.no_grad():
        found = [tuple(feature.shape[1:]) for feature in encoder(torch.zeros(1, 3, 64, 96))]
    assert found == [(24, 16, 24), (40, 8, 12), (80, 4, 6), (112, 4, 6), (1280, 2, 3)]


def test_the_decoder_goes_up_in_five_stages():
    body = build(num_classes=20).body
    assert [stage.up.in_channels for stage in body.decoder] == [1280, 112, 80, 40, 24]
    assert [stage.up.out_channels for stage in body.decoder] == [112, 80, 40, 24, 24]
    sizes = []
    for stage in body.decoder:
        stage.register_forward_hook(lambda _m, _i, output: sizes.append(tuple(output.shape[-2:])))
    with torch.no_grad():
        body(torch.zeros(1, 3, 64, 96))
    assert sizes == [(4, 6), (8, 12), (16, 24), (32, 48), (64, 96)]


def test_a_skip_is_added_after_it_is_resized():
    torch.manual_seed(0)
    stage = DecoderStage(3, 2).eval()
    x, skip = torch.randn(1, 3, 4, 4), torch.randn(1, 2, 4, 4)
    larger = torch.nn.functional.interpolate(skip, size=(8, 8), mode="bilinear", align_corners=False)
    expected = torch.relu(stage.norm(stage.conv(stage.up(x) + larger)))
    torch.testing.assert_close(stage(x, skip), expected)
    torch.testing.assert_close(stage(x, larger), expected)
    torch.testing.assert_close(stage(x, None), torch.relu(stage.norm(stage.conv(stage.up(x)))))


@pytest.mark.parametrize(
    "encoder",
    [
        *("efficientnet_b0", "mobilenetv2_100", "resnet18", "convnext_atto"),
        *(
            pytest.param(encoder, marks=pytest.mark.slow)
            for encoder in ("vit_tiny_patch16_224", "vgg11_bn", "swin_tiny_patch4_window7_224")
        ),
    ],
)
def test_any_encoder_takes_its_place_and_every_weight_that_should_learns(encoder):
    network = build(encoder=encoder, num_classes=5)
    logits = network(photos())
    assert logits.shape == (2, 5, 97, 131)
    logits.square().mean().backward()
    learns = {name for name, p in network.named_parameters() if p.grad is not None}
    assert learns == {name for name, _ in network.named_parameters() if not name.startswith("body.encoder.")}


def test_an_encoder_that_is_not_frozen_learns_too():
    network = build(num_classes=5, freeze_encoder=False)
    network(photos(64, 64)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert count_parameters(network)["trainable"] == count_parameters(network)["total"]


@pytest.mark.parametrize("frozen", [True, False])
def test_statistics_of_a_frozen_encoder_stay_as_they_are_in_training(frozen):
    network = build(encoder="test_efficientnet", num_classes=5, freeze_encoder=frozen)
    before = {key: value.clone() for key, value in network.state_dict().items() if "running" in key}
    network(photos(64, 64))  # as it was built
    network.eval()
    network.train()
    network(photos(64, 64))
    changed = {key for key, value in network.state_dict().items() if "running" in key and not value.equal(before[key])}
    assert any(key.startswith("body.decoder.") for key in changed)
    assert any(key.startswith("body.encoder.") for key in changed) is not frozen
    assert [p.requires_grad for p in network.encoder.parameters()].count(frozen) == 0


def test_a_frozen_encoder_that_is_opened_trains_with_its_statistics():
    network = build(encoder="test_efficientnet", num_classes=5)
    network.encoder.requires_grad_(True)
    assert all(m.training for m in network.train().modules() if isinstance(m, _BatchNorm))


def test_an_auxiliary_head_on_a_frozen_encoder_is_refused():
    with pytest.raises(ConfigError, match=r"(?s)auxiliary_head.*frozen.*Fix: freeze_encoder=false"):
        build(num_classes=5, auxiliary_head=True)
