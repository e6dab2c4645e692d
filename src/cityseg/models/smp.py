"""The one strict door to segmentation_models_pytorch: every mistake is named when the network is built.

The library swallows unknown keyword arguments, falls back to other encoders, and finds out at the first batch
that a decoder and an encoder do not fit. :func:`build` checks names and options against what is installed and
runs the network once on an empty photo before it hands it over.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
from timm.data import IMAGENET_DPN_MEAN, IMAGENET_DPN_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from torch import nn

from cityseg.errors import ConfigError, Problems, did_you_mean
from cityseg.models import encoders
from cityseg.models.encoders import MIN_SIZE, Options, Pretrained, Statistics
from cityseg.models.network import SegmentationNetwork

ARCHITECTURES: dict[str, type[nn.Module]] = smp.MODEL_ARCHITECTURES_MAPPING
"""Name in the config -> class of the library."""

_OWN_KEYS = ("encoder", "pretrained", "dropout", "encoder_options", "auxiliary_head")
_RESERVED = {
    "encoder_name": "use `encoder`",
    "encoder_weights": "use `pretrained`",
    "classes": "the number of classes comes from the label space of the data group",
    "in_channels": "photos always have three channels",
    "activation": "networks give logits; the losses and the scores apply the softmax",
    "aux_params": "a classification head is not supported",
}
_FITTING = (
    ".\nFix: unet, manet, fpn, pspnet, upernet and segformer take every encoder but plain vision transformers "
    "(tu-vit_, tu-deit_, tu-beit_, tu-eva_), which dpt takes"
)


def build(
    architecture: str,
    *,
    encoder: str,
    num_classes: int,
    pretrained: Pretrained = False,
    dropout: float = 0.0,
    encoder_options: Options = None,
    auxiliary_head: bool = False,
    **options: Any,
) -> SegmentationNetwork:
    """Build a network of segmentation_models_pytorch, in training mode, that takes photos of any size.

    Args:
        architecture: a name in :data:`ARCHITECTURES`.
        encoder: an encoder of the library, or ``tu-`` and the name of a timm network (``tu-convnext_tiny``).
        num_classes: number of classes, void not counted.
        pretrained: see :data:`cityseg.models.encoders.Pretrained`; weights under the library's or timm's names.
        dropout: share of the decoder's output channels that are dropped in training, in [0, 1).
        encoder_options: arguments of a timm encoder (``{"img_size": 256}``), only with ``tu-``.
        auxiliary_head: add a head that helps in training, see :meth:`SegmentationNetwork.add_auxiliary_head`.
        options: arguments of the library's class: ``encoder_depth``, ``decoder_channels``, ...

    Raises:
        ConfigError: for a name, an option or a combination that does not exist or does not work, and for
            weights that cannot be fetched or do not fit.
    """
    problems = _problems(architecture, encoder, options, pretrained)
    if encoder_options and not encoder.startswith("tu-"):
        problems.add(f"encoder_options {sorted(encoder_options)} are for timm encoders only", fix="encoder=tu-...")
    encoders.check_values(problems, num_classes=num_classes, pretrained=pretrained, dropout=dropout)
    problems.raise_if_any(ConfigError)
    timm_name = encoder[3:] if encoder.startswith("tu-") else None
    timm_options = {} if timm_name is None else encoders.with_any_size(timm_name, encoder_options)
    weights = _weights_name(encoder) if pretrained is True else None
    title = f"architecture {architecture!r} cannot be built with encoder {encoder!r}"
    with encoders.building(title, download_of=None if weights is None else encoder, fix=_FITTING):
        body: Any = ARCHITECTURES[architecture](
            encoder_name=encoder, encoder_weights=weights, in_channels=3, classes=num_classes, **options, **timm_options
        )
    if timm_name is not None:
        encoders.load_weights(body.encoder, timm_name, pretrained, timm_options)
    elif isinstance(pretrained, str | Path):
        _load_own(body.encoder, encoder, Path(pretrained))
    # The same keys whatever the rate: weights of a run with dropout load into one without.
    body.segmentation_head = nn.Sequential(OrderedDict(dropout=nn.Dropout2d(dropout), head=body.segmentation_head))
    stride = int(body.encoder.output_stride)
    if architecture == "dpt":  # the decoder's scales are 1/4, 1/8, ... whatever the encoder's patch
        stride = math.lcm(stride, 2 ** (len(body.encoder.out_channels) + 1))
    with encoders.building(title, fix=_FITTING):
        return encoders.wrap(
            body,
            num_classes=num_classes,
            stride=stride,
            native=None if timm_name is None else encoders.native_size(timm_name, timm_options),
            statistics=_statistics(encoder),
            min_size=stride * 8 if architecture == "pan" else MIN_SIZE,  # PAN halves the last map three times
            auxiliary_head=auxiliary_head,
        )


def _problems(architecture: str, encoder: str, options: Mapping[str, Any], pretrained: Pretrained) -> Problems:
    """What is wrong with the names of architecture, encoder and options."""
    problems = Problems(f"model {architecture!r} with encoder {encoder!r}")
    if architecture in ARCHITECTURES:
        signature = inspect.signature(ARCHITECTURES[architecture])
        taken = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        valid = [*_OWN_KEYS, *(name for name in taken if name not in _RESERVED)]
        for name in options:
            if name in _RESERVED:
                problems.add(f"{name!r} is not a key of the config: {_RESERVED[name]}")
            elif name not in valid:
                near = did_you_mean(name, [*valid, *_RESERVED])
                problems.add(f"{architecture} has no option {name!r}.{near}", fix=f"one of {', '.join(valid)}")
    else:
        near = did_you_mean(architecture, ARCHITECTURES)
        problems.add(f"no architecture {architecture!r}.{near}", fix=f"one of {', '.join(ARCHITECTURES)}")
    if not _is_encoder(encoder):
        bare = encoder.removeprefix("tu-")
        known = [name for name in (bare, f"tu-{bare}") if _is_encoder(name)]
        near = did_you_mean(encoder, known or [*smp.encoders.encoders, *(f"tu-{name}" for name in timm.list_models())])
        problems.add(
            f"no encoder {encoder!r}.{near}",
            fix="an encoder of the library (resnet34, efficientnet-b0, mit_b0, ...), or tu- and a timm name",
        )
    elif pretrained is True and _weights_name(encoder) is None:
        problems.add(f"encoder {encoder!r} has no published weights", fix="model.pretrained=false")
    return problems


def _is_encoder(name: str) -> bool:
    return name in smp.encoders.encoders or (name.startswith("tu-") and encoders.is_encoder(name[3:]))


def _weights_name(encoder: str) -> str | bool | None:
    """What the library calls the encoder's published weights, None where there are none."""
    if encoder.startswith("tu-"):
        return True if timm.models.is_model_pretrained(encoder[3:]) else None
    names = list(smp.encoders.encoders[encoder]["pretrained_settings"])
    return "imagenet" if "imagenet" in names else next(iter(names), None)


def _statistics(encoder: str) -> Statistics:
    """What the library would look up on the network."""
    if encoder.startswith("tu-"):
        return encoders.statistics(encoder[3:])
    if encoder in ("inceptionv4", "inceptionresnetv2", "xception") or encoder.startswith("timm-tf_efficientnet_lite"):
        return IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
    return (IMAGENET_DPN_MEAN, IMAGENET_DPN_STD) if encoder.startswith("dpn") else encoders.IMAGENET


def _load_own(encoder: nn.Module, name: str, path: Path) -> None:
    """Load a file into an encoder of the library, every weight or none."""
    weights = encoders.read_weights(path)
    try:
        encoder.load_state_dict(weights)  # which renames old keys, and drops the head, in the mapping it is given
    except (RuntimeError, KeyError):
        encoders.fill(encoder, name, path, weights)
