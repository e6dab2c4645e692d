from __future__ import annotations

import io
import math
from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch.optim import lr_scheduler

from cityseg import schedulers
from cityseg.errors import ConfigError
from cityseg.schedulers import constant, cosine, cosine_restarts, one_cycle, plateau, poly

CONF = Path(__file__).parents[1] / "conf"
STEPS, EPOCH = 40, 10  # four epochs of ten steps
RUN = {"total_steps": STEPS, "steps_per_epoch": EPOCH}


def make_optimizer(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates or (1.0,)]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def advance(optimizer, scheduler, steps):
    """Learning rates of the first group at each of the next optimizer steps."""
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(factory, steps=STEPS, optimizer=None):
    optimizer = optimizer or make_optimizer()
    return advance(optimizer, factory(optimizer, **RUN)["scheduler"], steps)


def epoch_rates(optimizer, scheduler, scores):
    """Learning rate of each epoch, the scores being what ends them."""
    found = []
    for score in scores:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(torch.tensor(score))
    return [*found, optimizer.param_groups[0]["lr"]]


# Values


@pytest.mark.parametrize(
    "factory",
    [constant, poly, cosine, cosine_restarts],
    ids=["constant", "poly", "cosine", "cosine_restarts"],
)
def test_warmup_rises_linearly_and_never_starts_at_zero(factory):
    found = rates(partial(factory, warmup_epochs=0.5))
    assert found[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_constant_stays():
    assert rates(constant) == [1.0] * STEPS
    assert rates(partial(constant, warmup_epochs=1))[10:] == [1.0] * 30


def test_poly_is_that_of_torch():
    optimizer = make_optimizer()
    expected = advance(optimizer, lr_scheduler.PolynomialLR(optimizer, total_iters=STEPS, power=0.9), STEPS)
    assert rates(poly) == pytest.approx(expected)


def test_poly_by_hand_after_a_warmup():
    found = rates(partial(poly, power=2, warmup_epochs=1, min_factor=0.1), STEPS + 3)
    assert found[9] == 1
    assert found[10] == 1
    assert found[25] == pytest.approx(0.1 + 0.9 * 0.5**2)  # half of the 30 steps that remain
    assert found[39] == pytest.approx(0.1 + 0.9 * (1 / 30) ** 2)
    assert found[40:] == pytest.approx([0.1] * 3)


def test_cosine_is_that_of_torch():
    optimizer = make_optimizer()
    reference = lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS, eta_min=0.1)
    expected = advance(optimizer, reference, STEPS)
    assert rates(partial(cosine, min_factor=0.1)) == pytest.approx(expected)


def test_cosine_by_hand_after_a_warmup():
    found = rates(partial(cosine, warmup_epochs=1, min_factor=0.2), STEPS + 2)
    assert found[10] == 1
    assert found[25] == pytest.approx(0.6)
    assert found[39] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 29 / 30)) / 2)
    assert found[40:] == pytest.approx([0.2] * 2)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_cosine_restarts_are_those_of_torch(multiplier):
    optimizer = make_optimizer()
    reference = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=EPOCH, T_mult=multiplier)
    expected = advance(optimizer, reference, STEPS)
    assert rates(partial(cosine_restarts, cycle_epochs=1, multiplier=multiplier)) == pytest.approx(expected)


def test_cosine_restarts_after_a_warmup():
    found = rates(partial(cosine_restarts, cycle_epochs=0.5, multiplier=2, warmup_epochs=0.5, min_factor=0.1))
    assert [step for step in range(1, STEPS) if found[step] == 1] == [4, 5, 10, 20]
    assert found[15] == pytest.approx(0.55)


def test_one_cycle_by_hand():
    optimizer = make_optimizer(0.5)
    found = rates(partial(one_cycle, pct_start=0.25, div_factor=10, final_div_factor=100), optimizer=optimizer)
    assert found[0] == pytest.approx(0.05)
    assert max(found) == found[9] == pytest.approx(0.5)
    assert found[-1] == pytest.approx(0.0005)


def test_one_cycle_leaves_momentum_alone_where_told():
    optimizer = make_optimizer()
    rates(partial(one_cycle, cycle_momentum=False), 5, optimizer)
    assert optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize("factory", [constant, poly, cosine, cosine_restarts, one_cycle])
def test_each_group_keeps_its_own_share(factory):
    optimizer = make_optimizer(1.0, 0.1)
    scheduler = factory(optimizer, **RUN)["scheduler"]
    for _ in range(17):
        optimizer.step()
        scheduler.step()
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(0.1 * first)


# Plateau

to_max = partial(plateau, monitor="val/miou", mode="max", **RUN)


def test_plateau_lowers_the_rate_without_improvement():
    optimizer = make_optimizer()
    config = to_max(optimizer, factor=0.5, patience=1, min_factor=0.2)
    found = epoch_rates(optimizer, config["scheduler"], [0.5, 0.6, 0.6, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4])
    assert found == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2])


def test_plateau_follows_the_mode():
    optimizer = make_optimizer()
    config = plateau(optimizer, monitor="val/loss", mode="min", patience=0, **RUN)
    assert epoch_rates(optimizer, config["scheduler"], [0.5, 0.4, 0.3]) == [1, 1, 1, 1]


def test_plateau_warms_up_without_losing_patience():
    optimizer = make_optimizer(1.0, 0.1)
    config = to_max(optimizer, factor=0.5, patience=0, warmup_epochs=3)
    found = epoch_rates(optimizer, config["scheduler"], [0.5, 0.4, 0.6, 0.5])
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.5])
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.05)


def test_plateau_remembers_the_best_score_of_the_warmup():
    optimizer = make_optimizer()
    config = to_max(optimizer, factor=0.5, patience=0, warmup_epochs=2)
    assert epoch_rates(optimizer, config["scheduler"], [0.9, 0.5]) == [0.5, 1, 0.5]


def test_plateau_warmup_of_part_of_an_epoch():
    optimizer = make_optimizer()
    config = to_max(optimizer, warmup_epochs=1.5)
    assert epoch_rates(optimizer, config["scheduler"], [0.1, 0.2]) == pytest.approx([2 / 3, 1, 1])


def test_plateau_tells_lightning_what_to_monitor():
    config = to_max(make_optimizer())
    assert (config["interval"], config["monitor"], config["strict"]) == ("epoch", "val/miou", True)


@pytest.mark.parametrize("factory", [constant, poly, cosine, cosine_restarts, one_cycle])
def test_other_schedules_step_with_the_optimizer(factory):
    config = factory(make_optimizer(), **RUN)
    assert (config["interval"], config["frequency"]) == ("step", 1)


# Resume


def through_a_file(state):
    """What safe loading gives back; it refuses anything but plain containers and tensors."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    "factory",
    [
        partial(constant, warmup_epochs=2),
        partial(poly, warmup_epochs=2),
        partial(cosine, min_factor=0.1),
        partial(cosine_restarts, cycle_epochs=0.7),
        one_cycle,
    ],
    ids=["constant", "poly", "cosine", "cosine_restarts", "one_cycle"],
)
@pytest.mark.parametrize("stop", [3, 17])
def test_resume_goes_on_where_the_run_stopped(factory, stop):
    expected = rates(factory)
    optimizer = make_optimizer()
    scheduler = factory(optimizer, **RUN)["scheduler"]
    before = advance(optimizer, scheduler, stop)
    state = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})

    optimizer = make_optimizer()
    scheduler = factory(optimizer, **RUN)["scheduler"]
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert before + advance(optimizer, scheduler, STEPS - stop) == expected


@pytest.mark.parametrize("stop", [1, 4])
def test_plateau_resumes_where_the_run_stopped(stop):
    build = partial(to_max, factor=0.5, patience=1, warmup_epochs=3)
    scores = [0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    optimizer = make_optimizer()
    expected = epoch_rates(optimizer, build(optimizer)["scheduler"], scores)
    assert expected[-1] < 1

    optimizer = make_optimizer()
    scheduler = build(optimizer)["scheduler"]
    before = epoch_rates(optimizer, scheduler, scores[:stop])[:-1]
    state = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    optimizer = make_optimizer()
    scheduler = build(optimizer)["scheduler"]
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert before + epoch_rates(optimizer, scheduler, scores[stop:]) == expected


def test_a_resumed_run_follows_its_new_length():
    optimizer = make_optimizer()
    scheduler = poly(optimizer, **RUN)["scheduler"]
    advance(optimizer, scheduler, STEPS)
    longer = make_optimizer()
    resumed = poly(longer, total_steps=2 * STEPS, steps_per_epoch=EPOCH)["scheduler"]
    resumed.load_state_dict(through_a_file(scheduler.state_dict()))
    resumed.step()
    assert longer.param_groups[0]["lr"] == pytest.approx((1 - 41 / 80) ** 0.9)


# Mistakes


@pytest.mark.parametrize("factory", [constant, poly, cosine, cosine_restarts, to_max])
def test_a_warmup_longer_than_the_run_names_both(factory):
    with pytest.raises(ConfigError, match=r"50 steps \(5 epochs\).*40 steps \(4 epochs\)"):
        factory(make_optimizer(), **RUN, warmup_epochs=5)


def test_a_warmup_as_long_as_the_run_is_allowed():
    assert rates(partial(poly, warmup_epochs=4))[-1] == 1


@pytest.mark.parametrize(
    ("factory", "option", "value"),
    [
        (constant, "warmup_epochs", -1),
        (poly, "power", -0.9),
        (poly, "min_factor", 1.5),
        (cosine, "min_factor", -0.1),
        (cosine_restarts, "cycle_epochs", 0.01),
        (cosine_restarts, "multiplier", 0.5),
        (cosine_restarts, "min_factor", 2),
        (one_cycle, "pct_start", 1.0),
        (one_cycle, "div_factor", 0),
        (one_cycle, "final_div_factor", -1),
        (one_cycle, "total_steps", math.inf),
        (poly, "total_steps", 0),
        (poly, "steps_per_epoch", 0),
        (to_max, "mode", "maxx"),
        (to_max, "factor", 1.5),
        (to_max, "patience", -1),
        (to_max, "min_factor", -1),
    ],
)
def test_an_option_out_of_range_is_named(factory, option, value):
    with pytest.raises(ConfigError, match=rf"scheduler\.{option}: found {value!r}, expected"):
        factory(make_optimizer(), **{**RUN, option: value})


# Config


def load(group, name):
    config = OmegaConf.create(
        {"monitor": "val/miou", "monitor_mode": "max", group: OmegaConf.load(CONF / group / name)}
    )
    return config[group]


@pytest.mark.parametrize("name", sorted(path.name for path in (CONF / "optimizer").glob("*.yaml")))
def test_every_optimizer_config_builds(name):
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = hydra.utils.instantiate(load("optimizer", name))([parameter])
    parameter.sum().backward()
    optimizer.step()
    assert parameter.item() < 1


@pytest.mark.parametrize("name", sorted(path.name for path in (CONF / "scheduler").glob("*.yaml")))
@pytest.mark.parametrize("optimizer", ["adamw.yaml", "sgd.yaml"])
def test_every_scheduler_config_builds_and_starts_above_zero(name, optimizer):
    built = hydra.utils.instantiate(load("optimizer", optimizer))([torch.nn.Parameter(torch.zeros(1))])
    config = hydra.utils.instantiate(load("scheduler", name))(built, **RUN)
    assert built.param_groups[0]["lr"] > 0
    assert isinstance(config["scheduler"], lr_scheduler.LRScheduler)
    assert config.get("monitor") == ("val/miou" if name == "plateau.yaml" else None)


def test_every_schedule_has_a_config():
    targets = {OmegaConf.load(path)["_target_"].rpartition(".")[2] for path in (CONF / "scheduler").glob("*.yaml")}
    assert targets == {"constant", "poly", "cosine", "cosine_restarts", "one_cycle", "plateau"}
    assert all(callable(getattr(schedulers, target)) for target in targets)
