"""A small decoder in the manner of SegNet on a frozen encoder: only the decoder is trained."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cityseg.errors import ConfigError
from cityseg.models import encoders
from cityseg.models.encoders import Options, Pretrained, TimmEncoder
from cityseg.models.network import SegmentationNetwork


def build(
    *,
    encoder: str = "efficientnet_b0",
    num_classes: int,
    pretrained: Pretrained = False,
    freeze_encoder: bool = True,
    dropout: float = 0.0,
    encoder_options: Options = None,
    auxiliary_head: bool = False,
) -> SegmentationNetwork:
    """Build the network, in training mode; what is not said here is as in :func:`cityseg.models.smp.build`.

    The encoder is any timm network that gives feature maps, under timm's name. With ``freeze_encoder`` its weights and
    its statistics of batch normalisation stay as they are, which makes sense with pretrained weights only.
    """
    problems = encoders.check(
        encoder, num_classes=num_classes, pretrained=pretrained, dropout=dropout, options=encoder_options
    )
    if auxiliary_head and freeze_encoder:
        problems.add("auxiliary_head: it helps an encoder to learn, and this one is frozen", fix="freeze_encoder=false")
    problems.raise_if_any(ConfigError)
    whole = timm.models.is_model_in_modules(encoder.partition(".")[0], ["efficientnet"])
    kind = EfficientNetEncoder if whole else TimmEncoder
    body = EfficientSegNet(kind(encoder, pretrained=pretrained, options=encoder_options), num_classes, dropout)
    network = encoders.wrap_timm(body, encoder, num_classes, options=encoder_options, auxiliary_head=auxiliary_head)
    if freeze_encoder:
        body.encoder.requires_grad_(False)
    return network.train()  # frozen batch normalisation goes to eval mode


class EfficientNetEncoder(nn.Module):
    """A whole EfficientNet but for its classifier: also its last 1x1 convolution, which ``features_only`` leaves out.

    The maps are those of every stage of blocks at 1/4 to 1/16, and the last convolution's: of EfficientNet-B0
    (Tan and Le, ICML 2019, table 1) 24, 40, 80, 112 and 1280 channels at 1/4, 1/8, 1/16, 1/16 and 1/32.
    Arguments and attributes are those of :class:`TimmEncoder`.
    """

    model: Any

    def __init__(self, name: str, *, pretrained: Pretrained = False, options: Options = None) -> None:
        super().__init__()
        self.model = encoders.create(name, pretrained=pretrained, options=options, num_classes=0, global_pool="")
        encoders.load_weights(self, name, pretrained, options)
        size = 64
        self._taken = list(range(1, len(self.model.blocks) + 1))  # 0 is the stem
        with torch.no_grad():
            maps = [(m.shape[1], size // m.shape[-1]) for m in self.eval()(torch.zeros(1, 3, size, size))]
        self.train()
        self._taken = [stage for stage in self._taken if 4 <= maps[stage - 1][1] <= 16]
        maps = [*(maps[stage - 1] for stage in self._taken), maps[-1]]
        self.channels, self.reductions = [c for c, _ in maps], [r for _, r in maps]

    def forward(self, photos: Tensor) -> list[Tensor]:
        """Normalised photos ``(B, 3, H, W)`` -> maps ``(B, c, H / r, W / r)`` for each of channels and reductions."""
        last, stages = self.model.forward_intermediates(photos, indices=self._taken, extra_blocks=True)
        return [*stages, last]


class EfficientSegNet(nn.Module):
    """Doubles the coarsest map's size stage by stage up to the photo's, adding the encoder's maps on the way.

    The decoder goes back symmetrically as in SegNet (Badrinarayanan et al., TPAMI 2017), with learnt upsampling in
    place of pooling indices, which an encoder with strided convolutions does not have.
    """

    def __init__(self, encoder: TimmEncoder | EfficientNetEncoder, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        stages = max(round(math.log2(encoder.reductions[-1])), 1)
        channels = encoder.channels[-1]
        # Each stage takes the next finer map, and its number of channels; where none is left it keeps its own.
        self._skips = min(stages, len(encoder.channels) - 1)
        widths = encoder.channels[-2::-1][: self._skips]
        widths += [widths[-1] if widths else channels] * (stages - len(widths))
        self.decoder = nn.ModuleList(
            DecoderStage(before, after) for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.head = nn.Sequential(
            OrderedDict(dropout=nn.Dropout2d(dropout), logits=nn.Conv2d(widths[-1], num_classes, 1))
        )

    def forward(self, photos: Tensor) -> Tensor:
        """Normalised photos ``(B, 3, H, W)`` -> logits ``(B, C, H, W)``."""
        maps = self.encoder(photos)
        x = maps[-1]  # of EfficientNet-B0 (B, 1280, H / 32, W / 32), then 112, 80, 40, 24, 24 channels at 1/16 ... 1/1
        for number, stage in enumerate(self.decoder):
            x = stage(x, maps[-2 - number] if number < self._skips else None)
        logits: Tensor = self.head(x)
        return logits


class DecoderStage(nn.Module):
    """Transposed 2x2 convolution of stride 2, the encoder's map added, 3x3 convolution, normalisation and ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """``(B, in_channels, h, w)`` and a map ``(B, channels, any, any)`` -> ``(B, channels, 2h, 2w)``."""
        x = self.up(x)
        if skip is not None:
            if skip.shape[-2:] != x.shape[-2:]:
                skip = F.interpolate(skip, size=x.shape[-2:], mode="bilinear", align_corners=False)
            x = x + skip
        return F.relu(self.norm(self.conv(x)))
