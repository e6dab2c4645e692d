"""Steps as a GPU would do them, without one: torch works out the device of every tensor and refuses what needs a value.

So a tensor that was left on the processor, and anything that makes the processor wait for the device, is an error here.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torchmetrics import Metric

from cityseg.adversarial import AUXILIARY_MAPS
from cityseg.labels import label_space
from cityseg.runs.objects import build_network, build_task
from tests.conftest import ROOT

SPACE = label_space("cityscapes19")
SMALL = ("model.encoder=tu-test_resnet", "model.pretrained=false")
GAN = ("model=gan_fpn_aspp", "model.generator.encoder=test_resnet", "model.generator.pretrained=false")
LOSSES = sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml"))
WAITING = {"lovasz", "ce_lovasz"}  # they sort the valid pixels of the classes that there are


def move(module, device="cuda"):
    """As ``module.to(device)``, which cannot exchange weights for ones that have no memory."""
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, value in own.items():
                if value is not None:
                    moved = torch.empty(value.shape, dtype=value.dtype, device=device)
                    own[name] = nn.Parameter(moved, value.requires_grad) if own is part._parameters else moved
        if isinstance(part, Metric):
            for name in part._defaults:
                value = getattr(part, name)
                setattr(part, name, torch.empty(value.shape, dtype=value.dtype, device=device))
            part._device = torch.device(device)


@pytest.fixture
def on_gpu(compose_config, monkeypatch):
    """Builds the task of a config, its weights on a GPU that is not there; gives it and a batch."""

    def built(*overrides):
        config = compose_config([*overrides, "loss.class_weights=[" + ",".join(["1"] * SPACE.num_classes) + "]"])
        task = build_task(config, SimpleNamespace(label_space=SPACE), build_network(config, SPACE))
        mode = FakeTensorMode()
        with mode:
            move(task)
            task._device = torch.device("cuda")
            photo = torch.empty(2, 3, 64, 96, dtype=torch.uint8, device="cuda")
            batch = {"photo": photo, "target": torch.empty(2, 64, 96, dtype=torch.uint8, device="cuda")}
            task._gradient_norm = torch.empty((), device="cuda")  # of the optimizer, which does not step here
        monkeypatch.setattr(task, "log", lambda *args, **kwargs: None)
        monkeypatch.setattr(task, "manual_backward", lambda loss: None, raising=False)
        optimizer = SimpleNamespace(zero_grad=lambda: None, step=lambda: None)
        monkeypatch.setattr(task, "optimizers", lambda: [optimizer, optimizer])
        trainer = SimpleNamespace(is_last_batch=False, lr_scheduler_configs=[])
        monkeypatch.setattr(type(task), "trainer", property(lambda _: trainer))
        monkeypatch.setattr(type(task), "current_epoch", property(lambda _: 99))
        return task, batch, mode

    return built


def steps(task, batch, mode, batches=1):
    """Train and predict; validation waits only for what it counts."""
    with mode:
        task.train()
        losses = [task.training_step(batch, index) for index in range(batches)]
        assert all(loss is None or loss.is_cuda for loss in losses)
        with torch.no_grad():
            assert task.eval().predict_step(batch, 0).is_cuda
            task.pictures(batch)
    mode.shape_env = ShapeEnv()  # a size or value that only the device knows gets a name, and is no error
    with mode, torch.no_grad():
        assert task.validation_step(batch, 0).is_cuda


@pytest.mark.parametrize("model", ["unet", "deeplabv3plus", "manet", "fpn", "segformer"])
def test_networks_stay_on_the_device(on_gpu, model):
    steps(*on_gpu(f"model={model}", *SMALL))


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - WAITING))
def test_losses_stay_on_the_device_and_do_not_wait(on_gpu, loss):
    steps(*on_gpu(*SMALL, f"loss={loss}"))


@pytest.mark.parametrize("kind", AUXILIARY_MAPS)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_adversarial_steps_stay_on_the_device_and_do_not_wait(on_gpu, kind, accumulated):
    task, batch, mode = on_gpu(*GAN, f"task.auxiliary_map={kind}", f"trainer.accumulate_grad_batches={accumulated}")
    steps(task, batch, mode, batches=accumulated)
    assert not task.accumulating


def test_what_is_left_behind_and_what_waits_is_seen(on_gpu, monkeypatch):
    task, batch, mode = on_gpu(*SMALL)
    monkeypatch.setattr(task.loss, "forward", lambda logits, target: logits.sum() + torch.ones(1))
    with pytest.raises(RuntimeError, match="same device"):
        steps(task, batch, mode)
    monkeypatch.setattr(task.loss, "forward", lambda logits, target: logits.sum() / target.sum().item())
    with pytest.raises(DataDependentOutputException):
        steps(task, batch, mode)
