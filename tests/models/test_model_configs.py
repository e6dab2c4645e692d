"""The files of conf/model that build a network, and what holds for every network they build."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from cityseg.models.network import count_parameters, encoder_stages
from cityseg.models.smp import build

# gan and its like have two networks in them: they are trained with the adversarial task.
CONFIGS = sorted(p for p in (Path(__file__).parents[2] / "conf" / "model").glob("*.yaml") if p.stem[:3] != "gan")
OWN = [path for path in CONFIGS if "cityseg.models.smp.build" not in path.read_text(encoding="utf-8")]
SMALL = {"dpt": "tu-vit_tiny_patch16_224", "segformer": "mit_b0", "upernet": "tu-convnext_atto"}


def configured(path, **changes):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    module, _, name = config.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), name)(**{**config, **changes}, num_classes=5)


def small(path, **changes):
    changes.setdefault("encoder", "resnet18" if path in OWN else SMALL.get(path.stem, "resnet18"))
    return configured(path, **changes)


def photos(height=97, width=131, batch=2):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)  # the others: test_smp.py
def test_every_config_of_an_own_network_builds_and_trains_a_step(path):
    network = configured(path)
    before = {name: p.clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    logits = network(photos())
    assert logits.shape == (2, 5, 97, 131)
    loss = nn.functional.cross_entropy(logits, torch.ones(2, 97, 131, dtype=torch.long))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert any("head" in name for name in moved)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_stages_hold_every_weight_of_the_encoder_once_and_none_of_the_head_from_input_to_output(path):
    check_stages(small(path))


ENCODERS = [
    *("efficientnet-b0", "vgg11", "mobilenet_v2", "densenet121", "resnext50_32x4d", "mit_b0", "xception"),
    *("tu-swin_tiny_patch4_window7_224", "tu-efficientnet_b0", "tu-mobilenetv3_small_050", "tu-test_resnet"),
]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_stages_of_each_family_of_encoders(encoder):
    check_stages(build("fpn", encoder=encoder, num_classes=5))


@pytest.mark.parametrize("encoder", ["efficientnet_b0", "convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_stages_of_timm_encoders_in_own_networks(path, encoder):
    check_stages(configured(path, encoder=encoder))


def check_stages(network):
    stages = [[p for module in stage for p in module.parameters()] for stage in encoder_stages(network)]
    flat = [id(p) for stage in stages for p in stage]
    assert len(flat) == len(set(flat))
    assert set(flat) == {id(p) for p in network.body.encoder.parameters()}
    assert 3 <= len(stages) <= 5
    assert all(stages)
    # An independent order: that in which a photo passes the modules that have weights.
    numbers = {id(p): number for number, stage in enumerate(stages) for p in stage}
    passed = []
    for module in network.body.encoder.modules():
        if own := list(module.parameters(recurse=False)):
            first = numbers[id(own[0])]
            module.register_forward_pre_hook(lambda *_, first=first: passed.append(first))
    with torch.no_grad():
        network.eval()(photos(batch=1))
    assert passed == sorted(passed)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_network_can_have_an_auxiliary_head(path):
    options = {"freeze_encoder": False} if path.stem == "efficient_segnet" else {}
    torch.manual_seed(0)
    network = small(path, auxiliary_head=True, **options)
    torch.manual_seed(0)
    without = small(path, **options)
    assert network.has_auxiliary
    assert not without.has_auxiliary
    head = sum(p.numel() for p in network.auxiliary.parameters())
    counts, plain = count_parameters(network), count_parameters(without)
    assert (counts["total"] - plain["total"], counts["encoder"]) == (head, plain["encoder"])
    x = photos()
    logits, auxiliary = network.forward_auxiliary(x)
    assert logits.shape == auxiliary.shape == (2, 5, 97, 131)
    auxiliary.mean().backward()
    assert all(p.grad is not None for p in network.auxiliary.parameters())
    assert next(p for p in encoder_stages(network)[0][0].parameters()).grad is not None
    with torch.no_grad():
        network.load_state_dict({**without.state_dict(), **auxiliary_state(network)})
        torch.testing.assert_close(network.eval()(x), without.eval()(x))


def auxiliary_state(network):
    return {key: value for key, value in network.state_dict().items() if key.startswith("auxiliary.")}
