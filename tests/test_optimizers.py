"""Parameter groups: which weights are in which, and at what learning rate."""

import csv
from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn

from cityseg import schedulers
from cityseg.errors import ConfigError
from cityseg.models.network import SegmentationNetwork, encoder_stages
from cityseg.models.smp import build
from cityseg.optimizers import build_optimizer, parameter_groups
from tests.runs.test_training import interrupt_after, losses, same, weights

CONF = Path(__file__).parents[1] / "conf" / "optimizer"


@pytest.fixture(scope="module")
def network():
    return build("unet", encoder="tu-test_resnet", num_classes=2, pretrained=False, decoder_channels=[32, 16, 16, 8, 8])


def names_and_rates(groups):
    return [(group["name"], group["lr"]) for group in groups]


def test_equal_learning_rates_need_no_groups(network):
    groups = parameter_groups(network, 0.1)
    assert all(one is other for one, other in zip(groups, network.parameters(), strict=True))


def test_the_head_comes_first_and_the_encoder_has_a_rate_of_its_own(network):
    head, encoder = parameter_groups(network, 0.1, encoder_lr_factor=0.2)
    assert names_and_rates([head, encoder]) == [("head", 0.1), ("encoder", pytest.approx(0.02))]
    assert set(encoder["params"]) == set(network.encoder.parameters())
    assert set(head["params"]) == set(network.parameters()) - set(network.encoder.parameters())
    assert len(head["params"]) + len(encoder["params"]) == len(list(network.parameters()))


def test_each_stage_learns_at_a_share_of_the_next_deeper_one(network):
    stages = encoder_stages(network)
    assert len(stages) == 5
    groups = parameter_groups(network, 0.1, encoder_lr_factor=0.5, layer_decay=0.1)
    assert names_and_rates(groups) == [
        ("head", 0.1),
        ("encoder_5", pytest.approx(5e-2)),
        ("encoder_4", pytest.approx(5e-3)),
        ("encoder_3", pytest.approx(5e-4)),
        ("encoder_2", pytest.approx(5e-5)),
        ("encoder_1", pytest.approx(5e-6)),
    ]
    for group, stage in zip(groups[1:], reversed(stages), strict=True):
        assert set(group["params"]) == {p for part in stage for p in part.parameters()}
    assert {p for group in groups for p in group["params"]} == set(network.parameters())


def test_a_decay_alone_leaves_the_deepest_stage_at_the_rate_of_the_head(network):
    groups = parameter_groups(network, 0.1, layer_decay=0.5)
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.1, 0.05, 0.025, 0.0125, 0.00625])


@pytest.mark.parametrize("factors", [{}, {"encoder_lr_factor": 0.1}, {"layer_decay": 0.9}])
def test_weights_frozen_for_good_are_left_out(factors):
    network = build("unet", encoder="tu-test_resnet", num_classes=2, pretrained=False, decoder_channels=[8] * 5)
    stem = {p for part in encoder_stages(network)[0] for p in part.requires_grad_(False).parameters()}
    groups = parameter_groups(network, 0.1, **factors)
    given = {p for group in groups for p in group["params"]} if factors else set(groups)
    assert given == set(network.parameters()) - stem
    assert not factors or "encoder_1" not in [group["name"] for group in groups]


def test_an_optimizer_takes_its_own_rate_for_the_head(network):
    factory = partial(torch.optim.AdamW, lr=0.3, weight_decay=0.25)
    optimizer = build_optimizer(factory, network, encoder_lr_factor=0.1)
    assert names_and_rates(optimizer.param_groups) == [("head", 0.3), ("encoder", pytest.approx(0.03))]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.25]
    (group,) = build_optimizer(factory, network).param_groups
    assert group["lr"] == 0.3
    assert len(group["params"]) == len(list(network.parameters()))


def test_one_step_of_each_group_is_as_long_as_its_rate(network):
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=1.0), network, encoder_lr_factor=0.5, layer_decay=0.5)
    before = {p: p.detach().clone() for p in network.parameters()}
    for parameter in before:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    lengths = [[(before[p] - p).mean().item() for p in group["params"]] for group in optimizer.param_groups]
    for found, rate in zip(lengths, [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125], strict=True):
        assert found == pytest.approx([rate] * len(found), abs=1e-4)
    optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_shipped_optimizers_are_fused_and_their_gradients_can_be_clipped(network, name):
    factory = hydra.utils.instantiate(OmegaConf.load(CONF / f"{name}.yaml"))
    optimizer = build_optimizer(factory, network)
    assert optimizer.param_groups[0]["fused"]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 0.5)  # the trainer's own
    assert torch.nn.utils.get_total_norm([p.grad for p in network.parameters()]).item() == pytest.approx(0.5, rel=1e-3)
    optimizer.zero_grad()


@pytest.mark.parametrize(
    "factory",
    [
        partial(schedulers.constant, warmup_epochs=1),
        partial(schedulers.poly, warmup_epochs=1),
        schedulers.cosine,
        partial(schedulers.cosine_restarts, cycle_epochs=1),
        schedulers.one_cycle,
        partial(schedulers.plateau, monitor="val/loss", mode="min", factor=0.5, patience=0, warmup_epochs=1),
    ],
    ids=["constant", "poly", "cosine", "cosine_restarts", "one_cycle", "plateau"],
)
def test_schedules_keep_the_ratios(network, factory):
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=0.1), network, encoder_lr_factor=0.4, layer_decay=0.5)
    scheduler = factory(optimizer, total_steps=12, steps_per_epoch=4)["scheduler"]
    heads = []
    for _ in range(12):
        head, *encoder = (group["lr"] for group in optimizer.param_groups)
        heads.append(head)
        assert encoder == pytest.approx([head * factor for factor in (0.4, 0.2, 0.1, 0.05, 0.025)], rel=1e-9)
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, schedulers.WarmupReduceLROnPlateau) else []))
    assert len(set(heads)) > 1


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["encoder_lr_factor", "layer_decay"])
def test_factors_that_are_not_above_zero_are_refused(network, name, value):
    with pytest.raises(ConfigError, match=rf"task\.{name}: found .*, expected a number above 0"):
        parameter_groups(network, 0.1, **{name: value})


@pytest.mark.parametrize("factors", [{"encoder_lr_factor": 0.1}, {"layer_decay": 0.9}])
def test_a_network_without_encoder_is_refused(factors):
    network = SegmentationNetwork(nn.Conv2d(3, 2, 1), num_classes=2, mean=(0, 0, 0), std=(1, 1, 1))
    assert len(parameter_groups(network, 0.1)) == 2
    with pytest.raises(ConfigError, match="this network has no encoder"):
        parameter_groups(network, 0.1, **factors)


@pytest.mark.slow
def test_a_run_logs_the_rate_of_every_group_and_resumes_with_them(run_tiny, monkeypatch):
    overrides = (
        "task.encoder_lr_factor=0.5", "task.layer_decay=0.1", "trainer.max_epochs=2", "logger=csv",
        "trainer.log_every_n_steps=1",
    )  # fmt: skip
    whole = run_tiny(*overrides, folder="whole")
    (table,) = whole.rglob("metrics.csv")
    with table.open() as handle:
        first = next(row for row in csv.DictReader(handle) if row["optim/lr/head"])
    rates = {key.removeprefix("optim/lr/"): float(value) for key, value in first.items() if key.startswith("optim/lr/")}
    assert rates == pytest.approx(
        {"head": 1e-3, **{f"encoder_{5 - depth}": 0.5e-3 * 0.1**depth for depth in range(5)}}, rel=1e-4
    )
    interrupt_after(run_tiny, monkeypatch, 1, *overrides, folder="stopped")
    stopped = whole.parent / "stopped"
    run_tiny(f"resume={stopped}", folder="stopped")
    assert losses(whole) == losses(stopped)
    assert same(weights(whole), weights(stopped))
