"""The door to timm's encoders, by way of the networks that use it."""

from __future__ import annotations

import pytest
import timm
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from cityseg.errors import ConfigError
from cityseg.models import efficient_segnet, encoders, fpn_aspp
from cityseg.models.encoders import TimmEncoder

BUILDERS = pytest.mark.parametrize("build", [fpn_aspp.build, efficient_segnet.build], ids=["fpn_aspp", "segnet"])


@BUILDERS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "eficientnet_b0"}, r"no encoder 'eficientnet_b0'\. Did you mean 'efficientnet_b0'"),
        ({"encoder": "efficientnet-b0"}, r"Did you mean 'efficientnet_b0'"),
        ({"encoder": "tu-convnext_tiny"}, r"Did you mean 'convnext_tiny'\?"),
        ({"encoder": "convnext_tiny.fb_in1"}, r"Did you mean .*'convnext_tiny.fb_in1k'"),
        ({"encoder": "zzz"}, r"no encoder 'zzz'\.\n.*Fix: a name of timm"),
        ({"encoder_options": {"in_chans": 1}}, r"encoder_options: 'in_chans' is set by the network itself"),
        (
            {"encoder": "resnet18", "encoder_options": {"imgsize": 64}},
            r"'resnet18' cannot be built: TypeError: .*imgsize",
        ),
        ({"dropout": 1.0}, r"found dropout=1.0, expected 0 or more and less than 1"),
        ({"num_classes": 0}, r"found num_classes=0"),
        ({"pretrained": "/no/such.pt"}, r"no file with the encoder's weights.*model.pretrained=/no/such.pt"),
        ({"encoder": "convnext_atto_rms", "pretrained": True}, r"no published weights.*Fix: model.pretrained=false"),
    ],
)
def test_a_mistake_is_named_with_what_is_expected(build, options, message):
    with pytest.raises(ConfigError, match=r"(?s)" + message):
        build(**{"num_classes": 5, **options})


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(ConfigError, match=r"(?s)4 problems.*resnet43.*dropout=2.*aspp_channels=0.*atrous_rates"):
        fpn_aspp.build(encoder="resnet43", num_classes=5, dropout=2, aspp_channels=0, atrous_rates=[])


@BUILDERS
def test_a_network_that_fails_at_the_first_batch_is_refused_when_built(build, monkeypatch):
    def fail(self, x):
        raise RuntimeError("sizes must match")

    monkeypatch.setattr(TimmEncoder, "forward", fail)
    with pytest.raises(ConfigError, match=r"does not work with encoder 'resnet18': RuntimeError: sizes must match"):
        build(encoder="resnet18", num_classes=5)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="clases"):
        fpn_aspp.build(num_classes=5, clases=5)


@BUILDERS
def test_weights_that_cannot_be_fetched_name_both_ways_out(build, monkeypatch):
    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(encoders, "get_session", unreachable)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", unreachable)
    with pytest.raises(ConfigError, match=r"(?s)efficientnet_b0.*model.pretrained=false.*model.pretrained=/path"):
        build(num_classes=5, pretrained=True)
    assert hub_constants.HF_HUB_OFFLINE is False


@BUILDERS
@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_atto"])
def test_a_local_file_is_loaded_under_timms_names_without_the_head(build, name, tmp_path):
    torch.manual_seed(3)
    whole = {key: torch.randn_like(v) if v.is_floating_point() else v for key, v in state(name).items()}
    save_file(whole, tmp_path / "model.safetensors")
    encoder = build(encoder=name, num_classes=5, pretrained=tmp_path / "model.safetensors").body.encoder
    expected = {encoders.flat(key): value for key, value in whole.items()}
    loaded = {encoders.flat(key): value for key, value in encoder.state_dict().items()}
    assert loaded.keys() <= expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


@BUILDERS
def test_a_file_of_another_network_is_refused_and_named(build, tmp_path):
    torch.save(state("resnet18"), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"(?s)pretrained=.*w.pt \(encoder=efficientnet_b0\).*missing in the file"):
        build(num_classes=5, pretrained=tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="not a file of weights"):
        build(num_classes=5, pretrained=tmp_path / "w.pt")


def test_a_weight_missing_of_another_shape_or_unknown_is_named(tmp_path):
    weights = state("test_convnext")
    del weights["stem.0.weight"]
    weights["stem.0.bias"] = torch.zeros(2, 9)
    weights["alien.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError) as raised:
        fpn_aspp.build(encoder="test_convnext", num_classes=5, pretrained=tmp_path / "w.safetensors")
    assert "missing in the file\n       model.stem_0.weight" in str(raised.value)
    assert "does not have\n       alien.weight" in str(raised.value)
    assert "model.stem_0.bias: found (2, 9), expected" in str(raised.value)


@BUILDERS
def test_the_normalisation_is_the_encoders_own(build):
    halves = build(encoder="tf_efficientnet_b0.ap_in1k", num_classes=5)
    config = timm.get_pretrained_cfg("tf_efficientnet_b0.ap_in1k")
    torch.testing.assert_close(halves.scale.flatten(), 1 / (255 * torch.tensor(config.std)))
    torch.testing.assert_close(halves.shift.flatten(), -torch.tensor(config.mean) / torch.tensor(config.std))


def test_maps_are_channels_first_and_as_large_as_said():
    for name in ("swin_tiny_patch4_window7_224", "efficientnet_b0"):
        encoder = TimmEncoder(name).eval()
        with torch.no_grad():
            maps = encoder(torch.zeros(1, 3, 64, 96))
        found = [tuple(feature.shape) for feature in maps]
        assert found == [(1, c, 64 // r, 96 // r) for c, r in zip(encoder.channels, encoder.reductions, strict=True)]


def state(name):
    return {key: value.clone() for key, value in timm.create_model(name).state_dict().items()}
