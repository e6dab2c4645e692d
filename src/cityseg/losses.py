"""Segmentation losses that leave void out, stay finite in half precision and take class weights alike.

Every loss is built with ``num_classes``, ``ignore_index`` and ``class_weights``, takes logits ``(B, C, H,
W)`` of any floating dtype and train ids ``(B, H, W)``, and returns a float32 scalar.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cityseg.errors import ConfigError
from cityseg.labels import VOID

CHUNK = 2**15
"""Pixels whose float32 logits stay in the cache of a CPU."""


class SegmentationLoss(nn.Module, ABC):
    """What all losses here share: the checks, float32, void, and the class weights.

    The weights are a buffer, ones where none are given, so that they are saved with a checkpoint and restored
    from it. On a batch with only void pixels the loss is exactly 0, and so are its gradients.

    Args:
        num_classes: number of channels of the logits, ``C``.
        ignore_index: the train id of void pixels.
        class_weights: ``(C,)``, 0 or more; ``None`` for ones.

    Raises:
        ConfigError: if the weights are not ``num_classes`` finite numbers of 0 or more, or another option is out of
            its range.
    """

    class_weights: Tensor

    def __init__(self, *, num_classes: int, ignore_index: int = VOID, class_weights: Tensor | None = None) -> None:
        super().__init__()
        weights = torch.ones(num_classes) if class_weights is None else class_weights.detach().float().clone()
        if weights.shape != (num_classes,) or not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ConfigError(f"class_weights: found {weights.tolist()}, expected {num_classes} finite numbers from 0")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``(B, C, H, W)``, any floating dtype, and train ids ``(B, H, W)``, any integer dtype.

        It is float32 also under autocast: half precision overflows in sums over pixels.

        Raises:
            ValueError: if the shapes do not fit together.
        """
        batch, channels, *size = logits.shape if logits.ndim == 4 else (0, 0)
        if channels != self.num_classes or target.shape != (batch, *size):
            raise ValueError(
                f"found logits {tuple(logits.shape)} and target {tuple(target.shape)}, expected "
                f"(B, {self.num_classes}, H, W) and (B, H, W)"
            )
        with torch.autocast(logits.device.type, enabled=False):
            return self.compute(logits, target.long())

    @abstractmethod
    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """The float32 loss, a scalar, of logits ``(B, C, H, W)`` of any precision and int64 train ids ``(B, H, W)``."""

    def cross_entropy(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0
    ) -> Tensor:
        """Cross-entropy of each pixel, ``(B, H, W)`` float32; 0 where the target is void."""
        # Classes last, as they lie in memory, and on a CPU few pixels at a time: several times as fast as one call for
        # all of (B, C, H, W).
        chunk = CHUNK if logits.device.type == "cpu" else max(target.numel(), 1)
        pixels = torch.split(logits.movedim(1, -1).reshape(-1, self.num_classes), chunk)
        options: dict[str, Any] = {"ignore_index": self.ignore_index, "label_smoothing": label_smoothing}
        losses = [
            F.cross_entropy(some.float(), ids, weight, reduction="none", **options)
            for some, ids in zip(pixels, torch.split(target.flatten(), chunk), strict=True)
        ]
        return torch.cat(losses).view(target.shape)

    def pixel_weights(self, target: Tensor) -> Tensor:
        """Class weight of each pixel's class, ``(B, H, W)`` float32; 0 where the target is void."""
        valid = target != self.ignore_index
        return self.class_weights[target.where(valid, 0)] * valid


class CrossEntropyLoss(SegmentationLoss):
    """Cross-entropy: torch's weighted mean over pixels, but 0 instead of NaN on void alone.

    Args:
        label_smoothing: probability that is spread evenly over all classes, 0 to 1.
        shared: of :class:`SegmentationLoss`.
    """

    def __init__(self, *, label_smoothing: float = 0.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.label_smoothing = _in_range("label_smoothing", label_smoothing, 0, 1)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`SegmentationLoss.compute`."""
        per_pixel = self.cross_entropy(logits, target, self.class_weights, self.label_smoothing)
        return _ratio(per_pixel.sum(), self.pixel_weights(target).sum())


class FocalLoss(SegmentationLoss):
    """Focal loss, ``(1 - p)^gamma * cross-entropy`` of each pixel (Lin et al., ICCV 2017).

    The class weights are the paper's alpha; the mean is weighted by them as in :class:`CrossEntropyLoss`,
    which this loss equals at ``gamma=0``. See https://arxiv.org/abs/1708.02002.

    Args:
        gamma: how strongly well-classified pixels are damped, 0 or more.
        shared: of :class:`SegmentationLoss`.
    """

    def __init__(self, *, gamma: float = 2.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.gamma = _in_range("gamma", gamma)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`SegmentationLoss.compute`."""
        cross_entropy = self.cross_entropy(logits, target)
        # 1 - p without cancellation. The floor keeps the gradient of the power finite at p = 1 for gamma < 1.
        missing = (-torch.expm1(-cross_entropy)).clamp_min(torch.finfo(torch.float32).eps)
        weights = self.pixel_weights(target)
        return _ratio((weights * missing**self.gamma * cross_entropy).sum(), weights.sum())


class DiceLoss(SegmentationLoss):
    """Soft Dice loss: ``1 - (2 |p y| + smooth) / (|p| + |y| + smooth)``, averaged over classes.

    The sums run over the valid pixels of the whole batch, and the mean (weighted by the class weights) over
    the classes that occur in its truth. After Milletari et al., V-Net, 3DV 2016,
    https://arxiv.org/abs/1606.04797, with plain sums in the denominator.

    Args:
        smooth: pixels added to numerator and denominator, 0 or more.
        eps: lower bound of the denominator in pixels, above 0.
        shared: of :class:`SegmentationLoss`.
    """

    def __init__(self, *, smooth: float = 0.0, eps: float = 1e-7, **shared: Any) -> None:
        super().__init__(**shared)
        self.smooth = _in_range("smooth", smooth)
        self.eps = _in_range("eps", eps, torch.finfo(torch.float32).tiny)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`SegmentationLoss.compute`."""
        probabilities = logits.softmax(dim=1, dtype=torch.float32)
        valid = (target != self.ignore_index).unsqueeze(1)
        ids = target.unsqueeze(1).where(valid, 0)
        truth = (ids == torch.arange(self.num_classes, device=ids.device).view(1, -1, 1, 1)) & valid  # (B, C, H, W)
        # Gathering, unlike comparing, refuses a train id that is out of range.
        intersection = (probabilities.gather(1, ids) * truth).sum(dim=(0, 2, 3))
        pixels = truth.sum(dim=(0, 2, 3))
        cardinality = (probabilities * valid).sum(dim=(0, 2, 3)) + pixels
        dice = (2 * intersection + self.smooth) / (cardinality + self.smooth).clamp_min(self.eps)
        weights = self.class_weights * (pixels > 0)
        return _ratio((weights * (1 - dice)).sum(), weights.sum())


class LovaszLoss(SegmentationLoss):
    """Lovász-softmax, the convex surrogate of 1 - IoU, on the valid pixels of the whole batch.

    The mean (weighted by the class weights) runs over the classes that occur in the batch's truth. See Berman
    et al., CVPR 2018, https://arxiv.org/abs/1705.08790.
    """

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`SegmentationLoss.compute`.

        Raises:
            ValueError: if a train id is out of range.
        """
        valid = target != self.ignore_index
        ids = target[valid]  # (P,)
        probabilities = logits.softmax(dim=1, dtype=torch.float32).movedim(1, 0)[:, valid]  # (C, P)
        present: list[int] = torch.unique(ids).tolist()
        if not present:
            return logits.float().sum() * 0
        if present[0] < 0 or present[-1] >= self.num_classes:
            raise ValueError(f"found train ids {present}, expected 0 to {self.num_classes - 1} or {self.ignore_index}")
        losses = torch.stack([_lovasz_extension(probabilities[c], ids == c) for c in present])
        weights = self.class_weights[present]
        return _ratio((weights * losses).sum(), weights.sum())


def _lovasz_extension(probability: Tensor, truth: Tensor) -> Tensor:
    """The Lovász extension of one class's Jaccard loss; its probability and truth at each pixel, both ``(P,)``."""
    errors, order = (truth.float() - probability).abs().sort(descending=True)
    foreground = truth[order]
    pixels = truth.sum()
    intersection = pixels - foreground.cumsum(0)
    union = pixels + (~foreground).cumsum(0)
    # The steps of the curve 1 - intersection / union, written out: differences of its points lose all digits
    # in float32 once there are millions of pixels.
    steps = torch.where(foreground, 1 / union, intersection / (union.float() * (union - 1).float()))
    return torch.dot(errors, steps)


class OhemCrossEntropyLoss(SegmentationLoss):
    """Cross-entropy of the hard pixels alone: online hard example mining.

    A pixel is hard if the probability of its true class is below ``threshold``; if there are fewer than
    ``min_kept`` of the valid pixels, the hardest are taken up to that share. The mean over the kept pixels is
    weighted as in :class:`CrossEntropyLoss`. After Shrivastava et al., CVPR 2016,
    https://arxiv.org/abs/1604.03540, as used for segmentation by Wu et al., 2016,
    https://arxiv.org/abs/1605.06885.

    Args:
        threshold: pixels whose true class has a lower probability are kept, 0 to 1.
        min_kept: least share of the valid pixels of a batch to keep, 0 to 1.
        shared: of :class:`SegmentationLoss`.
    """

    def __init__(self, *, threshold: float = 0.7, min_kept: float = 0.1, **shared: Any) -> None:
        super().__init__(**shared)
        self.threshold = _in_range("threshold", threshold, 0, 1)
        self.min_kept = _in_range("min_kept", min_kept, 0, 1)

    def compute(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :meth:`SegmentationLoss.compute`."""
        valid = target != self.ignore_index
        cross_entropy = self.cross_entropy(logits, target)
        # Hardness is compared as cross-entropy, not as probability: tiny probabilities underflow into ties.
        hardness = cross_entropy.detach().where(valid, -1)
        least = (valid.sum() * self.min_kept).ceil().long()
        ranked = hardness.flatten().sort(descending=True).values
        limit = ranked.take((least - 1).clamp_min(0)).where(least > 0, math.inf)
        bound = -math.log(self.threshold) if self.threshold > 0 else math.inf
        kept = valid & ((hardness > bound) | (hardness >= limit))
        weights = self.pixel_weights(target) * kept
        return _ratio((weights * cross_entropy).sum(), weights.sum())


class WeightedSum(nn.Module):
    """A sum of losses, each times its weight.

    Args:
        terms: name -> what builds a loss from the shared options (a ``functools.partial`` of a loss).
        weights: name -> factor of that term; the same names.
        shared: of :class:`SegmentationLoss`, for every term.

    Raises:
        ConfigError: if the names differ, there are none, or a weight is negative or not finite.
    """

    def __init__(
        self, terms: Mapping[str, Callable[..., nn.Module]], weights: Mapping[str, float], **shared: Any
    ) -> None:
        super().__init__()
        if not terms or set(terms) != set(weights):
            names = f"terms {sorted(terms)} and weights {sorted(weights)}"
            raise ConfigError(f"loss: found {names}, expected the same names, one at least")
        self.weights = {name: _in_range(f"weights.{name}", weights[name]) for name in terms}
        self.terms = nn.ModuleDict({name: build(**shared) for name, build in terms.items()})

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The sum, a float32 scalar; arguments as of :meth:`SegmentationLoss.forward`."""
        return torch.stack([self.weights[name] * term(logits, target) for name, term in self.terms.items()]).sum()


def _ratio(total: Tensor, weight: Tensor) -> Tensor:
    """``total / weight``, both scalars, and 0 with zero gradients where no weight is left."""
    return torch.where(weight > 0, total, total * 0) / torch.where(weight > 0, weight, 1)


def _in_range(name: str, value: float, low: float = 0, high: float = math.inf) -> float:
    if not (low <= value <= high and math.isfinite(value)):
        raise ConfigError(f"loss option {name}: found {value}, expected a number from {low:g} to {high:g}")
    return float(value)
