"""What TensorBoard shows of runs: read back from their event files, and in a real browser."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.conftest import ROOT, TINY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Seven batches, three at a time: three steps an epoch, the last of one batch.
RUN = (
    *TINY, "data.scenes={train: 7, val: 3, size: 64}", "data.batch_size=1", "trainer.accumulate_grad_batches=3",
    "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "callbacks.images.every_n_epochs=1",
)  # fmt: skip
GAN = (
    "model=gan", "model@model.generator=unet", "model.generator.encoder=tu-test_resnet",
    "+model.generator.decoder_channels=[32, 16, 16, 8, 8]", "model.discriminator.base_channels=8",
    "task.warmup_epochs=0",
)  # fmt: skip

pytestmark = pytest.mark.slow


def train(*overrides, cwd):
    command = [sys.executable, ROOT / "train.py", *overrides]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, cache_dir):
    """A plain and an adversarial run, and a sweep of two folds."""
    folder = tmp_path_factory.mktemp("tensorboard")
    cache = f"data.cache_dir={cache_dir}"
    train(*RUN, cache, "hydra.run.dir=outputs/plain/1", cwd=folder)
    train(*(text for text in RUN if "model." not in text), cache, *GAN, "hydra.run.dir=outputs/gan/1", cwd=folder)
    train("-m", "fold=0,1", "name=mycv", *TINY, cache, "optimizer.lr=0.01", cwd=folder)
    return folder / "outputs"


def read(run):
    found = EventAccumulator(str(run), {"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


@pytest.fixture(scope="module")
def events(outputs):
    return {name: read(outputs / name / "1") for name in ("plain", "gan")}


def test_runs_are_called_as_their_folders(outputs):
    runs = {path.parent.relative_to(outputs).as_posix() for path in outputs.rglob("events*")}
    assert runs == {"plain/1", "gan/1", "mycv/multirun/fold=0", "mycv/multirun/fold=1"}
    assert not list(outputs.rglob("hparams.yaml"))


def test_scalars_are_in_groups(events):
    for found in events.values():
        groups = {tag.split("/")[0] for tag in found.Tags()["scalars"]}
        assert groups == {"train", "val", "per-class", "optim", "system", "final"}
    optim = {tag for tag in events["gan"].Tags()["scalars"] if tag.startswith("optim/")}
    names = ("lr", "gradient_norm")
    assert optim == {f"optim/{prefix}{name}" for prefix in ("", "discriminator_") for name in names}


def test_every_task_counts_the_same_steps(events):
    for found in events.values():
        for tag in (
            "train/loss",
            "val/loss",
            "val/miou",
            "per-class/road",
            "optim/gradient_norm",
            "system/epoch_seconds",
        ):
            assert [event.step for event in found.Scalars(tag)] == [2, 5], tag
        for tag in ("panels/0", "panels/1", "panels/2", "val/confusion"):
            assert [event.step for event in found.Images(tag)] == [2, 5], tag
        assert {event.step for event in found.Scalars("train/loss_step")} == set(range(6))
        assert {event.step for event in found.Scalars("optim/lr")} == set(range(6))
        epochs = {event.step: event.value for event in found.Scalars("system/epoch")}
        assert epochs == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 2}


def test_scalars_are_the_figures_of_the_history(outputs, events):
    for name, found in events.items():
        with (outputs / name / "1" / "history.csv").open() as handle:
            rows = list(csv.DictReader(handle))
        assert not any(key.startswith(("per-class/", "system/", "optim/lr")) for key in rows[0])
        same = ("train/loss", "val/miou", "optim/gradient_norm")
        for tag, column in {
            **dict(zip(same, same, strict=True)),
            "system/images_per_second": "images_per_second",
        }.items():
            shown = [event.value for event in found.Scalars(tag)]
            np.testing.assert_allclose(shown, [float(row[column]) for row in rows], rtol=1e-6)


def test_charts_that_belong_together_find_their_tags(events):
    tags = events["gan"].Tags()["scalars"]
    (event,) = events["gan"].Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: chart.multiline.tag for category in layout.category for chart in category.chart}
    found = {title: {tag for tag in tags if any(re.match(p, tag) for p in wanted)} for title, wanted in charts.items()}
    assert found["losses"] == {"train/loss", "val/loss"}
    assert found["IoU of each class"] == {tag for tag in tags if tag.startswith("per-class/")}
    assert found["learning rates"] == {"optim/lr", "optim/discriminator_lr"}
    assert all(found.values()), found


def test_hyperparameters_compare_all_runs(outputs):
    # TensorBoard's own computation of the table, from every run at once.
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.backend_context import Context

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(outputs))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(outputs))))
    found = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, found, None)
    differ = {info.name for info in experiment.hparam_infos if info.differs}
    assert {"fold", "optimizer.lr", "task", "data.batch_size"} <= differ
    assert "model.discriminator.base_channels" in {info.name for info in experiment.hparam_infos}
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics[:5] == [f"final/{key}" for key in ("dice", "loss", "miou", "mpa", "pixel_accuracy")]
    for run in found.values():
        data = HParamsPluginData.FromString(run["_hparams_/session_start_info"])
        values = data.session_start_info.hparams
        assert values["optimizer"].string_value == "optim.AdamW"
        assert not any(key.endswith(("_target_", "_partial_", "workers", "cache_dir")) for key in values)


@pytest.fixture
def address(outputs):
    command = [Path(sys.executable).with_name("tensorboard"), "--logdir", outputs, "--host", "localhost", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines = iter(process.stderr.readline, "")
    yield next(
        found[0].rstrip("/") for line in lines if (found := re.search(r"http://\S+", line)) and "localhost" in line
    )
    process.kill()
    process.communicate()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_every_page_opens_without_an_error_or_a_request_elsewhere(address):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    problems = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        shown = {
            "timeseries": "mycv/multirun/fold=0", "custom_scalars": "IoU of each class", "images": "final/reliability",
            "hparams": "optimizer.lr",
        }  # fmt: skip
        for tab, text in shown.items():
            page = browser.new_page()
            page.on("console", lambda message: message.type == "error" and problems.append(message.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on(
                "request", lambda asked: asked.url.startswith((address, "data:", "blob:")) or problems.append(asked.url)
            )
            page.goto(f"{address}/#{tab}")
            page.get_by_text(text).first.wait_for(timeout=60_000)
            page.close()
        browser.close()
    assert problems == []
