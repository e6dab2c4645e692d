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

from cityseg.errors import ConfigError
from cityseg.models.network import encoder_stages


def build_optimizer(
    factory: Callable[[Any], Optimizer],
    network: nn.Module,
    *,
    encoder_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> Optimizer:
    """The optimizer, from a factory that takes parameters or groups, of a network's :func:`parameter_groups`.

    The head has the factory's own learning rate.
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

    Weights that are frozen for good are left out; ``lr`` is that of the head, which is all outside the encoder.

    Returns:
        The group ``head`` first, then ``encoder``, or with a decay ``encoder_5`` ... ``encoder_1`` from deep to
        shallow; the parameters alone where both factors are 1.

    Raises:
        ConfigError: if a factor is not above 0, or the network has no encoder.
    """
    factors = {"encoder_lr_factor": encoder_lr_factor, "layer_decay": layer_decay}
    wrong = [f"task.{k}: found {v!r}, expected a number above 0" for k, v in factors.items() if not 0 < v < math.inf]
    if wrong:
        raise ConfigError("; ".join(wrong))
    trainable = [p for p in network.parameters() if p.requires_grad]
    if encoder_lr_factor == layer_decay == 1:
        return trainable
    stages = [[p for module in stage for p in module.parameters()] for stage in encoder_stages(network)]
    if not stages:
        raise ConfigError(
            f"task.encoder_lr_factor={encoder_lr_factor:g}, task.layer_decay={layer_decay:g}: this network has no "
            "encoder. Fix: leave both at 1, or choose a model with an encoder"
        )
    rates, names = {"head": lr}, dict.fromkeys(network.parameters(), "head")
    for number, stage in reversed(list(enumerate(stages, start=1))):
        name = "encoder" if layer_decay == 1 else f"encoder_{number}"
        rates[name] = lr * encoder_lr_factor * layer_decay ** (len(stages) - number)
        names |= dict.fromkeys(stage, name)
    members = {name: [p for p in trainable if names[p] == name] for name in rates}
    return [{"params": members[name], "lr": rates[name], "name": name} for name in rates if members[name]]
