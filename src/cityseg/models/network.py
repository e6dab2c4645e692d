"""The one form every network has: photos as the loader gives them in, logits of the same size out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cityseg.errors import ConfigError

LARGE_STEP = 128  # pixels; above it a dry run on several steps would be slow
PROBE_SIZE = 64  # pixels a side of the empty photo that the encoder's feature maps are looked at with


class SegmentationNetwork(nn.Module):
    """Wraps a network that knows nothing of photos so that it takes them at any size.

    Photos are normalised on the device they are on, laid out channels-last, and padded at the right and the
    bottom to a size that the body takes; the logits are cropped back. The padding is zero after
    normalisation, that is the mean colour: unlike reflection, it exists for photos of any size.

    Batch normalisation whose weights are frozen (``requires_grad`` is False) stays in eval mode, so that it keeps
    the statistics it was trained with.

    Args:
        body: ``(B, 3, H, W)`` normalised float -> ``(B, num_classes, h, w)`` logits, at its input's size or smaller.
        num_classes: C.
        mean: mean of R, G and B over the photos the encoder was trained on, in 0..1.
        std: standard deviation of R, G and B, in 0..1.
        divisor: height and width that the body sees are multiples of this many pixels.
        min_size: the least height and width that the body sees.
        fixed_size: the only (height, width) that the body takes, or None where it takes every multiple.

    Attributes:
        min_train_batch: the least batch size in training: 2 where a BatchNorm follows a global pooling.
        auxiliary: the auxiliary head, None unless :meth:`add_auxiliary_head` has made one.

    Raises:
        ValueError: if mean or std are not three numbers, or a std is not positive.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        divisor: int = 1,
        min_size: int = 1,
        fixed_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"found mean={list(mean)}, std={list(std)}, expected three values, std > 0")
        self.body = body.to(memory_format=torch.channels_last)
        self.num_classes = num_classes
        self.divisor, self.min_size, self.fixed_size = divisor, min_size, fixed_size
        self.min_train_batch = 1
        self.auxiliary: nn.Module | None = None
        self._first_maps: dict[str, int] = {}  # what encoder_stages has found
        # Not part of the weights: they are constants of the encoder, which the builder sets again.
        inverse_std = 1.0 / torch.tensor(list(std)).view(1, 3, 1, 1)
        shift = -torch.tensor(list(mean)).view(1, 3, 1, 1) * inverse_std
        self.register_buffer("scale", inverse_std / 255.0, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, photos: Tensor) -> Tensor:
        """Logits ``(B, C, H, W)`` of RGB photos ``(B, 3, H, W)``, uint8 or float, 0 to 255 in both.

        Raises:
            ValueError: if the photos are not of that shape, or the body cannot take their size.
        """
        return self._at_size(self.body(self._prepare(photos)), photos)

    def forward_auxiliary(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the network and of its auxiliary head in one pass, each as of :meth:`forward`. For training only.

        Raises:
            ConfigError: if the network has no auxiliary head.
            ValueError: as :meth:`forward`.
        """
        if self.encoder is None or self.auxiliary is None:
            raise ConfigError("found a network without an auxiliary head. Fix: model.auxiliary_head=true")
        maps: list[Tensor] = []
        handle = self.encoder.register_forward_hook(lambda module, inputs, output: maps.extend(_feature_maps(output)))
        try:
            logits = self.body(self._prepare(photos))
        finally:
            handle.remove()
        return self._at_size(logits, photos), self._at_size(self.auxiliary(maps[-2]), photos)

    def _prepare(self, photos: Tensor) -> Tensor:
        """Photos as the body takes them: normalised and padded, channels last."""
        if photos.ndim != 4 or photos.shape[1] != 3:
            raise ValueError(f"found photos of shape {tuple(photos.shape)}, expected (B, 3, H, W), RGB")
        height, width = photos.shape[-2:]
        padded_height, padded_width = self.padded_size(height, width)
        x = photos.to(self.scale.dtype) * self.scale + self.shift
        x = F.pad(x, (0, padded_width - width, 0, padded_height - height))
        return x.contiguous(memory_format=torch.channels_last)

    def _at_size(self, logits: Tensor, photos: Tensor) -> Tensor:
        """What the body gives for padded photos, at the photos' own size."""
        height, width = photos.shape[-2:]
        padded = self.padded_size(height, width)
        if logits.shape[-2:] != padded:
            logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    def train(self, mode: bool = True) -> Self:
        """Choose training or eval mode; frozen batch normalisation is in eval mode in both."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
                module.eval()
        return self

    @property
    def encoder(self) -> nn.Module | None:
        """The part of the body that gives feature maps, from fine to coarse; None where it has no such part."""
        return _encoder(self)

    @property
    def has_auxiliary(self) -> bool:
        """True if :meth:`forward_auxiliary` can be called."""
        return self.auxiliary is not None

    def add_auxiliary_head(self) -> None:
        """Add a small fully convolutional head on the encoder's second deepest map, at 1/16 in a whole encoder.

        See Zhao et al., Pyramid scene parsing network, CVPR 2017, section 3.3: its loss, of which 0.4 is added in
        training, helps the encoder to learn.

        Raises:
            ConfigError: if the network has no encoder with two feature maps.
        """
        maps = [] if self.encoder is None else _probe(self, {})
        if len(maps) < 2:
            raise ConfigError(
                f"model.auxiliary_head: found {len(maps)} feature maps in the encoder, expected 2 or more. "
                "Fix: model.auxiliary_head=false, or another model"
            )
        channels = maps[-2].shape[1]
        inner = max(channels // 4, 1)
        parts: dict[str, nn.Module] = {
            "conv": nn.Conv2d(channels, inner, 3, padding=1, bias=False),
            "norm": nn.BatchNorm2d(inner),
            "act": nn.ReLU(inplace=True),
            "dropout": nn.Dropout(0.1),
            "head": nn.Conv2d(inner, self.num_classes, 1),
        }
        head = nn.Sequential(OrderedDict(parts))
        self.auxiliary = head.to(device=self.scale.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that the body sees for a photo of this many pixels.

        Raises:
            ValueError: as :meth:`check_size`.
        """
        if self.fixed_size is not None:
            self.check_size(height, width)
            return self.fixed_size
        height, width = max(height, self.min_size), max(width, self.min_size)
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor

    def check_size(self, height: int, width: int) -> None:
        """Check before training that the network takes photos or crops of this many pixels.

        Raises:
            ValueError: if it does not: the body has a fixed size and this one is larger.
        """
        most_high, most_wide = self.fixed_size or (height, width)
        if height > most_high or width > most_wide:
            raise ValueError(
                f"found a photo or crop of {height}x{width} (height x width), expected at most "
                f"{most_high}x{most_wide}: this encoder has a fixed input size. The nearest that works is "
                f"{min(height, most_high)}x{min(width, most_wide)}; for another one choose an encoder that takes any "
                "size"
            )

    def dry_run(self) -> None:
        """Score one empty photo in eval mode, neither square nor an even multiple of the divisor.

        Sets :attr:`min_train_batch`: BatchNorm needs two values a channel, and where a global pooling leaves
        one pixel they have to come from two photos. Ends in training mode; weights, statistics and random
        state stay as they were.

        Raises:
            Exception: whatever the body raises where its parts do not fit together.
        """
        pooled: list[nn.Module] = []

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].ndim == 4 and inputs[0].shape[-2:].numel() == 1:
                pooled.append(module)

        step, least = self.divisor, self.min_size
        size = max(3 * step, least + step), max(5 * step, least + 3 * step)
        if step >= LARGE_STEP:
            size = step, 2 * step
        photo = torch.zeros(1, 3, *(self.fixed_size or size), dtype=torch.uint8, device=self.scale.device)
        handles = [m.register_forward_pre_hook(note) for m in self.modules() if isinstance(m, _BatchNorm)]
        self.eval()
        try:
            with torch.no_grad():
                logits = self(photo)
        finally:
            self.train()
            for handle in handles:
                handle.remove()
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"found logits for {logits.shape[1]} classes, expected {self.num_classes}")
        self.min_train_batch = 2 if pooled else 1


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Count a network's weights.

    Returns:
        ``total`` and ``trainable``, and ``encoder`` (those of the total in it) where the module or its
        ``body`` has one.

    >>> count_parameters(nn.Linear(2, 3))
    {'total': 9, 'trainable': 9}
    """
    counts = {
        "total": sum(p.numel() for p in module.parameters()),
        "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }
    encoder = _encoder(module)
    return counts if encoder is None else counts | {"encoder": sum(p.numel() for p in encoder.parameters())}


def encoder_stages(network: nn.Module) -> list[list[nn.Module]]:
    """Divide the encoder into stages from its input to its output, one for each feature map it gives.

    A weight belongs to the stage of the finest map that depends on it (found by autograd on an empty photo, since
    encoders neither name nor register their parts alike); weights that no map depends on belong to the last stage.
    The stem is in the first one. An encoder whose finest map passes through all of it, as HRNet's does, has few
    stages. The network's modes, weights, gradients and random state stay as they were.

    Returns:
        Modules by stage: each weight of the encoder is in exactly one of them. The modules are the encoder's own,
        except that weights which a module has beside submodules of several stages come in a ``ParameterList``.
        Empty where the network is no :class:`SegmentationNetwork` with an encoder.
    """
    encoder = _encoder(network)
    if encoder is None or not isinstance(network, SegmentationNetwork):
        return []
    if not network._first_maps:
        with torch.enable_grad():
            network._first_maps = _first_maps(network, encoder)
    numbers = {p: network._first_maps[name] for name, p in encoder.named_parameters()}
    stages: list[list[nn.Module]] = [[] for _ in range(max(numbers.values(), default=-1) + 1)]
    current = 0
    for number, part in _parts(encoder, numbers):
        current = current if number is None else number  # what has no weights goes with what it follows
        stages[current].append(part)
    return stages


def _encoder(module: nn.Module) -> nn.Module | None:
    encoder = getattr(getattr(module, "body", module), "encoder", None)
    return encoder if isinstance(encoder, nn.Module) else None


def _first_maps(network: SegmentationNetwork, encoder: nn.Module) -> dict[str, int]:
    """Name of each weight of the encoder -> number of the finest feature map that depends on it."""
    left = {name: p.detach().requires_grad_() for name, p in encoder.named_parameters()}
    found: dict[str, int] = {}
    number = 0
    for feature_map in _probe(network, left):
        if not left or not feature_map.requires_grad:  # some encoders give the photo itself as the first map
            continue
        gradients = torch.autograd.grad(feature_map.sum(), list(left.values()), retain_graph=True, allow_unused=True)
        reached = [name for name, gradient in zip(left, gradients, strict=True) if gradient is not None]
        found |= dict.fromkeys(reached, number)
        left = {name: p for name, p in left.items() if name not in found}
        number += bool(reached)
    return found | dict.fromkeys(left, max(number - 1, 0))


def _probe(network: SegmentationNetwork, weights: dict[str, Tensor]) -> list[Tensor]:
    """The encoder's feature maps of an empty photo in eval mode, with these weights in place of its own."""
    encoder = network.encoder
    assert encoder is not None
    size = network.fixed_size or network.padded_size(PROBE_SIZE, PROBE_SIZE)
    photo = torch.zeros(1, 3, *size, dtype=network.scale.dtype, device=network.scale.device)
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        return _feature_maps(torch.func.functional_call(encoder, weights, (photo,)))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _parts(module: nn.Module, numbers: dict[nn.Parameter, int]) -> Iterator[tuple[int | None, nn.Module]]:
    """The largest parts of a module whose weights have one number, with it; None for parts without weights."""
    found = {numbers[p] for p in module.parameters()}
    if len(found) < 2:
        yield next(iter(found), None), module
        return
    for parameter in module.parameters(recurse=False):
        yield numbers[parameter], nn.ParameterList([parameter])
    for child in module.children():
        yield from _parts(child, numbers)


def _feature_maps(output: Any) -> list[Tensor]:
    """The feature maps ``(B, C, h, w)`` in what an encoder gives, from fine to coarse."""
    if isinstance(output, tuple) and output and isinstance(output[0], list | tuple):
        output = output[0]  # plain vision transformers give their prefix tokens beside the maps
    maps = [output] if isinstance(output, Tensor) else list(output)
    return [part for part in maps if part.ndim == 4 and part.shape[1] > 0]  # the library fills gaps with empty maps
