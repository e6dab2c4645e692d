"""Files for products: what they compute, say of themselves, and refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from cityseg import __version__
from cityseg.checkpoints import KEY
from cityseg.errors import CitysegError
from cityseg.labels import label_space
from cityseg.runs import export as module
from cityseg.runs.config import settle
from cityseg.runs.export import FORMATS, MatrixPooling, export
from cityseg.runs.objects import build_network
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # each trains or exports a network

UNET = ("model.encoder=tu-test_resnet", "+model.decoder_channels=[32, 16, 16, 8, 8]")
SPACE = label_space("cityscapes19")
MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
SMALL = {"dpt": "tu-vit_tiny_patch16_224", "segformer": "mit_b0", "upernet": "tu-convnext_atto", "unet": "resnet18"}
WHOLE = ["onnx", "exported", "torchscript"]


@pytest.fixture
def checkpoint(tmp_path, compose_config):
    """Save a checkpoint of random weights as a run does; returns its file and its network."""

    def save(*overrides, extra=None):
        torch.manual_seed(0)
        config = compose_config(overrides)
        settle(config)
        network = build_network(config, SPACE)
        for part in network.modules():  # statistics of training, and logits that differ
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(std=0.1)
                part.running_var.uniform_(0.5, 1.5)
        callback = {"monitor": "val/miou", "current_score": torch.tensor(0.25)}
        content = {
            "state_dict": {f"network.{key}": w for key, w in network.state_dict().items()} | (extra or {}),
            "callbacks": {"best": callback, "last": {"monitor": None, "current_score": None}},
            KEY: {
                "format": 1,
                "version": "0.0",
                "epochs": 7,
                "config": OmegaConf.to_container(config, resolve=False),
                "label_space": SPACE.to_dict(),
            },
        }
        torch.save(content, tmp_path / "best.ckpt")
        return tmp_path / "best.ckpt", network.eval()

    return save


@pytest.fixture
def run_export(compose_config):
    return lambda *overrides: export(compose_config(overrides, name="export"))


@pytest.fixture
def unet(checkpoint):
    return checkpoint(*UNET)


@pytest.fixture
def exported(unet, run_export, shared_files):
    """The file of a format and the network in it; written once."""

    def of(format):
        needs(format)
        if format not in shared_files:
            kept = shared_files["folder"] / f"best{FORMATS[format].suffix}"
            shared_files[format] = run_export(f"ckpt={unet[0]}", f"format={format}", f"output={kept}")
        return shared_files[format], unet[1]

    return of


@pytest.fixture(scope="module")
def shared_files(tmp_path_factory):
    return {"folder": tmp_path_factory.mktemp("exported")}


def photos(batch, height, width):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def runner(path):
    """What the file does, by the readers that its users have."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: [torch.from_numpy(y) for y in session.run(None, {"photos": x.numpy()})]
    return torch.jit.load(path) if path.suffix == ".pt" else torch.export.load(path).module()


def texts(path):
    names = ("cityseg", "label_space", "model", "training", "photos")
    if path.suffix == ".onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        return safe_open(path, "pt").metadata()
    found = dict.fromkeys(names, "")
    if path.suffix == ".pt":
        torch.jit.load(path, _extra_files=found)
    else:
        torch.export.load(path, extra_files=found)
    return {name: text.decode() if isinstance(text, bytes) else text for name, text in found.items()}


def needs(format):
    for package in FORMATS[format].packages:
        pytest.importorskip(package)


@pytest.mark.parametrize("format", WHOLE)
def test_a_file_gives_the_networks_classes_at_every_batch_and_size(exported, format):
    path, network = exported(format)
    predict = runner(path)
    for shape in ((1, 1, 1), (1, 32, 64), (3, 50, 33), (1, 300, 200)):
        x = photos(*shape)
        with torch.no_grad():
            train_ids, probabilities = predict(x)
            expected = network(x).softmax(dim=1)
        assert (train_ids.dtype, train_ids.shape) == (torch.uint8, shape)
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
        assert torch.equal(train_ids, probabilities.argmax(dim=1).to(torch.uint8))


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_says_its_classes_version_training_and_input_but_no_path(exported, format):
    path, _ = exported(format)
    found = texts(path)
    assert json.loads(found["label_space"]) == json.loads(json.dumps(SPACE.to_dict()))
    assert json.loads(found["model"])["encoder"] == "tu-test_resnet"
    assert json.loads(found["training"]) == {"cityseg": "0.0", "epochs": 7, "scale": 1.0, "val/miou": 0.25}
    assert found["cityseg"] == __version__
    assert found["photos"] == "(N, 3, H, W) uint8 RGB, 0 to 255, any H and W"
    if format != "torchscript":  # whose archive tells where each operation came from
        assert b"site-packages" not in path.read_bytes()


def test_an_onnx_file_names_its_inputs_and_outputs(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported("onnx")[0])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("photos", "tensor(uint8)", ["batch", 3, "height", "width"])
    assert [(y.name, y.type) for y in session.get_outputs()] == [
        ("train_ids", "tensor(uint8)"),
        ("probabilities", "tensor(float)"),
    ]


def test_the_example_needs_neither_torch_nor_cityseg(exported, tmp_path):
    path, network = exported("onnx")
    photo = photos(1, 70, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # as phones write it: turn clockwise to see
    turned = Image.fromarray(photo[0].permute(1, 2, 0).numpy()).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "photo.png", exif=exif)
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['cityseg'] = None\n"
        f"sys.argv[1:] = {[str(path), str(tmp_path / 'photo.png'), str(tmp_path / 'labels.png')]}\n"
        f"runpy.run_path({str(ROOT / 'examples/onnx_predict.py')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.rpartition(": ")[0] for line in done.stdout.splitlines()] == list(SPACE.class_names)
    labels = Image.open(tmp_path / "labels.png")
    with torch.no_grad():
        expected = network(photo).argmax(dim=1)[0].numpy().astype(np.uint8)
    np.testing.assert_array_equal(np.array(labels), expected)
    np.testing.assert_array_equal(np.array(labels.convert("RGB")), SPACE.colorize(expected))


def test_weights_alone_come_back_by_the_lines_in_the_docstring(checkpoint, run_export):
    path, network = checkpoint(*UNET, "model.auxiliary_head=true")
    path = run_export(f"ckpt={path}", "format=safetensors")
    (lines,) = re.findall(r"::\n\n((?:    .*\n)+)", module.__doc__)
    code = "import json, hydra, safetensors, safetensors.torch\n" + textwrap.dedent(lines)
    space = {"FILE": path, "photos": photos(2, 50, 60)}
    with torch.no_grad():
        exec(code, space)
        assert torch.equal(space["logits"], network(space["photos"]))
    assert not space["network"].has_auxiliary


def test_of_an_adversarial_checkpoint_the_generator_alone_is_exported(checkpoint, run_export):
    overrides = ("model=gan", "model@model.generator=unet", "model.generator.encoder=tu-test_resnet")
    path, network = checkpoint(*overrides, extra={"discriminator.weight": torch.ones(3)})
    path = run_export(f"ckpt={path}", "format=safetensors")
    from safetensors.torch import load_file

    assert load_file(path).keys() == network.state_dict().keys()
    assert json.loads(texts(path)["model"])["architecture"] == "unet"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["format=onx"], "found 'onx', expected one of onnx, exported.* Did you mean 'onnx'"),
        (["format=safetensors", "ckpt=none.ckpt"], "none.ckpt: no such file"),
        (["format=safetensors", "output=."], "output=.: exists"),
    ],
)
def test_a_mistake_is_named(unet, run_export, overrides, message):
    with pytest.raises(CitysegError, match=message):
        run_export(f"ckpt={unet[0]}", *overrides)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(unet, run_export, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CitysegError, match=r'format=onnx needs onnx\. Fix: pip install "cityseg\[export\]"'):
        run_export(f"ckpt={unet[0]}")


def test_an_existing_file_is_replaced_only_when_asked_and_only_by_one_that_passes(unet, run_export, tmp_path):
    output = tmp_path / "a.safetensors"
    output.write_text("old")
    typed = (f"ckpt={unet[0]}", "format=safetensors", f"output={output}")
    with pytest.raises(CitysegError, match="exists"):
        run_export(*typed)
    with pytest.raises(CitysegError, match=r"was not written: .* differs by 0 .*, expected at most tolerance=-1"):
        run_export(*typed, "overwrite=true", "tolerance=-1")
    assert output.read_text() == "old"
    run_export(*typed, "overwrite=true")
    assert texts(output)
    assert output.stat().st_mode == unet[0].stat().st_mode  # others may read it where they may read the checkpoint
    assert run_export(*typed[:2]) == unet[0].with_suffix(".safetensors")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.safetensors", "best.ckpt", "best.safetensors"]


@pytest.mark.parametrize("wrong", [lambda p: p * 0.99, lambda p: p * torch.nan, lambda p: p[..., 1:]])
def test_a_file_that_computes_something_else_is_refused_and_removed(unet, run_export, monkeypatch, tmp_path, wrong):
    forward = module.Predictor.forward

    def other(self, photos):
        probabilities = wrong(forward(self, photos)[1])
        return probabilities.argmax(dim=1).to(torch.uint8), probabilities

    monkeypatch.setattr(module.Predictor, "forward", other)
    with pytest.raises(CitysegError, match="was not written"):
        run_export(f"ckpt={unet[0]}", "format=torchscript")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


def test_a_network_that_cannot_be_exported_is_named(unet, run_export, monkeypatch, tmp_path, capfd):
    def forward(self, photos):
        return (photos, photos) if photos.float().mean() > 3 else (photos, -photos)

    monkeypatch.setattr(module.Predictor, "forward", forward)
    with pytest.raises(CitysegError, match=r"format=exported cannot hold this network .* Fix: another of onnx"):
        run_export(f"ckpt={unet[0]}", "format=exported")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [1, 2, (3, 3), 6, (4, 1)])
def test_pooling_by_matrices_is_adaptive_pooling(size):
    for height, width in ((7, 9), (6, 12), (3, 2), (1, 1)):
        x = torch.randn(2, 4, height, width)
        torch.testing.assert_close(MatrixPooling(size)(x), nn.AdaptiveAvgPool2d(size)(x))


@pytest.mark.parametrize("format", ["onnx", "exported"])
def test_a_network_of_one_size_is_exported_for_that_size(unet, tmp_path, format):
    needs(format)
    path, network = tmp_path / f"net{FORMATS[format].suffix}", unet[1]
    network.fixed_size = (64, 96)
    module.write(format, network, path, {}, tolerance=1e-5)
    assert texts(path)["photos"] == "(N, 3, H, W) uint8 RGB, 0 to 255, H=64, W=96 only"
    assert runner(path)(photos(3, 64, 96))[0].shape == (3, 64, 96)
    with pytest.raises(Exception, match=r"64"):
        runner(path)(photos(1, 32, 96))


def test_the_command_writes_one_file_and_no_run_folder(unet, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def command(*typed):
        typed = [sys.executable, str(ROOT / "export.py"), f"ckpt={unet[0]}", *typed]
        return subprocess.run(typed, capture_output=True, text=True, cwd=folder)

    done = command("format=torchscript", "output=a/net.pt")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"a/net\.pt: [\d.]+ MB; on random photos \(97x131, 160x96, 70x23\) no probability differs by more than "
        r"[\de.-]+ from PyTorch's\n",
        done.stdout + done.stderr,
    )
    assert [path.relative_to(folder) for path in folder.rglob("*")] == [Path("a"), Path("a/net.pt")]
    done = command("format=torchscrip")
    assert done.returncode == 1
    assert "Did you mean 'torchscript'" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_every_network_can_be_exported(checkpoint, run_export, compose_config, model, format):
    needs(format)
    config = compose_config([f"model={model}"])
    key = "model.generator" if "generator" in config.model else "model"
    path, network = checkpoint(f"model={model}", f"{key}.encoder={SMALL.get(model, 'resnet18')}")
    path = run_export(f"ckpt={path}", f"format={format}")
    if format in WHOLE:
        x = photos(1, 61, 150)
        with torch.no_grad():
            torch.testing.assert_close(runner(path)(x)[1], network(x).softmax(dim=1), atol=1e-4, rtol=0)
