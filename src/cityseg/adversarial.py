"""The maths of the adversarial model: auxiliary maps that the discriminator sees, and the losses on its judgment.

The discriminator judges a photo together with one map of its labelling. For the generator to learn from the
judgment, the map must be a differentiable function of its logits: an argmax has no gradient, and the largest
probability only teaches it to be sure.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cityseg.errors import ConfigError, did_you_mean

AuxiliaryMap = Literal["expected_index", "straight_through", "probabilities"]
AUXILIARY_MAPS: tuple[AuxiliaryMap, ...] = get_args(AuxiliaryMap)


def map_channels(kind: AuxiliaryMap, num_classes: int) -> int:
    """Channels of an auxiliary map: one, or C of ``probabilities``.

    Raises:
        ConfigError: if there is no map of that name.
    """
    if kind not in AUXILIARY_MAPS:
        known, near = ", ".join(AUXILIARY_MAPS), did_you_mean(str(kind), AUXILIARY_MAPS)
        raise ConfigError(f"task.auxiliary_map: found {kind!r}, expected one of {known}.{near}")
    return num_classes if kind == "probabilities" else 1


def predicted_map(logits: Tensor, void: Tensor, kind: AuxiliaryMap) -> Tensor:
    """The auxiliary map of a prediction, differentiable in the logits.

    - ``expected_index``: the mean class index under the softmax, ``sum_c c * p_c / (C - 1)``;
    - ``straight_through``: the index of the likeliest class, with the gradient of the expected index (Bengio et al.,
      2013, https://arxiv.org/abs/1308.3432);
    - ``probabilities``: the softmax itself (Luc et al., 2016, https://arxiv.org/abs/1611.08408).

    Args:
        logits: ``(B, C, H, W)``, any floating dtype.
        void: ``(B, H, W)`` bool; there the map is 0.
        kind: which map.

    Returns:
        ``(B, M, H, W)`` float32 in 0..1, M as :func:`map_channels`.
    """
    # Classes last, as they lie in memory: along another dimension a softmax takes several times as long.
    probabilities = logits.movedim(1, -1).softmax(dim=-1, dtype=torch.float32)
    if kind == "probabilities":
        chosen = probabilities.movedim(-1, 1)
    else:
        last = max(logits.shape[1] - 1, 1)
        index = torch.arange(logits.shape[1], device=logits.device, dtype=torch.float32)
        chosen = (probabilities * index).sum(dim=-1).unsqueeze(1) / last
        if kind == "straight_through":
            hard = logits.argmax(dim=1, keepdim=True).float() / last
            chosen = hard + (chosen - chosen.detach())
    return chosen.masked_fill(void.unsqueeze(1), 0.0)


def true_map(target: Tensor, void: Tensor, num_classes: int, kind: AuxiliaryMap) -> Tensor:
    """What :func:`predicted_map` gives for a prediction that is sure and has these train ids ``(B, H, W)``."""
    ids = target.long().masked_fill(void, 0)
    if kind == "probabilities":
        chosen = F.one_hot(ids, num_classes).permute(0, 3, 1, 2).float()
    else:
        chosen = ids.unsqueeze(1).float() / max(num_classes - 1, 1)
    return chosen.masked_fill(void.unsqueeze(1), 0.0)


def discriminator_hinge(real: Tensor, fake: Tensor, weight: Tensor) -> Tensor:
    """What the discriminator minimises: ``mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))``.

    See Lim and Ye, 2017, https://arxiv.org/abs/1705.02894, and Miyato et al., ICLR 2018. Real and fake are scores
    ``(B, 1, h, w)``, and weight, of the same shape, says how much each patch counts; the loss is a float32 scalar, 0
    where none does.

    >>> discriminator_hinge(torch.tensor([0.25]), torch.tensor([-3.0]), torch.ones(1)).item()
    0.75
    """
    return _weighted_mean(F.relu(1 - real.float()), weight) + _weighted_mean(F.relu(1 + fake.float()), weight)


def generator_hinge(fake: Tensor, weight: Tensor) -> Tensor:
    """What the generator minimises beside its segmentation loss: ``-mean D(fake)``; shapes as above."""
    return -_weighted_mean(fake.float(), weight)


def accuracy(real: Tensor, fake: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the patches that the discriminator takes for what they are: of the truth, and of the prediction."""
    return _weighted_mean((real > 0).float(), weight), _weighted_mean((fake < 0).float(), weight)


def r1_penalty(discriminator: nn.Module, photo: Tensor, real_map: Tensor, weight: Tensor) -> Tensor:
    """Half the squared gradient of the discriminator's score with respect to real data, a mean over the batch.

    See Mescheder et al., ICML 2018, https://arxiv.org/abs/1801.04406. In float32: it is a gradient of a gradient.
    Photo ``(B, 3, H, W)`` and map ``(B, M, H, W)`` are float; weight is that of each patch, ``(B, 1, h, w)``.
    """
    with torch.autocast(photo.device.type, enabled=False):
        data = [photo.detach().float().requires_grad_(), real_map.detach().float().requires_grad_()]
        scores = discriminator(*data)
        share = weight / weight.flatten(1).sum(dim=1).clamp_min(1e-6).view(-1, 1, 1, 1)
        gradients = torch.autograd.grad((scores * share).sum(), data, create_graph=True)
        squares = torch.stack([gradient.square().flatten(1).sum(dim=1) for gradient in gradients])
        return squares.sum(dim=0).mean() / 2


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1)
