"""The one strict door to timm's encoders, and what every network needs of an encoder: weights, statistics, sizes.

Names of encoders are timm's here; :mod:`cityseg.models.smp` adds those of segmentation_models_pytorch.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants as hub_constants
from huggingface_hub import get_session
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from cityseg.errors import ConfigError, Problems, did_you_mean
from cityseg.models.network import SegmentationNetwork
from cityseg.tensors import load_tensors

Pretrained = bool | str | Path | None
"""True for the published ImageNet weights, False or None for random ones, or a file (``.safetensors`` or ``.pt``) with
the encoder's weights."""

Options = Mapping[str, Any] | None
"""Arguments of a timm network (``{"img_size": 256}``)."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std of R, G and B in 0..1 over the photos that an encoder was trained on."""

IMAGENET: Statistics = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
MIN_SIZE = 32  # pixels; the stride of whole encoders; also, MiT's first attention pools by 8 at stride 4

_RESERVED = {"pretrained", "num_classes", "in_chans", "features_only", "checkpoint_path"}  # of timm.create_model

# Modules of timm whose networks take any size only when asked to, and how to ask.
_ANY_SIZE: tuple[tuple[tuple[str, ...], dict[str, bool]], ...] = (
    # always_partition: windows keep the size they were trained with, whatever the photo's size
    (("swin_transformer", "swin_transformer_v2"), {"strict_img_size": False, "always_partition": True}),
    (("vision_transformer", "deit", "eva"), {"dynamic_img_size": True}),
)
_HUB_TIMEOUT = 5.0  # seconds


class TimmEncoder(nn.Module):
    """The feature maps of a timm network, channels first.

    Args:
        name: timm's name of the network (``convnext_tiny``).
        pretrained: see :data:`Pretrained`.
        options: see :data:`Options`.

    Attributes:
        channels: of each map.
        reductions: pixels of the photo to one of each map, from fine to coarse.

    Raises:
        ConfigError: as :func:`create` and :func:`load_weights`.
    """

    def __init__(self, name: str, *, pretrained: Pretrained = False, options: Options = None) -> None:
        super().__init__()
        self.model = create(name, pretrained=pretrained, options=options, features_only=True)
        self.channels: list[int] = self.model.feature_info.channels()  # type: ignore[union-attr, operator]
        self.reductions: list[int] = self.model.feature_info.reduction()  # type: ignore[union-attr, operator]
        self._channels_last = getattr(self.model, "output_fmt", None) == "NHWC"
        load_weights(self, name, pretrained, options)

    def forward(self, photos: Tensor) -> list[Tensor]:
        """Normalised photos ``(B, 3, H, W)`` -> maps ``(B, c, H / r, W / r)`` for each of channels and reductions."""
        maps: list[Tensor] = self.model(photos)
        return [feature.permute(0, 3, 1, 2).contiguous() for feature in maps] if self._channels_last else maps


def is_encoder(name: str) -> bool:
    """True if timm has a network of this name and, where one is given, with this tag of weights."""
    try:
        timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # the tag
        return False
    return bool(timm.is_model(name))


def statistics(name: str) -> Statistics:
    """Mean and std of the photos that an encoder's weights were trained on, known without network."""
    config = timm.models.get_pretrained_cfg(name)
    return IMAGENET if config is None else (config.mean, config.std)


def native_size(name: str, options: Options = None) -> int | None:
    """The size in pixels that an encoder was trained at, or is asked to be made for."""
    config = timm.models.get_pretrained_cfg(name)
    size = (options or {}).get("img_size", config.input_size[-1] if config is not None else None)
    return size if isinstance(size, int) else None


def with_any_size(name: str, options: Options) -> dict[str, Any]:
    """The options of an encoder, and those that make it take photos of any size."""
    bare = name.partition(".")[0]
    added = [added for modules, added in _ANY_SIZE if timm.models.is_model_in_modules(bare, modules)]
    return {**(added[0] if added else {}), **(options or {})}


def check(encoder: str, *, num_classes: int, pretrained: Pretrained, dropout: float, options: Options) -> Problems:
    """What shows to be wrong before a network on a timm encoder is built: the start of a builder's own list."""
    problems = Problems(f"the model (encoder={encoder})")
    if not is_encoder(encoder):
        bare = encoder.removeprefix("tu-")
        near = did_you_mean(encoder, [bare] if is_encoder(bare) else [*timm.list_models(), *timm.list_pretrained()])
        problems.add(f"no encoder {encoder!r}.{near}", fix="a name of timm: efficientnet_b0, resnet50, ...")
    elif pretrained is True and not timm.models.is_model_pretrained(encoder):
        problems.add(f"encoder {encoder!r} has no published weights", fix="model.pretrained=false")
    for name in sorted(_RESERVED.intersection(options or ())):
        problems.add(f"encoder_options: {name!r} is set by the network itself")
    check_values(problems, num_classes=num_classes, pretrained=pretrained, dropout=dropout)
    return problems


def check_values(problems: Problems, *, num_classes: int, pretrained: Pretrained, dropout: float) -> None:
    """Add what is wrong with the values that every builder takes."""
    if isinstance(pretrained, str | Path) and not Path(pretrained).is_file():
        found = f"model.pretrained={pretrained}"
        problems.add("no file with the encoder's weights", found, fix="true, false or an existing file")
    if not 0 <= dropout < 1:
        problems.add(f"found dropout={dropout}, expected 0 or more and less than 1")
    if num_classes < 1:
        problems.add(f"found num_classes={num_classes}, expected 1 or more")


def create(name: str, *, pretrained: Pretrained, options: Options, **fixed: Any) -> nn.Module:
    """Build a timm network that takes photos of any size if it can, with published weights if asked.

    Raises:
        ConfigError: if the network does not take the options, or its weights cannot be fetched.
    """
    wanted = pretrained is True
    with building(f"encoder {name!r} cannot be built", download_of=name if wanted else None):
        network: nn.Module = timm.create_model(name, pretrained=wanted, **with_any_size(name, options), **fixed)
        return network


@contextmanager
def building(title: str, *, download_of: str | None = None, fix: str = "") -> Iterator[None]:
    """Say in one line what a library could not build, and why; ``fix`` is added to it.

    Where an encoder's weights may be fetched (``download_of``) and the hub does not answer, only the local cache is
    used: the hub's client would retry for most of a minute.

    Raises:
        ConfigError: in place of whatever is raised inside; where weights cannot be fetched, with both ways out.
    """
    before = hub_constants.HF_HUB_OFFLINE
    if download_of is not None:
        try:
            get_session().head(hub_constants.ENDPOINT, timeout=_HUB_TIMEOUT)
        except Exception:  # the client's library, and so its errors, differ between versions of the hub
            hub_constants.HF_HUB_OFFLINE = True
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        clients = ("httpx", "huggingface_hub", "requests", "urllib")
        if download_of is not None and (isinstance(error, OSError) or type(error).__module__.startswith(clients)):
            raise ConfigError(
                f"the pretrained weights of encoder {download_of!r} cannot be fetched ({_reason(error)}).\n"
                "Fix: model.pretrained=false to start from random weights, or model.pretrained=/path/to/weights "
                "with a local file (.safetensors or .pt) of the encoder's weights"
            ) from error
        raise ConfigError(f"{title}: {_reason(error)}{fix}") from error
    finally:
        hub_constants.HF_HUB_OFFLINE = before


def wrap(
    body: nn.Module,
    *,
    num_classes: int,
    stride: int,
    native: int | None,
    statistics: Statistics,
    min_size: int = MIN_SIZE,
    auxiliary_head: bool = False,
) -> SegmentationNetwork:
    """Wrap the body with the first rule for sizes under which a dry run in eval mode succeeds.

    Most bodies take every multiple of their stride; some encoders with windows take multiples of the size
    they were trained at, and some take only that.

    Args:
        body: encoder and decoder, with logits for ``num_classes``.
        num_classes: number of classes.
        stride: of the encoder's coarsest map, in pixels.
        native: see :func:`native_size`.
        statistics: see :data:`Statistics`.
        min_size: least height and width of what the body sees.
        auxiliary_head: add one, see :meth:`SegmentationNetwork.add_auxiliary_head`.

    Raises:
        Exception: what the body raises under the first rule, if none works.
    """
    rules: list[dict[str, Any]] = [{"divisor": stride, "min_size": min_size}]
    if stride < MIN_SIZE:  # HRNet needs multiples of its whole stride even where only its first maps are used
        rules.append({"divisor": math.lcm(stride, MIN_SIZE)})
    if native is not None:
        rules += [{"divisor": math.lcm(stride, native)}, {"fixed_size": (native, native)}]
    mean, std = statistics
    errors: list[Exception] = []
    for rule in rules:
        network = SegmentationNetwork(body, num_classes=num_classes, mean=mean, std=std, **rule)
        try:
            network.dry_run()
        except Exception as error:
            errors.append(error)
            continue
        if auxiliary_head:
            network.add_auxiliary_head()
        return network
    raise errors[0]


def wrap_timm(
    body: nn.Module, name: str, num_classes: int, *, options: Options = None, auxiliary_head: bool = False
) -> SegmentationNetwork:
    """Wrap a body on a timm encoder, see :func:`wrap`.

    Raises:
        ConfigError: if the body does not work with this encoder.
    """
    with building(f"{type(body).__name__} does not work with encoder {name!r}"):
        return wrap(
            body,
            num_classes=num_classes,
            stride=max(body.encoder.reductions),  # type: ignore[union-attr, arg-type]
            native=native_size(name, options),
            statistics=statistics(name),
            auxiliary_head=auxiliary_head,
        )


def load_weights(encoder: nn.Module, name: str, pretrained: Pretrained, options: Options = None) -> None:
    """Load a local file of a timm network, if one is given, into the encoder made of it, every weight or none.

    Raises:
        ConfigError: as :func:`read_weights` and :func:`fill`.
    """
    if not isinstance(pretrained, str | Path):
        return
    weights = read_weights(Path(pretrained))
    whole = timm.create_model(name, **with_any_size(name, options))
    own = {flat(key): key for key in encoder.state_dict()}
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)  # names of older releases
    if convert is not None and not own.keys() <= {flat(key) for key in weights}:
        with suppress(Exception):  # weights of something else: fill reports their names
            weights = convert(weights, whole)
    weights = {own.get(flat(key), key): weight for key, weight in weights.items()}
    fill(encoder, name, pretrained, weights, unused=whole.state_dict())


def flat(key: str) -> str:
    """A name of a weight without what the feature extractors of the libraries make of it."""
    return re.sub(r"^(model\.)+", "", key).replace(".", "_")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors by name; nothing in it is executed.

    Raises:
        ConfigError: if it is not such a file.
    """
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    except Exception as error:  # what safetensors raises has no common base
        raise ConfigError(f"model.pretrained={path}: not a file of weights ({_reason(error)})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"model.pretrained={path}: found {type(content).__name__}, expected tensors by name")
    return content


def fill(
    encoder: nn.Module, name: str, path: str | Path, weights: Mapping[str, Tensor], unused: Iterable[str] = ()
) -> None:
    """Copy weights, under the encoder's names, into it, every one or none.

    The file may have those named in ``unused`` beside them: the weights of the whole network's head.

    Raises:
        ConfigError: if a weight is missing, has another shape or belongs to something else.
    """
    own = encoder.state_dict()
    problems = Problems(f"model.pretrained={path} (encoder={name})")
    fix = f"weights of {name}, or model.pretrained=false"
    for key in sorted(own.keys() - weights.keys()):
        problems.add("weights missing in the file", key, fix=fix)
    for key in sorted(weights.keys() - own.keys() - set(unused)):
        problems.add("weights in the file that the encoder does not have", key, fix=fix)
    for key in sorted(weights.keys() & own.keys()):
        if weights[key].shape != own[key].shape:
            found, expected = tuple(weights[key].shape), tuple(own[key].shape)
            problems.add("weights of another shape", f"{key}: found {found}, expected {expected}", fix=fix)
    problems.raise_if_any(ConfigError)
    encoder.load_state_dict({key: weights[key] for key in own})


def _reason(error: Exception) -> str:
    """An error of a library in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
