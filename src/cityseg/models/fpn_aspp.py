"""A feature pyramid with atrous spatial pyramid pooling on any timm encoder: the generator of the adversarial model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cityseg.errors import ConfigError
from cityseg.models import encoders
from cityseg.models.encoders import Options, Pretrained, TimmEncoder
from cityseg.models.network import SegmentationNetwork

_FINEST = 4  # pixels of the photo to one of the finest map used, as in Lin et al.
_ASPP = 16  # the stride that atrous rates of 6, 12 and 18 are made for
_DETAIL_CHANNELS = 48  # of the finest map in the decoder: few, so that the coarse maps prevail (Chen et al., 2018)


def build(
    *,
    encoder: str = "efficientnet_b0",
    num_classes: int,
    pretrained: Pretrained = False,
    fpn_channels: int = 256,
    aspp_channels: int = 256,
    decoder_channels: int = 128,
    atrous_rates: Sequence[int] = (6, 12, 18),
    dropout: float = 0.0,
    encoder_options: Options = None,
    auxiliary_head: bool = False,
) -> SegmentationNetwork:
    """Build the network, in training mode; what is not said here is as in :func:`cityseg.models.smp.build`.

    The encoder is any timm network that gives feature maps, under timm's name. Channels are those of each level of the
    pyramid, of each branch of the pooling and what it gives, and of the decoder's two convolutions; rates are the
    dilation of each 3x3 branch of the pooling, in pixels at 1/16.
    """
    problems = encoders.check(
        encoder, num_classes=num_classes, pretrained=pretrained, dropout=dropout, options=encoder_options
    )
    widths = {"fpn_channels": fpn_channels, "aspp_channels": aspp_channels, "decoder_channels": decoder_channels}
    for name, value in widths.items():
        if value < 1:
            problems.add(f"found {name}={value}, expected 1 or more")
    if not atrous_rates or min(atrous_rates) < 1:
        problems.add(f"found atrous_rates={list(atrous_rates)}, expected one or more, each 1 or more")
    problems.raise_if_any(ConfigError)
    features = TimmEncoder(encoder, pretrained=pretrained, options=encoder_options)
    body = FpnAspp(features, num_classes, [*widths.values()], atrous_rates, dropout)
    return encoders.wrap_timm(body, encoder, num_classes, options=encoder_options, auxiliary_head=auxiliary_head)


class FpnAspp(nn.Module):
    """Encoder -> pyramid -> pooling on all levels merged at 1/16 -> decoder with the finest level at 1/4.

    The pooling sits at 1/16, where its rates belong (Chen et al., 2017), on the mean of all levels brought to that
    size (Pang et al., Libra R-CNN, CVPR 2019, section 3.2), so every level takes part in it. The decoder joins its
    result with the finest level as DeepLabV3+ does (Chen et al., 2018).
    """

    def __init__(
        self, encoder: TimmEncoder, num_classes: int, widths: Sequence[int], atrous_rates: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        fpn_channels, aspp_channels, decoder_channels = widths
        self.encoder = encoder
        levels = [(c, r) for c, r in zip(encoder.channels, encoder.reductions, strict=True) if r >= _FINEST]
        self._unused = len(encoder.channels) - len(levels)
        self._merged_level = max((i for i, (_, r) in enumerate(levels) if r <= _ASPP), default=0)
        self.fpn = FeaturePyramid([channels for channels, _ in levels], fpn_channels)
        self.aspp = AtrousPooling(fpn_channels, aspp_channels, atrous_rates)
        self.detail = _convolution(fpn_channels, _DETAIL_CHANNELS, 1)
        self.decoder = nn.Sequential(
            _convolution(aspp_channels + _DETAIL_CHANNELS, decoder_channels, 3),
            _convolution(decoder_channels, decoder_channels, 3),
        )
        self.head = nn.Sequential(
            OrderedDict(dropout=nn.Dropout2d(dropout), logits=nn.Conv2d(decoder_channels, num_classes, 1))
        )

    def forward(self, photos: Tensor) -> Tensor:
        """Normalised photos ``(B, 3, H, W)`` -> logits ``(B, C, H / 4, W / 4)``."""
        maps = self.encoder(photos)[self._unused :]  # of EfficientNet-B0: 24, 40, 112, 320 channels at 1/4 ... 1/32
        pyramid = self.fpn(maps)  # 256 channels at 1/4, 1/8, 1/16, 1/32
        size = pyramid[self._merged_level].shape[-2:]
        merged = torch.stack([_resized(level, size) for level in pyramid]).mean(dim=0)  # (B, 256, H / 16, W / 16)
        context = self.aspp(merged)  # (B, 256, H / 16, W / 16)
        detail = self.detail(pyramid[0])  # (B, 48, H / 4, W / 4)
        joined = torch.cat([_resized(context, detail.shape[-2:]), detail], dim=1)  # (B, 304, H / 4, W / 4)
        logits: Tensor = self.head(self.decoder(joined))  # (B, 128, H / 4, W / 4) -> (B, C, H / 4, W / 4)
        return logits


class FeaturePyramid(nn.Module):
    """Carries what coarse maps know to fine ones (Lin et al., Feature pyramid networks, CVPR 2017, section 3)."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(found, channels, 1) for found in in_channels)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        for convolution in [*self.lateral, *self.smooth]:  # no normalisation follows that would set the scale
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(convolution.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps from fine to coarse -> as many levels of the same sizes, ``(B, channels, h, w)``."""
        levels = [lateral(feature) for lateral, feature in zip(self.lateral, maps, strict=True)]
        for index in range(len(levels) - 1, 0, -1):
            finer = levels[index - 1]
            levels[index - 1] = finer + F.interpolate(levels[index], size=finer.shape[-2:], mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]


class AtrousPooling(nn.Module):
    """Looks at a map in several scales at once (Chen et al., Rethinking atrous convolution, 2017, section 3.3).

    A 1x1 branch, a dilated 3x3 branch for each rate, and one that pools the whole map.
    """

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_convolution(in_channels, channels, 1)])
        self.branches.extend(_convolution(in_channels, channels, 3, rate) for rate in rates)
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), _convolution(in_channels, channels, 1))
        self.project = _convolution(channels * (len(rates) + 2), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` -> ``(B, channels, h, w)``."""
        scales = [branch(x) for branch in self.branches]
        scales.append(self.pooling(x).expand_as(scales[0]))  # (B, channels, 1, 1) -> (B, channels, h, w)
        pooled: Tensor = self.project(torch.cat(scales, dim=1))
        return pooled


def _convolution(in_channels: int, channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    """A map at another size: cells are averaged where it shrinks, interpolated where it grows."""
    if x.shape[-2] >= 2 * size[-2]:
        x = F.avg_pool2d(x, x.shape[-2] // size[-2])  # not adaptive: that one has no deterministic gradient on a GPU
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
