"""Writes a network as one file that needs neither cityseg nor its config, and checks it against PyTorch.

Three formats hold the whole way from a photo to its classes, at any size:

===========  =============================  =========================================================
input        ``photos``                     ``(N, 3, H, W)`` uint8 RGB, 0 to 255
output 0     ``train_ids``                  ``(N, H, W)`` uint8, the likeliest class of each pixel
output 1     ``probabilities``              ``(N, C, H, W)`` float32, in the order of the class names
===========  =============================  =========================================================

``onnx`` is for onnxruntime (``examples/onnx_predict.py`` is a whole program), ``exported`` for ``torch.export.load``,
``torchscript`` for ``torch.jit.load``, which torch keeps but no longer develops. Each carries texts by name: JSON
``label_space`` (class names, colours, label ids), ``model``, ``training`` (its ``scale`` is that of the photos it saw:
the file does not scale), ``photos``, and the version of ``cityseg``.

``safetensors`` holds the weights alone, and the same texts. To go on with the network in Python::

    texts = safetensors.safe_open(FILE, "pt").metadata()
    classes = json.loads(texts["label_space"])["class_names"]
    network = hydra.utils.instantiate(json.loads(texts["model"]), num_classes=len(classes))
    network.load_state_dict(safetensors.torch.load_file(FILE))
    logits = network.eval()(photos)
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple, cast
from warnings import catch_warnings

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from cityseg import __version__
from cityseg.checkpoints import Checkpoint, load_checkpoint, load_weights
from cityseg.errors import CitysegError, ConfigError, did_you_mean
from cityseg.files import fresh_file
from cityseg.models.network import SegmentationNetwork
from cityseg.runs.config import network_node
from cityseg.runs.objects import build_network
from cityseg.runs.trust import check_trusted

log = logging.getLogger(__name__)

Predict = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Photos ``(N, 3, H, W)`` uint8 -> train ids ``(N, H, W)`` uint8 and probabilities ``(N, C, H, W)`` float32."""

SIZES = ((2, 131, 97), (1, 96, 160), (3, 23, 70))
"""(N, H, W) of the random photos that a file is checked with: odd, a multiple of most strides, and tiny."""

_OUTPUTS = ["train_ids", "probabilities"]


class ExportError(CitysegError):
    """A network that a format cannot hold, or a file that does not do what the network does."""


def export(config: DictConfig) -> Path:
    """Write the network of a checkpoint, of an adversarial one the generator alone; returns the file.

    Raises:
        CitysegError: if a package is missing, the file exists, or does not score as the network does.
    """
    path, suffix = Path(config.ckpt).expanduser(), find_format(config.format).suffix
    output = path.with_suffix(suffix) if config.output is None else Path(config.output).expanduser()
    if output.is_dir() or (output.exists() and not config.overwrite):
        raise ConfigError(f"output={output}: exists. Fix: another name, or overwrite=true for a file")
    checkpoint = load_checkpoint(path)
    check_trusted(checkpoint.config, config.trusted)
    run = OmegaConf.create(checkpoint.config)
    # The weights are in the checkpoint, and the auxiliary head is for training.
    network_node(run).update({key: False for key in ("pretrained", "auxiliary_head") if key in network_node(run)})
    network = build_network(run, checkpoint.label_space)
    if not isinstance(network, SegmentationNetwork):
        raise ConfigError(f"ckpt={path}: found a {type(network).__name__}, expected a SegmentationNetwork")
    load_weights(network, checkpoint, prefix="network.", leave_out="auxiliary.")
    found = write(config.format, network, output, _texts(checkpoint, run), config.tolerance)
    sizes = [network.fixed_size] if network.fixed_size else [size[1:] for size in SIZES]
    shown, megabytes = ", ".join(f"{width}x{height}" for height, width in sizes), output.stat().st_size / 1e6
    what = "no probability differs by more than"
    log.info("%s: %.1f MB; on random photos (%s) %s %.2g from PyTorch's", output, megabytes, shown, what, found)
    return output


def _texts(checkpoint: Checkpoint, run: DictConfig) -> dict[str, str]:
    """What a file says of itself, with the monitored figure of the checkpoint's epoch, as ``{"val/miou": 0.5}``."""
    own = {"cityseg": checkpoint.version, "epochs": checkpoint.epochs, "scale": run.data.get("scale", 1.0)}
    texts = {
        "label_space": checkpoint.label_space.to_dict(),
        "model": OmegaConf.to_container(network_node(run), resolve=True),
        "training": own | {name: round(score, 5) for name, score in checkpoint.scores.items()},
    }
    return {"cityseg": __version__, **{name: json.dumps(text) for name, text in texts.items()}}


class Predictor(nn.Module):
    """From photos to classes by a copy of a network in eval mode, in operations that exporters follow at every size.

    The same rules as :class:`SegmentationNetwork`, which in Python also checks what it is given.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        network = copy.deepcopy(network).eval()
        for parent in list(network.body.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(parent, name, MatrixPooling(cast(Any, child.output_size)))
        self.body = network.body
        self.divisor = 1 if network.fixed_size else network.divisor
        self.least = -(-network.min_size // self.divisor) * self.divisor
        self.register_buffer("scale", network.scale)
        self.register_buffer("shift", network.shift)
        height, width = network.fixed_size or (2 * self.least, 2 * self.least)
        with torch.no_grad():
            self._enlarges = self.body(torch.zeros(1, 3, height, width)).shape[-1] != width

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        """See :data:`Predict`."""
        height, width = photos.shape[2:]
        padded = self._padded(height), self._padded(width)
        x = photos.to(torch.float32) * self.scale + self.shift
        logits = self.body(F.pad(x, (0, padded[1] - width, 0, padded[0] - height)))
        if self._enlarges:
            logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
        probabilities = logits[..., :height, :width].softmax(dim=1)
        return probabilities.argmax(dim=1).to(torch.uint8), probabilities

    def _padded(self, size: Any) -> Any:
        """The size that the body sees: an int, torch.export's symbol, or a tensor while TorchScript traces."""
        size = (size + self.divisor - 1) // self.divisor * self.divisor
        if self.least <= self.divisor:
            return size
        return size.clamp(min=self.least) if cast(Any, torch.jit).is_tracing() else torch.sym_max(size, self.least)


class MatrixPooling(nn.Module):
    """Adaptive average pooling as two products of matrices: exporters know its own operation at fixed sizes only."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else size

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> ``(B, C, *size)``."""
        if self.size == (1, 1):
            return x.mean(dim=(2, 3), keepdim=True)
        return _bins(self.size[0], x.shape[2], x) @ x @ _bins(self.size[1], x.shape[3], x).T


def _bins(count: int, length: int, like: Tensor) -> Tensor:
    """Share of each cell in each bin, ``(count, length)``: bin i of n is floor(i l / n) to ceil((i + 1) l / n)."""
    cells = torch.arange(length, device=like.device)
    start = torch.arange(count, device=like.device)[:, None] * length
    inside = (cells >= start // count) & (cells < (start + length + count - 1) // count)
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True)


class Format(NamedTuple):
    """A kind of file: `write` gives what the file that is now there does, with `packages` beside our dependencies."""

    suffix: str
    write: Callable[[SegmentationNetwork, Path, Mapping[str, str]], Predict]
    packages: tuple[str, ...] = ()


def find_format(name: str) -> Format:
    """A format by name.

    Raises:
        ExportError: if there is none, or a package that it needs is missing.
    """
    if name not in FORMATS:
        raise ExportError(f"format: found {name!r}, expected one of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    for package in FORMATS[name].packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(f'format={name} needs {package}. Fix: pip install "cityseg[export]"') from error
    return FORMATS[name]


def write(name: str, network: SegmentationNetwork, output: Path, texts: Mapping[str, str], tolerance: float) -> float:
    """Write a network on the CPU, and keep the file, before which an older one stays, only if it does the same.

    Returns:
        The largest difference of a probability on random photos of three sizes, at most `tolerance`.

    Raises:
        ExportError: if the network cannot be written in this format, or the file differs.
        WriteError: if the system refuses to write it.
    """
    kind = find_format(name)
    size = "any H and W" if network.fixed_size is None else "H={}, W={} only".format(*network.fixed_size)
    texts = {**texts, "photos": f"(N, 3, H, W) uint8 RGB, 0 to 255, {size}"}
    with fresh_file(output) as fresh:
        try:
            with _quiet(), torch.no_grad():
                found = _difference(network.eval(), kind.write(network, fresh, texts))
        except OSError:  # of the disk
            raise
        except Exception as error:  # what exporters and runtimes raise has no common base
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            fix = f"another of {', '.join(FORMATS)}"
            raise ExportError(f"format={name} cannot hold this network ({reason}). Fix: {fix}") from error
        if not found <= tolerance:  # also where it is NaN
            what = f"with format={name} a probability differs by {found:.2g} from the network's"
            raise ExportError(f"{output} was not written: {what}, expected at most tolerance={tolerance:.2g}")
    return found


def _difference(network: SegmentationNetwork, predict: Predict) -> float:
    """The largest difference of a probability between the network and a file, NaN if there is one, 1 if ids differ."""
    generator, worst = torch.Generator().manual_seed(0), torch.zeros(())
    for batch, height, width in SIZES:
        height, width = network.fixed_size or (height, width)
        photos = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
        expected = network(photos).softmax(dim=1)
        train_ids, probabilities = predict(photos)
        if probabilities.shape != expected.shape or not torch.equal(train_ids, probabilities.argmax(dim=1)):
            return 1.0
        worst = torch.maximum(worst, (probabilities - expected).abs().max())  # hands NaN on
    return worst.item()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the exporters print and warn of: an error tells what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with catch_warnings(action="ignore"), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)


def _example(network: SegmentationNetwork) -> Tensor:
    batch, *size = SIZES[0]
    return torch.zeros(batch, 3, *(network.fixed_size or size), dtype=torch.uint8)


def _program(network: SegmentationNetwork) -> torch.export.ExportedProgram:
    from torch.fx.experimental.dynamic_spec import ParamsSpec, ShapesSpec, ShapeVar, TensorSpec

    # Dimensions without an example's value: otherwise guards forbid one photo, or photos below the stride.
    batch, height, width = (ShapeVar(name, min=1) for name in ("batch", "height", "width"))
    spec = ShapesSpec(params=ParamsSpec({"photos": TensorSpec([batch, 3, *(network.fixed_size or (height, width))])}))
    program = torch.export.export(Predictor(network), (_example(network),), dynamic_shapes=spec)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _exported(network: SegmentationNetwork, path: Path, texts: Mapping[str, str]) -> Predict:
    file = BytesIO()  # for torch hides, or dies of, what the system says of a file
    torch.export.save(_program(network), file, extra_files=dict(texts))
    path.write_bytes(file.getbuffer())
    return torch.export.load(path).module()


def _onnx(network: SegmentationNetwork, path: Path, texts: Mapping[str, str]) -> Predict:
    import onnx_ir

    program: Any = torch.onnx.export(
        _program(network), (), input_names=["photos"], output_names=_OUTPUTS, verbose=False, external_data=False
    )
    graph = program.model.graph
    for node in graph:
        node.metadata_props.clear()  # where in Python each operation came from
    for value in (*graph.inputs, *graph.outputs):  # torch names dimensions u0, u1, u2, and expressions of these
        names = ("batch", "height", "width") if value.name == "train_ids" else ("batch", "", "height", "width")
        dims = zip(value.shape, names, strict=True)
        value.shape = onnx_ir.Shape([dim if isinstance(dim, int) else name for dim, name in dims])
    program.model.metadata_props.update(texts)
    program.save(path)
    runtime: Any = importlib.import_module("onnxruntime")  # has no type information
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda photos: cast(Any, tuple(map(torch.from_numpy, session.run(_OUTPUTS, {"photos": photos.numpy()}))))


def _torchscript(network: SegmentationNetwork, path: Path, texts: Mapping[str, str]) -> Predict:
    jit: Any = torch.jit  # has little type information
    traced, file = jit.trace(Predictor(network), (_example(network),), check_trace=False), BytesIO()
    jit.save(traced, file, _extra_files=dict(texts))
    path.write_bytes(file.getbuffer())
    return cast(Predict, jit.load(path))


def _safetensors(network: SegmentationNetwork, path: Path, texts: Mapping[str, str]) -> Predict:
    from safetensors.torch import load_file, save

    # Not save_file, whose files none but their owner may read.
    path.write_bytes(save({key: weight.contiguous() for key, weight in network.state_dict().items()}, dict(texts)))
    read = copy.deepcopy(network)
    read.load_state_dict(load_file(path))
    return Predictor(read)


FORMATS = {
    "onnx": Format(".onnx", _onnx, ("onnx", "onnxscript", "onnxruntime")),
    "exported": Format(".pt2", _exported),
    "torchscript": Format(".pt", _torchscript),
    "safetensors": Format(".safetensors", _safetensors),
}
"""Name in the config -> how it is written."""
