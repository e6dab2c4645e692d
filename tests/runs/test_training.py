import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from cityseg.checkpoints import load_checkpoint
from cityseg.errors import CheckpointError, ConfigError, DataError
from cityseg.runs.evaluation import evaluate
from cityseg.runs.jobs import run_job
from cityseg.runs.training import INTERRUPTED
from cityseg.tasks.segmentation import SegmentationTask
from tests.conftest import TINY
from tests.data.layouts import save, write_gtfine


def losses(folder):
    with (folder / "history.csv").open() as handle:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in csv.DictReader(handle)
        ]


def weights(folder, name="last"):
    return load_checkpoint(folder / "checkpoints" / f"{name}.ckpt").state_dict


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_leaves_a_folder_that_a_stranger_can_read(run_tiny, cache_dir):
    folder = run_tiny("trainer.max_epochs=2", "callbacks.images.every_n_epochs=1")
    for name in ("history.csv", "metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "plots/curves.png",
                 "plots/confusion.png", "plots/class_iou.png"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert len(list((folder / "predictions").glob("*.png"))) == 3  # of 3 photos the worst 20 are all
    assert list(folder.glob("events*"))
    assert [row["epoch"] for row in losses(folder)] == ["1", "2"]
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["dataset"] == "built-in scenes (gtfine)"
    assert figures["split"] == "val"
    assert figures["images"] == 3
    assert figures["pretrained"] is False
    assert figures["per_class"]["train"]["iou"] is None or figures["per_class"]["train"]["pixels"] == 0
    assert 0 <= figures["miou"] <= 1
    assert len(figures["confusion_matrix"]) == 19


@pytest.mark.parametrize(
    ("typed", "benchmark"), [((), True), pytest.param(("trainer.deterministic=true",), False, marks=pytest.mark.slow)]
)
def test_cudnn_tries_its_algorithms_where_all_photos_have_one_size(run_tiny, monkeypatch, typed, benchmark):
    seen = []
    monkeypatch.setattr(SegmentationTask, "on_fit_start", lambda _: seen.append(torch.backends.cudnn.benchmark))
    run_tiny(*typed)
    assert seen == [benchmark]


def test_best_is_the_best_epoch_and_last_is_the_last(run_tiny):
    folder = run_tiny("trainer.max_epochs=3")
    scores = [float(row["val/miou"]) for row in losses(folder)]
    figures = json.loads((folder / "metrics.json").read_text())
    assert load_checkpoint(folder / "checkpoints/last.ckpt").epochs == 3
    assert figures["best_epoch"] == scores.index(max(scores)) + 1
    assert figures["miou"] == pytest.approx(max(scores), abs=1e-6)


@pytest.mark.parametrize("variation", [pytest.param("data.workers=2", marks=pytest.mark.slow), "seed=42"])
def test_the_same_seed_gives_the_same_run_whatever_the_workers(run_tiny, variation):
    common = ("trainer.max_epochs=2", "augment=strong", "model.dropout=0.2")
    first = run_tiny(*common, folder="first")
    second = run_tiny(*common, variation, folder="second")
    assert losses(first) == losses(second)
    assert same(weights(first), weights(second))


@pytest.mark.slow
def test_another_seed_gives_another_run(run_tiny):
    assert losses(run_tiny(folder="first")) != losses(run_tiny("seed=7", folder="second"))


def interrupt_after(run_tiny, monkeypatch, epochs, *overrides, folder, task=SegmentationTask, base=TINY):
    """Stop a run as Ctrl-C does, in the middle of an epoch."""
    step = task.training_step

    def stopping_step(self, batch, batch_idx):
        if self.current_epoch == epochs and batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(task, "training_step", stopping_step)
        with pytest.raises(SystemExit) as stopped:
            run_tiny(*overrides, folder=folder, base=base)
    return stopped.value.code


@pytest.mark.parametrize(
    ("epochs", "overrides"),
    [
        (2, ("augment=strong", "model.dropout=0.2")),
        pytest.param(0, (), marks=pytest.mark.slow),
        pytest.param(
            1,
            ("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=10", "data.workers=2"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(run_tiny, monkeypatch, epochs, overrides, caplog):
    overrides = ("trainer.max_epochs=4", *overrides)
    whole = run_tiny(*overrides, folder="whole")
    code = interrupt_after(run_tiny, monkeypatch, epochs, *overrides, folder="stopped")
    stopped = whole.parent / "stopped"
    assert code == INTERRUPTED
    assert f"resume={stopped}" in caplog.text
    assert (stopped / "checkpoints/last.ckpt").is_file()
    run_tiny(f"resume={stopped}", folder="stopped")
    assert losses(whole) == losses(stopped)
    assert same(weights(whole), weights(stopped))
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (stopped, whole))
    for figures in (ours, theirs):
        del figures["seconds"]
    assert ours == theirs


def test_a_finished_run_can_be_made_longer_and_counts_the_time_of_both(run_tiny):
    folder = run_tiny("trainer.max_epochs=1")
    history = folder / "history.csv"
    (row,) = csv.DictReader(history.read_text().splitlines())
    history.write_text(history.read_text().replace(row["seconds"], "1000"))
    run_tiny(f"resume={folder}", "trainer.max_epochs=2")
    assert len(losses(folder)) == 2
    assert 1000 < json.loads((folder / "metrics.json").read_text())["seconds"] < 1300


def test_resume_refuses_what_it_cannot_follow(run_tiny, compose_config):
    folder = run_tiny()
    for typed, message in (
        ("trainer.max_epoch=3", "Did you mean 'trainer.max_epochs'"),
        ("model=fpn", "a resumed run keeps its model"),
        ("trainer.max_epochs=0", "max_epochs=0: .* has trained for 1 epochs already. Fix: as many"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_job(compose_config([f"resume={folder}"], folder), folder, [f"resume={folder}", typed], sweep=None)


def test_resume_of_a_folder_without_a_checkpoint_is_an_error(tmp_path, compose_config):
    with pytest.raises(CheckpointError, match=r"found no checkpoint, expected last.ckpt"):
        run_job(compose_config([f"resume={tmp_path}"], tmp_path), tmp_path, [], sweep=None)


@pytest.mark.parametrize("loss", ["cross_entropy", pytest.param("focal_dice", marks=pytest.mark.slow)])
def test_evaluating_the_checkpoint_from_elsewhere_gives_the_same_figures(run_tiny, tmp_path, compose_config, loss):
    folder = run_tiny(f"loss={loss}", "loss.class_weights=enet", "trainer.precision=bf16-mixed")
    final = json.loads((folder / "metrics.json").read_text())
    moved = tmp_path / "elsewhere" / "network.ckpt"
    moved.parent.mkdir()
    shutil.move(folder / "checkpoints/best.ckpt", moved)
    shutil.rmtree(folder)
    evaluate(compose_config([f"ckpt={moved}"], name="evaluate"), tmp_path / "scored")
    again = json.loads((tmp_path / "scored/metrics.json").read_text())
    assert {key: again[key] for key in again if key in final and key != "seconds"} == {
        key: final[key] for key in again if key in final and key != "seconds"
    }
    assert again["miou"] is not None


def test_monitor_names_are_checked_before_anything_starts(run_tiny):
    with pytest.raises(ConfigError, match="Did you mean 'val/miou'"):
        run_tiny("monitor=val/mioo")
    with pytest.raises(ConfigError, match=r"callbacks.early_stopping.monitor: no figure 'val/lost'"):
        run_tiny("callbacks=[default,early_stopping]", "callbacks.early_stopping.monitor=val/lost")
    with pytest.raises(ConfigError, match="monitor_mode=min"):
        run_tiny("monitor=val/loss")


def test_a_missing_folder_is_said_before_training(run_tiny):
    with pytest.raises(DataError, match="no such folder"):
        run_tiny("data.root=/no/such/folder", "model.pretrained=false")


def test_a_network_that_needs_two_images_refuses_a_batch_of_one(run_tiny):
    with pytest.raises(ConfigError, match=r"data\.batch_size: found 1, expected at least 2"):
        run_tiny("model=deeplabv3plus", "model.encoder=resnet18", "~model.decoder_channels", "data.batch_size=1")


def test_a_wrong_option_of_any_part_names_the_nearest(run_tiny):
    with pytest.raises(ConfigError, match="Did you mean 'weight_decay'"):
        run_tiny("+optimizer.weight_decai=0.1")
    with pytest.raises(ConfigError, match="Did you mean 'max_epochs'"):
        run_tiny("+trainer.max_epoch=3")
    with pytest.raises(ConfigError, match="Did you mean 'batch_size'"):
        run_tiny("+data.batchsize=3")


def test_class_weights_as_a_list_must_fit_the_classes(run_tiny):
    with pytest.raises(ConfigError, match=r"loss\.class_weights: found 2 numbers, expected 19"):
        run_tiny("loss.class_weights=[1, 2]")


def test_every_epoch_has_an_order_and_crops_of_its_own(run_tiny, monkeypatch):
    from cityseg.tasks.segmentation import SegmentationTask

    seen = {}
    step = SegmentationTask.training_step

    def recording_step(self, batch, batch_idx):
        seen.setdefault(self.current_epoch, []).append(
            (batch["index"].tolist(), batch["photo"].sum(dim=(1, 2, 3)).tolist())
        )
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationTask, "training_step", recording_step)
    run_tiny("trainer.max_epochs=3", "augment=strong")
    orders = [[index for indices, _ in seen[epoch] for index in indices] for epoch in range(3)]
    crops = [{i: s for indices, sums in seen[epoch] for i, s in zip(indices, sums, strict=True)} for epoch in range(3)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert all(crops[0][index] != crops[1][index] for index in range(6))


def test_early_stopping_stops(run_tiny):
    folder = run_tiny(
        "trainer.max_epochs=6", "callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1",
        "optimizer.lr=0.0", "optimizer.weight_decay=0.0",
    )  # fmt: skip
    assert len(losses(folder)) < 6


def test_accumulation_and_clipping_reach_the_trainer(run_tiny):
    folder = run_tiny("trainer.accumulate_grad_batches=3", "trainer.gradient_clip_val=0.5", "trainer.max_epochs=2")
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_the_config_in_a_checkpoint_is_plain_and_complete(run_tiny):
    config = load_checkpoint(run_tiny() / "checkpoints/best.ckpt").config
    assert type(config) is dict
    assert config["model"]["pretrained"] is False
    assert OmegaConf.create(config).data.seed == 42


def test_batches_of_nothing_but_void_cost_nothing_and_are_counted(tmp_path, run_tiny):
    root = write_gtfine(tmp_path / "void", size=(64, 64))
    for path in (root / "gtFine/train").rglob("*_labelIds.png"):
        save(np.zeros((64, 64)), path)
    folder = run_tiny(f"data.root={root}", "model.pretrained=false", "loss=focal_dice")
    (row,) = losses(folder)
    assert float(row["train/loss"]) == 0
    assert float(row["train/void_batches"]) == 2
    assert math.isfinite(float(row["val/loss"]))


def own_schedule(optimizer, *, total_steps, steps_per_epoch):
    """Code of the user's own, which a config may name."""
    return {"scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer), "interval": "epoch", "frequency": 1}


@pytest.mark.slow
def test_own_code_is_resumed_only_when_trusted(run_tiny):
    own = ("scheduler=none", "scheduler._target_=tests.runs.test_training.own_schedule", "~scheduler.warmup_epochs")
    folder = run_tiny(*own)
    with pytest.raises(ConfigError, match=r"tests\.runs\.test_training\.own_schedule, which is refused"):
        run_tiny(f"resume={folder}", "trainer.max_epochs=2")
    run_tiny(f"resume={folder}", "trainer.max_epochs=2", "trusted=[tests]")
    assert len(losses(folder)) == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_trains_and_keeps_the_names_of_its_weights(run_tiny):
    limits = ("+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1", "callbacks.images=null", "logger=none")
    plain, compiled = run_tiny(*limits, folder="plain"), run_tiny(*limits, "compile=true", folder="compiled")
    one, two = weights(plain), weights(compiled)
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[key], two[key], atol=1e-3) for key in one)


def test_a_compiled_network_with_an_auxiliary_head_is_refused(run_tiny):
    with pytest.raises(ConfigError, match="auxiliary head"):
        run_tiny("compile=true", "model.auxiliary_head=true")


@pytest.mark.slow
def test_a_frozen_random_encoder_is_warned_of(run_tiny, caplog):
    base = tuple(key for key in TINY if not key.startswith(("model.", "+model.")))
    network = ("model=efficient_segnet", "model.encoder=resnet18")
    run_tiny(*network, base=base, folder="trained")
    assert "the encoder stays random" not in caplog.text
    run_tiny(*network, "model.freeze_encoder=true", base=base)
    assert "the encoder stays random" in caplog.text
