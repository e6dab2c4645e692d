"""Learning rates by depth: parameter groups of the head and of the encoder's stages.

Schedules multiply every group's own learning rate, so the ratios set here hold for the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cityseg.errors import ConfigError, Problems
from cityseg.models.network import SegmentationNetwork, encoder_stages


def build_optimizer(
    factory: Callable[[Any], Optimizer],
    network: nn.Module,
    *,
    encoder_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> Optimizer:
    """The optimizer of a network's trainable parameters; the head has the factory's own learning rate.

    Args:
        factory: parameters or parameter groups -> optimizer.
        network: what it trains.
        encoder_lr_factor: see :func:`parameter_groups`.
        layer_decay: see :func:`parameter_groups`.

    Raises:
        ConfigError: as :func:`parameter_groups`.
    """
    lr = float(factory([nn.Parameter(torch.zeros(()))]).defaults["lr"])
    optimizer = factory(parameter_groups(network, lr, encoder_lr_factor=encoder_lr_factor, layer_decay=layer_decay))
    # A fused optimizer would undo the loss scale of float16 itself, too late for gradients to be clipped and logged.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def parameter_groups(
    network: nn.Module, lr: float, *, encoder_lr_factor: float = 1.0, layer_decay: float = 1.0
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Trainable parameters in groups with learning rates of their own.

    The deepest encoder stage has ``lr * encoder_lr_factor``, and each one before it ``layer_decay`` times the next
    deeper one's. (In BEiT, Bao et al., ICLR 2022, https://arxiv.org/abs/2106.08254, the deepest is one decay below
    the head: that is ``encoder_lr_factor = layer_decay``.)

    Args:
        network: whose weights are grouped; those frozen for good are left out.
        lr: of the head, that is of everything outside the encoder.
        encoder_lr_factor: learning rate of the deepest stage over that of the head, above 0.
        layer_decay: learning rate of each stage over that of the next deeper one, above 0.

    Returns:
        The group ``head`` first, then ``encoder``, or with a decay ``encoder_5`` ... ``encoder_1`` from deep to
        shallow; the parameters alone where both factors are 1.

    Raises:
        ConfigError: if a factor is not above 0, or the network has no encoder to apply it to.
    """
    problems = Problems("the task's learning rates")
    for name, value in (("encoder_lr_factor", encoder_lr_factor), ("layer_decay", layer_decay)):
        if not 0 < value < math.inf:
            problems.add(f"task.{name}: found {value!r}, expected a number above 0")
    problems.raise_if_any(ConfigError)
    trainable = [p for p in network.parameters() if p.requires_grad]
    if encoder_lr_factor == layer_decay == 1:
        return trainable
    found = encoder_stages(network) if isinstance(network, SegmentationNetwork) else []
    stages = [[p for module in stage for p in module.parameters()] for stage in found]
    if not stages:
        raise ConfigError(
            f"task.encoder_lr_factor={encoder_lr_factor:g}, task.layer_decay={layer_decay:g}: this network has no "
            "encoder. Fix: leave both at 1, or choose a model with an encoder"
        )
    numbers = {p: number for number, stage in enumerate(stages, start=1) for p in stage}
    rates: dict[str, float] = {"head": lr}
    names = {}
    for number in range(len(stages), 0, -1):
        names[number] = "encoder" if layer_decay == 1 else f"encoder_{number}"
        rates[names[number]] = lr * encoder_lr_factor * layer_decay ** (len(stages) - number)
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for parameter in trainable:
        members[names[numbers[parameter]] if parameter in numbers else "head"].append(parameter)
    return [{"params": members[name], "lr": rates[name], "name": name} for name in rates if members[name]]
