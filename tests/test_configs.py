"""Every file in conf/ is composed and run for a moment."""

from pathlib import Path

import pytest

from cityseg.runs.objects import build
from tests.conftest import TINY

CONF = Path(__file__).parent.parent / "conf"
CHECKED_ELSEWHERE = {
    "data": {"_common", "stream"},  # the part that the layouts share; tests/data/test_stream.py: it needs archives
    "model": {path.stem for path in (CONF / "model").glob("*.yaml")},  # tests/models trains each
    "trainer": {"gpu", "ddp", "fsdp"},  # composed below: they need devices
    "logger": {"wandb", "mlflow"},  # composed below: they need their packages
    "task": {"adversarial"},  # tests/test_experiments.py: it comes with model=gan
}


def choices(group):
    stems = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return [f"{group}={stem}" for stem in stems if stem not in CHECKED_ELSEWHERE.get(group, ())]


def side_by_side(*groups):
    """Every choice of every group at least once, in as many runs as the largest group has choices."""
    each = [choices(group) for group in groups]
    return [" ".join(of[run % len(of)] for of in each) for run in range(max(map(len, each)))]


def test_every_group_is_covered():
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    assert groups == {
        "augment",
        "callbacks",
        "cv",
        "data",
        "experiment",  # tests/test_experiments.py
        "logger",
        "loss",
        "model",
        "optimizer",
        "scheduler",
        "task",
        "trainer",
    }


@pytest.mark.parametrize(
    "typed", [*side_by_side("augment", "data", "loss", "optimizer", "scheduler", "task"), *choices("trainer")]
)
def test_every_choice_runs(run_tiny, typed):
    # The trainer's choice must not be overruled by the tiny run's own settings.
    limits = () if typed == "trainer=debug" else ("+trainer.limit_train_batches=1", "+trainer.limit_val_batches=1")
    folder = run_tiny(*typed.split(), *limits, "callbacks.images=null", "logger=none")
    assert (folder / "metrics.json").is_file()


@pytest.mark.parametrize("choice", ["callbacks=[default,early_stopping,ema,freezing]", "logger=[tensorboard,csv]"])
def test_several_choices_of_a_group_run_together(run_tiny, choice):
    assert (run_tiny(choice) / "metrics.json").is_file()


@pytest.mark.parametrize("choice", ["trainer=gpu", "trainer=ddp", "trainer=fsdp", "logger=wandb", "logger=mlflow"])
def test_choices_that_need_more_than_this_machine_compose(compose_config, choice):
    group = choice.partition("=")[0]
    assert compose_config([choice])[group]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_without_its_package_says_what_to_install(compose_config, name):
    try:
        __import__(name)
    except ImportError:
        pass
    else:
        pytest.skip(f"{name} is installed")
    node = compose_config([f"logger={name}"]).logger[name]
    with pytest.raises(Exception, match=name):
        build(node)


NETWORKS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["gtfine", "pairs"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains_on_every_layout(run_tiny, network, layout):
    base = [key for key in TINY if not key.startswith(("model.", "+model."))]
    small = {"dpt": "tu-vit_tiny_patch16_224", "segformer": "mit_b0", "upernet": "tu-convnext_atto"}
    if not network.startswith("gan"):
        base.append(f"model.encoder={small.get(network, 'resnet18')}")
    folder = run_tiny(f"model={network}", f"data={layout}", "logger=none", base=tuple(base))
    assert (folder / "metrics.json").is_file()


@pytest.mark.parametrize("layout", ["gtfine", "pairs", "folders"])
def test_the_built_in_scenes_train_in_every_layout(run_tiny, layout):
    folder = run_tiny(f"data={layout}", "callbacks.images=null")
    assert f"built-in scenes ({layout})" in (folder / "metrics.json").read_text()
