"""The one form every network has: photos as the loader gives them in, logits of the same size out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

LARGE_STEP = 128  # pixels; above it a dry run on several steps would be slow


class SegmentationNetwork(nn.Module):
    """Wraps a network that knows nothing of photos so that it takes them at any size.

    Photos are normalised on the device they are on, laid out channels-last, and padded at the right and the
    bottom to a size that the body takes; the logits are cropped back. The padding is zero after
    normalisation, that is the mean colour: unlike reflection, it exists for photos of any size.

    Attributes:
        body: the wrapped network, ``(B, 3, H, W)`` normalised float -> ``(B, C, h, w)`` logits.
        num_classes: C.
        divisor: height and width that the body sees are multiples of this.
        min_size: the least height and width that the body sees.
        fixed_size: the only (height, width) that the body takes, or None where it takes every multiple.
        min_train_batch: the least batch size in training: 2 where a BatchNorm follows a global pooling.
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
        min_train_batch: int = 1,
    ) -> None:
        """Wrap a network.

        Args:
            body: any network that gives logits, at its input's size or smaller.
            num_classes: number of classes that the body gives.
            mean: mean of R, G and B over the photos the encoder was trained on, in 0..1.
            std: standard deviation of R, G and B, in 0..1.
            divisor: the body's input is padded to multiples of this many pixels.
            min_size: the body's input is padded to at least this many pixels a side.
            fixed_size: (height, width) in pixels if the body takes only this one.
            min_train_batch: the least batch size that the body can be trained with.

        Raises:
            ValueError: if mean or std are not three numbers, or a std or the divisor is not positive.
        """
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"found mean={list(mean)}, std={list(std)}, expected three values, std > 0")
        if divisor < 1:
            raise ValueError(f"found divisor={divisor}, expected 1 or more")
        self.body = body.to(memory_format=torch.channels_last)
        self.num_classes = num_classes
        self.divisor = divisor
        self.min_size = min_size
        self.fixed_size = fixed_size
        self.min_train_batch = min_train_batch
        # Not part of the weights: they are constants of the encoder, which the builder sets again.
        inverse_std = 1.0 / torch.tensor(list(std)).view(1, 3, 1, 1)
        shift = -torch.tensor(list(mean)).view(1, 3, 1, 1) * inverse_std
        self.register_buffer("scale", inverse_std / 255.0, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, photos: Tensor) -> Tensor:
        """Score every pixel for every class.

        Args:
            photos: ``(B, 3, H, W)`` RGB, uint8 or float, 0 to 255 in both.

        Returns:
            Logits ``(B, C, H, W)``, float (the autocast type under autocast).

        Raises:
            ValueError: if the photos are not of that shape, or the body cannot take their size.
        """
        if photos.ndim != 4 or photos.shape[1] != 3:
            raise ValueError(
                f"found photos of shape {tuple(photos.shape)}, expected (B, 3, H, W): a batch of RGB photos"
            )
        height, width = photos.shape[-2:]
        padded_height, padded_width = self.padded_size(height, width)
        x = photos.to(self.scale.dtype) * self.scale + self.shift
        x = F.pad(x, (0, padded_width - width, 0, padded_height - height))
        logits: Tensor = self.body(x.contiguous(memory_format=torch.channels_last))
        if logits.shape[-2:] != x.shape[-2:]:
            logits = F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

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
        if self.fixed_size is None:
            return
        fixed_height, fixed_width = self.fixed_size
        if height > fixed_height or width > fixed_width:
            nearest = min(height, fixed_height), min(width, fixed_width)
            raise ValueError(
                f"found a photo or crop of {height}x{width} (height x width), expected at most "
                f"{fixed_height}x{fixed_width}: this encoder has a fixed input size. The nearest that works "
                f"is {nearest[0]}x{nearest[1]}; for another one choose an encoder that takes any size"
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
        if self.fixed_size is not None:
            size = self.fixed_size
        handles = [m.register_forward_pre_hook(note) for m in self.modules() if isinstance(m, _BatchNorm)]
        self.eval()
        try:
            with torch.no_grad():
                logits = self(torch.zeros(1, 3, *size, dtype=torch.uint8, device=self.scale.device))
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
    parameters = list(module.parameters())
    counts = {
        "total": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
    }
    encoder = getattr(getattr(module, "body", module), "encoder", None)
    if isinstance(encoder, nn.Module):
        counts["encoder"] = sum(p.numel() for p in encoder.parameters())
    return counts
