"""Each published recipe, whole but small: its own layout, task, loss and callbacks on a few tiny scenes."""

import csv
import json
from pathlib import Path

import pytest

from cityseg.checkpoints import load_checkpoint
from cityseg.errors import ConfigError
from cityseg.runs.config import settle
from cityseg.runs.evaluation import evaluate
from cityseg.tasks.adversarial import AdversarialTask
from tests.conftest import TINY
from tests.runs.test_training import interrupt_after, losses, same, weights

EXPERIMENTS = Path(__file__).parent.parent / "conf" / "experiment"
# The recipes' networks are their own: only data and trainer are made small.
SMALL = tuple(key for key in TINY if not key.startswith(("model.", "+model.")))
GAN = ("model.generator.encoder=test_resnet", "model.generator.fpn_channels=16", "model.generator.aspp_channels=16",
       "model.generator.decoder_channels=16", "model.discriminator.base_channels=8")  # fmt: skip
NETWORK = {
    "segmentation_gan": (*GAN, "data.clusters=4"),
    "deeplabv3plus_b3": ("model.encoder=tu-test_resnet",),
    "unet_resnet34": ("model.encoder=tu-test_resnet", "+model.decoder_channels=[32, 16, 16, 8, 8]"),
    "efficient_segnet": (),
}


def figures(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_every_experiment_is_tried_here():
    assert {path.stem for path in EXPERIMENTS.glob("*.yaml")} == set(NETWORK)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "segmentation_gan" else pytest.mark.slow) for name in NETWORK]
)
def test_an_experiment_runs_whole(run_tiny, name):
    folder = run_tiny(f"experiment={name}", *NETWORK[name], "trainer.max_epochs=2", base=SMALL)
    assert figures(folder)["epochs"] == 2
    assert 0 <= figures(folder)["miou"] <= 1


def test_the_recipes_keep_what_they_pin(compose_config):
    gan = compose_config(["experiment=segmentation_gan"])
    assert (gan.data.labels, gan.data.clusters, gan.task.auxiliary_map) == ("kmeans", 10, "expected_index")
    b3 = compose_config(["experiment=deeplabv3plus_b3"])
    assert (b3.optimizer.lr, b3.data.batch_size, b3.trainer.accumulate_grad_batches) == (5e-5, 8, 4)
    assert (b3.loss.weights.focal, b3.loss.weights.dice, b3.model.dropout) == (1.0, 1.1, 0.2)
    unet = compose_config(["experiment=unet_resnet34"])
    assert (unet.optimizer.lr, unet.monitor, unet.trainer.max_epochs) == (1e-4, "val/loss", 10)
    segnet = compose_config(["experiment=efficient_segnet", "data.root=/data/pairs"])
    settle(segnet)
    assert (segnet.data.label_space, segnet.optimizer.lr, segnet.model.freeze_encoder) == ("cityscapes20", 1e-3, True)


def test_what_is_typed_goes_before_what_a_recipe_pins(compose_config):
    config = compose_config(
        ["experiment=deeplabv3plus_b3", "optimizer.lr=1e-3", "model=manet", "model.encoder=resnet18"]
    )
    assert config.optimizer.lr == 1e-3
    assert (config.model.architecture, config.model.encoder, config.model.dropout) == ("manet", "resnet18", 0.2)


def test_any_network_can_be_the_generator(run_tiny):
    folder = run_tiny("model=gan", "model@model.generator=unet", "model.generator.encoder=tu-test_resnet",
                      "+model.generator.decoder_channels=[32, 16, 16, 8, 8]", "model.discriminator.base_channels=8",
                      "task.warmup_epochs=0", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0",
                      "callbacks=[default,ema]", "scheduler=plateau", base=SMALL)  # fmt: skip
    parameters = figures(folder)["parameters"]
    assert parameters["discriminator"] > 0
    with (folder / "history.csv").open() as handle:
        row = next(csv.DictReader(handle))
    for name in ("train/adversarial_loss", "train/discriminator_loss", "train/discriminator_real_accuracy",
                 "optim/gradient_norm"):  # fmt: skip
        assert float(row[name]) == pytest.approx(float(row[name])), name  # there, and no NaN


def test_an_adversarial_checkpoint_is_scored_without_its_discriminator(run_tiny, compose_config, tmp_path):
    folder = run_tiny("model=gan_fpn_aspp", "data=pairs", *GAN, base=SMALL)
    checkpoint = folder / "checkpoints" / "best.ckpt"
    assert any(key.startswith("discriminator.") for key in load_checkpoint(checkpoint).state_dict)
    evaluate(compose_config([f"ckpt={checkpoint}"], name="evaluate"), tmp_path / "scored")
    ours, theirs = figures(tmp_path / "scored"), figures(folder)
    for key in ("miou", "mpa", "loss", "confusion_matrix", "per_class"):
        assert ours[key] == theirs[key], key


@pytest.mark.slow
def test_an_interrupted_and_resumed_adversarial_run_equals_an_uninterrupted_one(run_tiny, monkeypatch):
    overrides = ("model=gan", "model@model.generator=unet", "model.generator.encoder=tu-test_resnet",
                 "+model.generator.decoder_channels=[32, 16, 16, 8, 8]", "model.discriminator.base_channels=8",
                 "data=pairs", "data.labels=kmeans", "data.clusters=4", "callbacks=[default,ema,freezing]",
                 "trainer.accumulate_grad_batches=2", "trainer.max_epochs=3")  # fmt: skip
    whole = run_tiny(*overrides, folder="whole", base=SMALL)
    interrupt_after(run_tiny, monkeypatch, 2, *overrides, folder="stopped", task=AdversarialTask, base=SMALL)
    stopped = whole.parent / "stopped"
    run_tiny(f"resume={stopped}", folder="stopped", base=SMALL)
    assert losses(whole) == losses(stopped)
    for name in ("last", "best"):
        assert same(weights(whole, name), weights(stopped, name))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("task=adversarial",), "no discriminator"),
        (("model=gan", "task=segmentation"), "discriminator that this task does not train"),
        (("model=gan", "+trainer.max_steps=5"), "trainer.max_steps"),
        (("model=gan", "+callbacks.best.every_n_train_steps=3"), "every_n_train_steps"),
        (("model=gan", "trainer.strategy=ddp"), "ddp_find_unused_parameters_true"),
        (("model=gan", "task.auxiliary_map=argmax"), "expected_index"),
        (("model=gan", "task.adversarial_weight=-1"), "adversarial_weight"),
    ],
)
def test_what_the_adversarial_task_cannot_honour_is_refused_by_name(run_tiny, overrides, named):
    with pytest.raises(ConfigError, match=named):
        run_tiny(*overrides, base=SMALL)
