"""The door to segmentation_models_pytorch."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from cityseg.errors import ConfigError
from cityseg.models import encoders
from cityseg.models import smp as door
from cityseg.models.smp import ARCHITECTURES, build

CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[2] / "conf" / "model").glob("*.yaml")
    if "cityseg.models.smp.build" in path.read_text(encoding="utf-8")
)
SMALL = {"dpt": "tu-vit_tiny_patch16_224", "segformer": "mit_b0", "upernet": "tu-convnext_atto"}
MIN_BATCH_2 = {"deeplabv3", "deeplabv3plus", "pan", "upernet"}
DIVISOR = {"pspnet": 8, "deeplabv3": 8, "deeplabv3plus": 16, "pan": 16}


def small(architecture="unet", **options):
    options.setdefault("encoder", SMALL.get(architecture, "resnet18"))
    return build(architecture, num_classes=5, **options)


def photos(height=64, width=96, batch=1):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_and_trains_a_step(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    architecture = config["architecture"]
    del config["_target_"]
    assert door._is_encoder(config["encoder"])
    config["encoder"] = SMALL.get(architecture, "resnet18")
    network = build(**config, num_classes=5)
    assert network.min_train_batch == (2 if architecture in MIN_BATCH_2 else 1)
    assert network.divisor == DIVISOR.get(architecture, 32)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = network.body.encoder.state_dict()
    before = {key: value.clone() for key, value in before.items() if value.is_floating_point()}
    logits = network(photos(97, 131, batch=network.min_train_batch))
    assert logits.shape == (network.min_train_batch, 5, 97, 131)
    loss = nn.functional.cross_entropy(logits, torch.ones(logits.shape[0], 97, 131, dtype=torch.long))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    after = network.body.encoder.state_dict()
    assert any(not torch.equal(after[key], value) for key, value in before.items())


def test_every_architecture_has_a_config_of_its_name():
    assert {path.stem for path in CONFIGS} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [("unet", "tu-swin_tiny_patch4_window7_224"), ("pan", "resnet18"), ("fpn", "mit_b0")],
)
def test_photos_of_any_size_come_back_at_their_size(architecture, encoder):
    network = small(architecture, encoder=encoder).eval()
    assert network.divisor == DIVISOR.get(architecture, 32)
    for size in [(97, 131), (64, 96), (20, 20)]:
        with torch.no_grad():
            assert network(photos(*size)).shape == (1, 5, *size)


def test_an_encoder_with_fixed_windows_gets_multiples_of_the_size_it_is_made_for():
    network = small("segformer", encoder="tu-maxvit_tiny_tf_224", encoder_options={"img_size": 64}).eval()
    assert network.divisor == 64
    with torch.no_grad():
        assert network(photos(97, 60)).shape == (1, 5, 97, 60)


def test_bf16_autocast_works():
    network = small()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(photos())
    assert logits.dtype == torch.bfloat16
    assert bool(logits.isfinite().all())


def test_the_normalisation_is_the_encoders_own():
    half = small("dpt", encoder="tu-vit_tiny_patch16_224")
    torch.testing.assert_close(half.scale.flatten(), torch.full((3,), 2 / 255))
    torch.testing.assert_close(half.shift.flatten(), torch.full((3,), -1.0))
    imagenet = small()
    expected = 1 / (255 * torch.tensor([0.229, 0.224, 0.225]))
    torch.testing.assert_close(imagenet.scale.flatten(), expected)


def test_building_twice_from_one_seed_gives_the_same_weights():
    torch.manual_seed(0)
    first = small().state_dict()
    torch.manual_seed(0)
    second = small().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_options_reach_the_library():
    network = small(encoder_depth=4, decoder_channels=[64, 32, 16, 8])
    assert network.divisor == 16
    assert network.body.decoder.blocks[0].conv1[0].out_channels == 64


def test_dropout_works_in_training_only_and_leaves_the_keys_alone():
    dropping, plain = small(dropout=0.5), small()
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    dropping.load_state_dict(plain.state_dict())
    for module in dropping.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    x = photos(32, 32, batch=2)
    with torch.no_grad():
        assert not torch.equal(dropping(x), dropping(x))
        torch.testing.assert_close(dropping.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"architecture": "unett"},
            r"no architecture 'unett'\. Did you mean 'unet'.*one of unet, unetplusplus",
        ),
        ({"clases": 5}, r"unet has no option 'clases'\. Did you mean 'classes'"),
        (
            {"decoder_chanels": 5},
            r"no option 'decoder_chanels'\. Did you mean 'decoder_channels'.*one of encoder",
        ),
        ({"encoder_name": "resnet18"}, r"'encoder_name' is not a key of the config: use `encoder`"),
        ({"encoder_weights": "imagenet"}, r"use `pretrained`"),
        ({"encode": "resnet18"}, r"no option 'encode'\. Did you mean 'encoder'"),
        ({"encoder": "resnet43"}, r"no encoder 'resnet43'\. Did you mean 'resnet34'"),
        ({"encoder": "convnext_tiny"}, r"Did you mean 'tu-convnext_tiny'\?"),
        ({"encoder": "tu-convnext_tinny"}, r"Did you mean 'tu-convnext_tiny'"),
        ({"encoder": "tu-mit_b0"}, r"Did you mean 'mit_b0'\?"),
        ({"encoder_options": {"img_size": 64}}, r"encoder_options \['img_size'\] are for timm encoders only"),
        ({"encoder": "tu-resnet18", "encoder_options": {"imgsize": 64}}, r"cannot be built .*imgsize"),
        ({"dropout": 1.0}, r"found dropout=1.0, expected 0 or more and less than 1"),
        ({"num_classes": 0}, r"found num_classes=0"),
        (
            {"pretrained": "/no/such.pt"},
            r"no file with the encoder's weights(.|\n)*model.pretrained=/no/such.pt",
        ),
    ],
)
def test_a_mistake_is_named_with_what_is_expected(options, message):
    given = {"architecture": "unet", "encoder": "resnet18", "num_classes": 5, **options}
    with pytest.raises(ConfigError, match=r"(?s)" + message):
        build(**given)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(ConfigError, match=r"(?s)3 problems.*clases.*resnet43.*dropout=2"):
        build("unet", encoder="resnet43", num_classes=5, clases=5, dropout=2)


REFUSED = [
    ("deeplabv3plus", "tu-swin_tiny_patch4_window7_224"),
    ("deeplabv3plus", "tu-maxvit_tiny_tf_224"),
    ("pan", "tu-hrnet_w18_small"),
    ("linknet", "mit_b0"),
    ("unet", "tu-vit_tiny_patch16_224"),
    ("deeplabv3", "vgg11"),
]


@pytest.mark.parametrize(("architecture", "encoder"), REFUSED)
def test_a_refused_encoder_is_named_with_the_architectures_that_take_it(architecture, encoder):
    head = rf"architecture '{architecture}' cannot be built with encoder '{encoder}': \w+: .+"
    fix = "unet, manet, fpn, pspnet, upernet and segformer take every encoder but plain vision transformers .*dpt takes"
    with pytest.raises(ConfigError, match=rf"(?s){head}\nFix: {fix}") as raised:
        small(architecture, encoder=encoder)
    assert raised.value.__cause__ is not None


def test_a_network_that_fails_at_the_first_batch_is_refused_when_built(monkeypatch):
    def fail(self, x):
        raise RuntimeError("sizes must match")

    monkeypatch.setattr(ARCHITECTURES["unet"], "forward", fail)
    with pytest.raises(ConfigError, match="with encoder 'resnet18': RuntimeError: sizes must match"):
        small()


def test_an_encoder_that_needs_larger_multiples_than_the_decoder_gets_them():
    assert small("pspnet", encoder="tu-hrnet_w18_small").divisor == 32


@pytest.mark.parametrize("encoder", ["resnet18", "tu-convnext_atto"])
def test_weights_that_cannot_be_fetched_name_both_ways_out(encoder, monkeypatch):
    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(encoders, "get_session", unreachable)
    for module in ("segmentation_models_pytorch.encoders", "timm.models._hub"):
        monkeypatch.setattr(f"{module}.hf_hub_download", unreachable)
    with pytest.raises(ConfigError, match=rf"(?s){encoder}.*model.pretrained=false.*model.pretrained=/path"):
        small(encoder=encoder, pretrained=True)
    assert hub_constants.HF_HUB_OFFLINE is False


def test_without_a_network_the_hubs_client_does_not_retry(monkeypatch, tmp_path):
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ConfigError, match="cannot be fetched"):
        small(pretrained=True)
    assert time.monotonic() - start < 10


def test_an_encoder_without_published_weights_says_so():
    with pytest.raises(ConfigError, match=r"no published weights(.|\n)*model.pretrained=false"):
        small(encoder="tu-convnext_atto_rms", pretrained=True)


def test_a_local_file_of_the_librarys_encoder_is_loaded(tmp_path):
    weights = {key: torch.randn_like(v) if v.is_floating_point() else v for key, v in encoder_state("resnet18").items()}
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": {**weights, "fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)}}, file)
    loaded = small(pretrained=file).body.encoder.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_a_local_file_of_timm_is_loaded_under_timms_names(name, tmp_path):
    torch.manual_seed(3)
    whole = timm.create_model(name)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    encoder = small(encoder=f"tu-{name}", pretrained=str(tmp_path / "model.safetensors")).body.encoder
    expected = {encoders.flat(key): value for key, value in whole.state_dict().items()}
    loaded = {encoders.flat(key): value for key, value in encoder.state_dict().items()}
    assert loaded.keys() <= expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


@pytest.mark.parametrize("encoder", ["resnet18", "tu-convnext_atto"])
def test_a_file_of_other_weights_is_refused_with_the_first_keys(encoder, tmp_path):
    weights = encoder_state(encoder)
    first = sorted(weights)[0]
    del weights[first]
    second = sorted(weights)[0]
    weights[second] = torch.zeros(2, 9)
    weights["alien.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError) as raised:
        small(encoder=encoder, pretrained=tmp_path / "w.safetensors")
    message = str(raised.value)
    assert f"missing in the file\n       {first}" in message
    assert "does not have\n       alien.weight" in message
    assert f"{second}: found (2, 9), expected" in message
    assert str(tmp_path / "w.safetensors") in message


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("content", ["code", "junk", "list"])
def test_a_file_that_is_not_weights_is_refused_and_nothing_is_executed(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "w.pt"
    if content == "junk":
        file.write_bytes(b"no weights")
    else:
        torch.save({"x": Payload()} if content == "code" else [1, 2], file)
    with pytest.raises(ConfigError, match=r"model.pretrained=.*w.pt: (not a file of weights|found list)"):
        small(pretrained=file)
    assert not (tmp_path / "executed").exists()


def encoder_state(encoder):
    encoder_weights = small(encoder=encoder).body.encoder.state_dict()
    return {
        key: value.contiguous().clone(memory_format=torch.contiguous_format) for key, value in encoder_weights.items()
    }


SWEEP = [
    *("resnet18", "mobilenet_v2", "efficientnet-b0", "tu-convnext_atto", "tu-regnety_002", "mit_b0"),
    *("tu-swin_tiny_patch4_window7_224", "tu-swinv2_cr_tiny_ns_224", "tu-swinv2_tiny_window8_256"),
    *("tu-hrnet_w18_small", "tu-maxvit_tiny_tf_224", "tu-coatnet_nano_rw_224", "vgg11", "densenet121"),
    *("tu-vit_tiny_patch16_224", "tu-deit3_small_patch16_224"),
]


UNDILATED = ("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "upernet", "segformer")
FAMILIES = {  # pattern of the encoder's name -> architectures that take it
    r"tu-(swin|maxvit|coatnet|hrnet)": (*UNDILATED, "dpt"),
    r"mit_b": tuple(name for name in ARCHITECTURES if name not in ("unetplusplus", "linknet", "dpt")),
    r"tu-(vit|deit)": ("dpt",),
    r"vgg|densenet": UNDILATED,
}


@pytest.mark.slow
@pytest.mark.parametrize("encoder", SWEEP)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_pair_works_at_odd_sizes_or_is_refused_as_the_table_says(architecture, encoder):
    takers = [names for pattern, names in FAMILIES.items() if re.match(pattern, encoder)]
    if takers:
        expected = architecture in takers[0]
    else:
        expected = architecture != "dpt" or encoder in ("tu-convnext_atto", "tu-regnety_002")
    if not expected:
        with pytest.raises(ConfigError, match="cannot be built with encoder"):
            small(architecture, encoder=encoder)
        return
    network = small(architecture, encoder=encoder)
    print(f"{architecture} {encoder} {network.divisor} {network.fixed_size} {network.min_train_batch}")
    network(photos(64, 96, batch=network.min_train_batch)).sum().backward()
    if network.fixed_size is None:
        with torch.no_grad():
            assert network.eval()(photos(229, 131)).shape == (1, 5, 229, 131)
