"""The one strict door to segmentation_models_pytorch: every mistake is named when the network is built.

The library swallows unknown keyword arguments, falls back to other encoders, and finds out at the first batch
that a decoder and an encoder do not fit. :func:`build` checks names and options against what is installed and
runs the network once on an empty photo before it hands it over.
"""

from __future__ import annotations

import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
from torch import nn

from cityseg.errors import ConfigError, Problems, did_you_mean
from cityseg.models import encoders
from cityseg.models.encoders import MIN_SIZE, Pretrained, Statistics, plain
from cityseg.models.network import SegmentationNetwork

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "manet": smp.MAnet,
    "deeplabv3": smp.DeepLabV3,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "fpn": smp.FPN,
    "pspnet": smp.PSPNet,
    "pan": smp.PAN,
    "linknet": smp.Linknet,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
    "dpt": smp.DPT,
}
"""Name in the config -> class of the library."""

OWN_KEYS = ("encoder", "pretrained", "dropout", "encoder_options", "auxiliary_head")

_RESERVED = {
    "encoder_name": "use `encoder`",
    "encoder_weights": "use `pretrained`",
    "classes": "the number of classes comes from the label space of the data group",
    "in_channels": "photos always have three channels",
    "activation": "networks give logits; the losses and the scores apply the softmax",
    "aux_params": "a classification head is not supported",
}

_UNDILATED = ("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "upernet", "segformer")
_FAMILIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # pattern of the encoder's name, what it is called, the architectures that take it
    (r"tu-swin", "Swin", (*_UNDILATED, "dpt")),
    (r"tu-(maxvit|maxxvit|coatnet|coatnext)", "MaxViT and CoAtNet", (*_UNDILATED, "dpt")),
    (r"tu-hrnet", "HRNet", (*_UNDILATED, "dpt")),
    (r"mit_b", "MiT", tuple(a for a in ARCHITECTURES if a not in ("unetplusplus", "linknet", "dpt"))),
    (r"tu-(vit|deit|beit|eva)", "Plain vision transformer", ("dpt",)),
    (r"vgg|tu-vgg|densenet|tu-densenet", "VGG and DenseNet", _UNDILATED),
)

_HALVES: Statistics = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_DPN: Statistics = (124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3


def build(
    architecture: str,
    *,
    encoder: str,
    num_classes: int,
    pretrained: Pretrained = False,
    dropout: float = 0.0,
    encoder_options: Mapping[str, Any] | None = None,
    auxiliary_head: bool = False,
    **options: Any,
) -> SegmentationNetwork:
    """Build a network of segmentation_models_pytorch that takes photos of any size.

    Args:
        architecture: a name in :data:`ARCHITECTURES`.
        encoder: an encoder of the library, or ``tu-`` and the name of a timm network (``tu-convnext_tiny``).
        num_classes: number of classes, void not counted.
        pretrained: True for the published ImageNet weights, False or None for random ones, or a file
            (``.safetensors`` or ``.pt``) with the encoder's weights under the library's or timm's names.
        dropout: share of the decoder's output channels that are dropped in training, in [0, 1).
        encoder_options: arguments of a timm encoder (``{"img_size": 256}``), only with ``tu-``.
        auxiliary_head: add a head that helps in training, see :meth:`SegmentationNetwork.add_auxiliary_head`.
        options: arguments of the library's class: ``encoder_depth``, ``decoder_channels``, ...

    Returns:
        The network, in training mode.

    Raises:
        ConfigError: for a name, an option or a combination that does not exist or does not work, and for
            weights that cannot be fetched or do not fit.
    """
    _check(architecture, encoder, num_classes, pretrained, dropout, encoder_options, options)
    timm_options = encoders.with_any_size(encoder[3:], encoder_options) if encoder.startswith("tu-") else {}
    kwargs = {key: plain(value) for key, value in options.items()} | timm_options
    weights = _weights_name(encoder) if pretrained is True else None
    try:
        with encoders.hub(wanted=weights is not None):
            body = ARCHITECTURES[architecture](
                encoder_name=encoder, encoder_weights=weights, in_channels=3, classes=num_classes, **kwargs
            )
    except Exception as error:
        if weights is not None and encoders.is_download_error(error):
            raise ConfigError(encoders.no_download(encoder, error)) from error
        raise ConfigError(_refusal(architecture, encoder, error)) from error
    if pretrained and pretrained is not True:
        _load_encoder(body.encoder, encoder, Path(pretrained), timm_options)
    # The same keys whatever the rate: weights of a run with dropout load into one without.
    body.segmentation_head = nn.Sequential(
        OrderedDict(dropout=nn.Dropout2d(dropout), head=body.segmentation_head)  # type: ignore[arg-type]
    )
    network = _wrap(architecture, encoder, body, num_classes, timm_options)
    if auxiliary_head:
        network.add_auxiliary_head()
    return network


def _check(
    architecture: str,
    encoder: str,
    num_classes: int,
    pretrained: Pretrained,
    dropout: float,
    encoder_options: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> None:
    """Raise all problems that show before anything is built."""
    problems = Problems(f"model {architecture!r} with encoder {encoder!r}")
    if architecture in ARCHITECTURES:
        _check_options(architecture, options, problems)
    else:
        near = did_you_mean(architecture, ARCHITECTURES)
        problems.add(f"no architecture {architecture!r}.{near}", fix=f"one of {', '.join(ARCHITECTURES)}")
    if not _is_encoder(encoder):
        problems.add(
            f"no encoder {encoder!r}.{_nearest_encoders(encoder)}",
            fix="an encoder of the library (resnet34, efficientnet-b0, mit_b0, ...), or tu- and a timm name",
        )
    elif pretrained is True and _weights_name(encoder) is None:
        problems.add(f"encoder {encoder!r} has no published weights", fix="model.pretrained=false")
    if encoder_options and not encoder.startswith("tu-"):
        problems.add(f"encoder_options {sorted(encoder_options)} are for timm encoders only", fix="encoder=tu-...")
    encoders.check_values(problems, num_classes=num_classes, pretrained=pretrained, dropout=dropout)
    problems.raise_if_any(ConfigError)


def _check_options(architecture: str, options: Mapping[str, Any], problems: Problems) -> None:
    signature = inspect.signature(ARCHITECTURES[architecture])
    taken = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    valid = [*OWN_KEYS, *(name for name in taken if name not in _RESERVED)]
    for name in options:
        if name in _RESERVED:
            problems.add(f"{name!r} is not a key of the config: {_RESERVED[name]}")
        elif name not in valid:
            problems.add(
                f"{architecture} has no option {name!r}.{did_you_mean(name, [*valid, *_RESERVED])}",
                fix=f"one of {', '.join(valid)}",
            )


def _is_encoder(name: str) -> bool:
    return name in smp.encoders.encoders or (name.startswith("tu-") and encoders.is_encoder(name[3:]))


def _nearest_encoders(name: str) -> str:
    bare = name.removeprefix("tu-").removeprefix("timm-")
    if encoders.is_encoder(bare):
        return f" Did you mean 'tu-{bare}'?"
    if bare in smp.encoders.encoders:
        return f" Did you mean {bare!r}?"
    return did_you_mean(name, [*smp.encoders.encoders, *(f"tu-{known}" for known in timm.list_models())])


def _weights_name(encoder: str) -> str | bool | None:
    """What the library calls the encoder's published weights, None where there are none."""
    if encoder.startswith("tu-"):
        return True if encoders.has_weights(encoder[3:]) else None
    names = list(smp.encoders.encoders[encoder]["pretrained_settings"])
    return "imagenet" if "imagenet" in names else next(iter(names), None)


def _statistics(encoder: str) -> Statistics:
    if encoder.startswith("tu-"):
        return encoders.statistics(encoder[3:])
    if encoder in ("inceptionv4", "inceptionresnetv2", "xception") or encoder.startswith("timm-tf_efficientnet_lite"):
        return _HALVES
    return _DPN if encoder.startswith("dpn") else encoders.IMAGENET


def _refusal(architecture: str, encoder: str, error: Exception) -> str:
    message = f"architecture {architecture!r} cannot be built with encoder {encoder!r}: {encoders.reason(error)}"
    for pattern, family, takers in _FAMILIES:
        if re.match(pattern, encoder) and architecture not in takers:
            return f"{message}.\nFix: {family} encoders work with {', '.join(takers)}"
    return message


def _wrap(
    architecture: str, encoder: str, body: nn.Module, num_classes: int, timm_options: Mapping[str, Any]
) -> SegmentationNetwork:
    """Let the body take photos of any size.

    Raises:
        ConfigError: if architecture and encoder do not fit together.
    """
    stride = int(body.encoder.output_stride)  # type: ignore[union-attr, arg-type]
    if architecture == "dpt":  # the decoder's scales are 1/4, 1/8, ... whatever the encoder's patch
        stride = math.lcm(stride, 2 ** (len(body.encoder.out_channels) + 1))  # type: ignore[union-attr, arg-type]
    try:
        return encoders.wrap(
            body,
            num_classes=num_classes,
            stride=stride,
            native=encoders.native_size(encoder[3:], timm_options) if encoder.startswith("tu-") else None,
            statistics=_statistics(encoder),
            min_size=stride * 8 if architecture == "pan" else MIN_SIZE,  # PAN halves the last map three times
        )
    except Exception as error:
        raise ConfigError(_refusal(architecture, encoder, error)) from error


def _load_encoder(encoder: Any, name: str, path: Path, timm_options: Mapping[str, Any]) -> None:
    """Load a local file into the encoder, every weight or none.

    Raises:
        ConfigError: if a weight is missing, has another shape or belongs to something else.
    """
    if name.startswith("tu-"):
        encoders.load_weights(encoder, name[3:], path, timm_options)
        return
    weights = encoders.read_weights(path)
    # The library's encoders rename old keys, and drop their head, in the mapping they are given.
    try:
        encoder.load_state_dict(weights)
    except (RuntimeError, KeyError):
        encoders.fill(encoder, name, path, weights, allowed=frozenset())
