"""The one strict door to segmentation_models_pytorch: every mistake is named when the network is built.

The library swallows unknown keyword arguments, falls back to other encoders, and finds out at the first batch
that a decoder and an encoder do not fit. :func:`build` checks names and options against what is installed and
runs the network once on an empty photo before it hands it over.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import get_session
from safetensors.torch import load_file
from torch import Tensor, nn

from cityseg.errors import ConfigError, Problems, did_you_mean
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

OWN_KEYS = ("encoder", "pretrained", "dropout", "encoder_options")

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

Triple = tuple[float, ...]  # of R, G and B
_HALVES: tuple[Triple, Triple] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_IMAGENET: tuple[Triple, Triple] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DPN: tuple[Triple, Triple] = (124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3

# Modules of timm whose networks take any size only when asked to, and how to ask.
_ANY_SIZE: tuple[tuple[tuple[str, ...], dict[str, bool]], ...] = (
    # always_partition: windows keep the size they were trained with, whatever the photo's size
    (("swin_transformer", "swin_transformer_v2"), {"strict_img_size": False, "always_partition": True}),
    (("vision_transformer", "deit", "eva"), {"dynamic_img_size": True}),
)

_MIN_SIZE = 32  # the stride of whole encoders; also, MiT's first attention pools by 8 at stride 4
_HUB_TIMEOUT = 5.0  # seconds


def build(
    architecture: str,
    *,
    encoder: str,
    num_classes: int,
    pretrained: bool | str | Path | None = False,
    dropout: float = 0.0,
    encoder_options: Mapping[str, Any] | None = None,
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
        options: arguments of the library's class: ``encoder_depth``, ``decoder_channels``, ...

    Returns:
        The network, in training mode.

    Raises:
        ConfigError: for a name, an option or a combination that does not exist or does not work, and for
            weights that cannot be fetched or do not fit.
    """
    _check(architecture, encoder, num_classes, pretrained, dropout, encoder_options, options)
    timm_options = {**_any_size_options(encoder), **(_plain(encoder_options) or {})}
    kwargs = {key: _plain(value) for key, value in options.items()} | timm_options
    weights = _weights_name(encoder) if pretrained is True else None
    try:
        with _hub(wanted=weights is not None):
            body = ARCHITECTURES[architecture](
                encoder_name=encoder, encoder_weights=weights, in_channels=3, classes=num_classes, **kwargs
            )
    except Exception as error:
        if weights is not None and _is_download_error(error):
            raise ConfigError(_no_download(encoder, error)) from error
        raise ConfigError(_refusal(architecture, encoder, error)) from error
    if pretrained and pretrained is not True:
        _load_encoder(body.encoder, encoder, Path(pretrained), timm_options)
    # The same keys whatever the rate: weights of a run with dropout load into one without.
    body.segmentation_head = nn.Sequential(
        OrderedDict(dropout=nn.Dropout2d(dropout), head=body.segmentation_head)  # type: ignore[arg-type]
    )
    native = timm_options.get("img_size", _native_size(encoder))
    return _fit_sizes(architecture, encoder, body, num_classes, native)


def _plain(value: Any) -> Any:
    """Turn config containers into lists and dicts, which the library expects."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _check(
    architecture: str,
    encoder: str,
    num_classes: int,
    pretrained: bool | str | Path | None,
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
    if isinstance(pretrained, str | Path) and not Path(pretrained).is_file():
        found = f"model.pretrained={pretrained}"
        problems.add("no file with the encoder's weights", found, fix="true, false or an existing file")
    if not 0 <= dropout < 1:
        problems.add(f"found dropout={dropout}, expected 0 or more and less than 1")
    if num_classes < 1:
        problems.add(f"found num_classes={num_classes}, expected 1 or more")
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
    return name in smp.encoders.encoders or (name.startswith("tu-") and timm.is_model(name[3:]))


def _nearest_encoders(name: str) -> str:
    bare = name.removeprefix("tu-").removeprefix("timm-")
    if timm.is_model(bare):
        return f" Did you mean 'tu-{bare}'?"
    if bare in smp.encoders.encoders:
        return f" Did you mean {bare!r}?"
    return did_you_mean(name, [*smp.encoders.encoders, *(f"tu-{known}" for known in timm.list_models())])


def _weights_name(encoder: str) -> str | bool | None:
    """What the library calls the encoder's published weights, None where there are none."""
    if encoder.startswith("tu-"):
        config = timm.models.get_pretrained_cfg(encoder[3:])
        return True if config is not None and config.has_weights else None
    names = list(smp.encoders.encoders[encoder]["pretrained_settings"])
    return "imagenet" if "imagenet" in names else next(iter(names), None)


def _normalisation(encoder: str) -> tuple[Triple, Triple]:
    """Mean and std of the photos the encoder's weights were trained on, known without network."""
    if encoder.startswith("tu-"):
        config = timm.models.get_pretrained_cfg(encoder[3:])
        return _IMAGENET if config is None else (config.mean, config.std)
    if encoder in ("inceptionv4", "inceptionresnetv2", "xception") or encoder.startswith("timm-tf_efficientnet_lite"):
        return _HALVES
    return _DPN if encoder.startswith("dpn") else _IMAGENET


def _any_size_options(encoder: str) -> dict[str, bool]:
    if encoder.startswith("tu-"):
        for modules, options in _ANY_SIZE:
            if timm.models.is_model_in_modules(encoder[3:].split(".")[0], modules):
                return options
    return {}


@contextmanager
def _hub(*, wanted: bool) -> Iterator[None]:
    """Use only the local cache where the hub does not answer: its client would retry for most of a minute."""
    before = hub_constants.HF_HUB_OFFLINE
    if wanted:
        try:
            get_session().head(hub_constants.ENDPOINT, timeout=_HUB_TIMEOUT)
        except Exception:  # the client's library, and so its errors, differ between versions of the hub
            hub_constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = before


def _is_download_error(error: Exception) -> bool:
    """True for what the hub, torch.hub and their HTTP clients raise where a file cannot be fetched."""
    clients = ("httpx", "huggingface_hub", "requests", "urllib")
    return isinstance(error, OSError) or type(error).__module__.startswith(clients)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _no_download(encoder: str, error: Exception) -> str:
    return (
        f"the pretrained weights of encoder {encoder!r} cannot be fetched ({_reason(error)}).\n"
        "Fix: model.pretrained=false to start from random weights, or model.pretrained=/path/to/weights "
        "with a local file (.safetensors or .pt) of the encoder's weights"
    )


def _refusal(architecture: str, encoder: str, error: Exception) -> str:
    message = f"architecture {architecture!r} cannot be built with encoder {encoder!r}: {_reason(error)}"
    for pattern, family, takers in _FAMILIES:
        if re.match(pattern, encoder) and architecture not in takers:
            return f"{message}.\nFix: {family} encoders work with {', '.join(takers)}"
    return message


def _fit_sizes(
    architecture: str, encoder: str, body: nn.Module, num_classes: int, native: int | None
) -> SegmentationNetwork:
    """Wrap the body with the first rule for sizes under which a dry run in eval mode succeeds.

    Most bodies take every multiple of their stride; some encoders with windows take multiples of the size
    they were trained at, and some take only that.

    Raises:
        ConfigError: if no rule works, with the reason the first one failed.
    """
    stride = int(body.encoder.output_stride)  # type: ignore[union-attr, arg-type]
    if architecture == "dpt":  # the decoder's scales are 1/4, 1/8, ... whatever the encoder's patch
        stride = math.lcm(stride, 2 ** (len(body.encoder.out_channels) + 1))  # type: ignore[union-attr, arg-type]
    # PAN halves the encoder's last map three times
    rules: list[dict[str, Any]] = [{"divisor": stride, "min_size": stride * 8 if architecture == "pan" else _MIN_SIZE}]
    if stride < _MIN_SIZE:  # HRNet needs multiples of its whole stride even where only its first maps are used
        rules.append({"divisor": math.lcm(stride, _MIN_SIZE)})
    if isinstance(native, int):
        rules += [{"divisor": math.lcm(stride, native)}, {"fixed_size": (native, native)}]
    mean, std = _normalisation(encoder)
    reason: Exception | None = None
    for rule in rules:
        network = SegmentationNetwork(body, num_classes=num_classes, mean=mean, std=std, **rule)
        try:
            network.dry_run()
        except Exception as error:
            reason = reason or error
            continue
        return network
    assert reason is not None
    raise ConfigError(_refusal(architecture, encoder, reason)) from reason


def _native_size(encoder: str) -> int | None:
    """The size in pixels that a timm encoder was trained at."""
    config = timm.models.get_pretrained_cfg(encoder[3:]) if encoder.startswith("tu-") else None
    return int(config.input_size[-1]) if config is not None else None


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors by name; nothing in it is executed.

    Raises:
        ConfigError: if it is not such a file.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch, pickle and safetensors raise has no common base
        raise ConfigError(f"model.pretrained={path}: not a file of weights ({_reason(error)})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"model.pretrained={path}: found {type(content).__name__}, expected tensors by name")
    return content


def _load_encoder(encoder: Any, name: str, path: Path, timm_options: Mapping[str, Any]) -> None:
    """Load a local file into the encoder, every weight or none.

    Raises:
        ConfigError: if a weight is missing, has another shape or belongs to something else.
    """
    weights = _read_weights(path)
    allowed: set[str] = set()
    if name.startswith("tu-"):
        weights, allowed = _timm_names(encoder, name, weights, timm_options)
    else:
        # The library's encoders rename old keys, and drop their head, in the mapping they are given.
        try:
            encoder.load_state_dict(weights)
        except (RuntimeError, KeyError):
            pass
        else:
            return
    own = encoder.state_dict()
    problems = Problems(f"model.pretrained={path} (encoder={name})")
    fix = f"weights of {name}, or model.pretrained=false"
    for key in sorted(own.keys() - weights.keys()):
        problems.add("weights missing in the file", key, fix=fix)
    for key in sorted(weights.keys() - own.keys() - allowed):
        problems.add("weights in the file that the encoder does not have", key, fix=fix)
    for key in sorted(weights.keys() & own.keys()):
        if weights[key].shape != own[key].shape:
            found, expected = tuple(weights[key].shape), tuple(own[key].shape)
            problems.add("weights of another shape", f"{key}: found {found}, expected {expected}", fix=fix)
    problems.raise_if_any(ConfigError)
    encoder.load_state_dict({key: weights[key] for key in own})


def _timm_names(
    encoder: nn.Module, name: str, weights: dict[str, Tensor], timm_options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], set[str]]:
    """Translate timm's names of weights, also those of older releases, into the encoder's.

    Returns:
        The weights under the encoder's names, and the names that only the whole network has: its head.
    """
    whole = timm.create_model(name[3:], **timm_options)
    own = {_flat(key): key for key in encoder.state_dict()}
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if convert is not None and not own.keys() <= {_flat(key) for key in weights}:
        with suppress(Exception):  # weights of something else: their names are reported by the caller
            weights = convert(weights, whole)
    return {own.get(_flat(key), key): weight for key, weight in weights.items()}, set(whole.state_dict())


def _flat(key: str) -> str:
    """A name of a weight without what the feature extractors of the library and of timm make of it."""
    return re.sub(r"^(model\.)+", "", key).replace(".", "_")
