"""What evaluate.py does and says beyond one plain pass, judged on the PNGs it writes and by cityscapesScripts."""

import json
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.metrics import jaccard_score
from torch import nn

from cityseg.checkpoints import load_checkpoint
from cityseg.data.images import read_photo
from cityseg.data.samples import Samples
from cityseg.errors import CheckpointError, ConfigError
from cityseg.image_counts import count_pixels
from cityseg.labels import CITYSCAPES_LABELS, label_space
from cityseg.reports.panels import panel
from cityseg.runs import evaluation
from cityseg.runs.evaluation import build_inference, evaluate
from cityseg.runs.objects import build_network
from cityseg.runs.scoring import Cost, PerImage, image_scores
from tests.data.layouts import CLASSES, write_folders

pytestmark = pytest.mark.slow  # each trains or exports a network

SPACE = label_space("cityscapes19")
TRAINED = ("trainer.max_epochs=15", "optimizer.lr=1e-2", "data.batch_size=1", "loss.class_weights=enet")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def trained(run_tiny, kept):
    """A network that has learned a little of the built-in scenes, trained once for this file."""
    ckpt = kept / "best.ckpt"
    if not ckpt.exists():
        shutil.copyfile(run_tiny(*TRAINED) / "checkpoints/best.ckpt", ckpt)
    return ckpt


@pytest.fixture
def scenes(trained, tmp_path, cache_dir):
    """Those scenes with an instanceIds file for each label: every patch of a thing is an instance."""
    (source,) = cache_dir.glob("scenes-*-gtfine-6+3-*")
    root = shutil.copytree(source, tmp_path / "street")
    things = [label.id for label in CITYSCAPES_LABELS if label.has_instances]
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        ids = np.asarray(Image.open(path)).astype(np.uint16)
        instances = ids.copy()
        for thing in things:
            patches, count = ndimage.label(ids == thing)
            for number in range(count):
                instances[patches == number + 1] = thing * 1000 + number
        Image.fromarray(instances).save(path.with_name(path.name.replace("labelIds", "instanceIds")))
    return root


@pytest.fixture
def run_evaluate(compose_config, tmp_path):
    def run(*overrides, folder="scored"):
        evaluate(compose_config([*overrides, "panels=0"], name="evaluate"), tmp_path / folder)
        return json.loads((tmp_path / folder / "metrics.json").read_text())

    return run


def network_of(ckpt):
    """The network of a checkpoint, put together without the code under test."""
    from omegaconf import OmegaConf

    checkpoint = load_checkpoint(ckpt)
    network = build_network(OmegaConf.create(checkpoint.config), checkpoint.label_space)
    start = "network."
    network.load_state_dict({k[len(start) :]: v for k, v in checkpoint.state_dict.items() if k.startswith(start)})
    return network.eval()


def photos(root):
    for path in sorted(root.glob("leftImg8bit/val/*/*.png")):
        name = path.stem.removesuffix("_leftImg8bit")
        yield name, torch.from_numpy(read_photo(path).copy()).permute(2, 0, 1)[None]


def written(folder, name):
    return np.asarray(Image.open(folder / "label_ids" / f"{name}_pred_labelIds.png"))


PLAIN = ("miou", "loss", "confusion_matrix", "per_class", "per_image", "calibration")


def test_a_window_that_holds_the_photos_gives_the_whole_photos_figures(trained, run_evaluate):
    whole = run_evaluate(f"ckpt={trained}")
    sliding = run_evaluate(f"ckpt={trained}", "inference=sliding", "window=64")
    assert {key: whole[key] for key in PLAIN} == {key: sliding[key] for key in PLAIN}
    assert whole["protocol"] == "whole images at the resolution of the ground truth"
    assert sliding["protocol"] == f"{whole['protocol']}; sliding window 64x64, stride 42, Gaussian"


def test_smaller_windows_give_other_figures(trained, run_evaluate):
    settings = (f"ckpt={trained}", "inference=sliding", "window=[32,48]", "stride=16", "blending=flat")
    figures = run_evaluate(*settings)
    assert figures["protocol"].endswith("; sliding window 48x32, stride 16, flat")
    assert figures["confusion_matrix"] != run_evaluate(f"ckpt={trained}")["confusion_matrix"]


def test_flip_writes_the_mean_of_two_runs_made_by_hand(trained, scenes, run_evaluate, tmp_path):
    figures = run_evaluate(f"ckpt={trained}", f"data.root={scenes}", "tta=flip", "predictions=true")
    assert figures["protocol"].endswith("; flip")
    network = network_of(trained)
    with torch.inference_mode():
        for name, photo in photos(scenes):
            both = network(photo).softmax(1) + network(photo.flip(3)).softmax(1).flip(3)
            by_hand = SPACE.to_label_ids(both.argmax(1)[0].numpy().astype(np.uint8))
            np.testing.assert_array_equal(written(tmp_path / "scored", name), by_hand)


def test_multiscale_says_its_scales(trained, run_evaluate):
    figures = run_evaluate(f"ckpt={trained}", "tta=multiscale", "scales=[0.5,1]")
    assert figures["protocol"].endswith("; scales 0.5, 1; flip")


def test_several_checkpoints_stand_beside_their_ensemble(trained, scenes, run_tiny, run_evaluate, tmp_path, capsys):
    other = run_tiny("seed=1", folder="other") / "checkpoints/best.ckpt"
    data = (f"data.root={scenes}", "predictions=true")
    figures = run_evaluate(f"ckpt=[{trained},{other}]", *data)
    shown = capsys.readouterr().out
    assert all(title in shown for title in ("1 ", "2 ", "ensemble"))
    for number, ckpt in enumerate((trained, other)):
        alone = run_evaluate(f"ckpt={ckpt}", *data, folder="alone")
        member = figures["members"][number]
        assert {key: alone[key] for key in ("miou", "mpa", "checkpoint")}.items() <= member.items()
        assert member["iou"] == {name: row["iou"] for name, row in alone["per_class"].items()}
        full = json.loads((tmp_path / f"scored/members/{number + 1}/metrics.json").read_text())
        assert full["confusion_matrix"] == alone["confusion_matrix"]
    networks = [network_of(trained), network_of(other)]
    with torch.inference_mode():
        for name, photo in photos(scenes):
            both = sum(network(photo).softmax(1) for network in networks)
            by_hand = SPACE.to_label_ids(both.argmax(1)[0].numpy().astype(np.uint8))
            np.testing.assert_array_equal(written(tmp_path / "scored", name), by_hand)


def test_checkpoints_of_other_classes_are_no_ensemble(trained, run_tiny, run_evaluate, tmp_path):
    classes = "{" + ", ".join(f"{name}: {color}" for name, color in CLASSES.items()) + "}"
    root = write_folders(tmp_path / "mine")
    other = run_tiny(
        "data=folders", f"data.root={root}", f"data.classes={classes}", "model.pretrained=false", folder="o"
    )
    with pytest.raises(CheckpointError, match=r"found 3 classes of 'custom'.* and 19 classes of 'cityscapes19'"):
        run_evaluate(f"ckpt=[{trained},{other}/checkpoints/best.ckpt]")


def test_checkpoints_of_other_folds_are_no_ensemble_unless_asked_for(run_tiny, run_evaluate):
    ckpts = [run_tiny(f"fold={fold}", "cv.folds=2", folder=f"fold{fold}") / "checkpoints/best.ckpt" for fold in (0, 1)]
    wanted = f"ckpt=[{ckpts[0]},{ckpts[1]}]"
    with pytest.raises(CheckpointError, match=r"split val has other images.*fold=none"):
        run_evaluate(wanted)
    assert len(run_evaluate(wanted, "fold=none")["members"]) == 2


def test_the_official_evaluation_stands_beside_ours(trained, scenes, run_evaluate, capsys):
    pytest.importorskip("cityscapesscripts")
    figures = run_evaluate(f"ckpt={trained}", f"data.root={scenes}", "official=true")
    official = figures["official"]
    assert official["largest_difference"] < 1e-9
    for name in ("miou", "category_miou", "miiou", "category_miiou"):
        assert official[name] == pytest.approx(figures[name], abs=1e-9)
    assert figures["miiou"] > 0
    assert len(official["per_class"]) == 19
    assert "cityscapesScripts" in capsys.readouterr().out


def test_without_instance_ids_there_is_no_iiou(trained, run_evaluate):
    figures = run_evaluate(f"ckpt={trained}")
    assert "miou" in figures
    assert "miiou" not in figures


def test_some_missing_instance_ids_are_said(trained, scenes, run_evaluate, caplog):
    next(scenes.glob("gtFine/val/*/*_instanceIds.png")).unlink()
    assert "miiou" not in run_evaluate(f"ckpt={trained}", f"data.root={scenes}")
    assert "1 of 3 samples have no instanceIds file" in caplog.text


def test_a_missing_cityscapesscripts_is_refused_with_the_command(trained, run_evaluate, monkeypatch):
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Fix: pip install 'cityseg\[cityscapes\]'"):
        run_evaluate(f"ckpt={trained}", "official=true")


def test_official_needs_label_ids(run_tiny, run_evaluate):
    pytest.importorskip("cityscapesscripts")
    folder = run_tiny("data=pairs")
    with pytest.raises(ConfigError, match=r"official=true: found label .*expected files \*_labelIds\.png"):
        run_evaluate(f"ckpt={folder}/checkpoints/best.ckpt", "official=true")


def test_images_are_ranked_by_the_miou_that_sklearn_gives_each(trained, scenes, run_evaluate, tmp_path):
    figures = run_evaluate(f"ckpt={trained}", f"data.root={scenes}", "predictions=true")["per_image"]
    expected = {}
    for path in scenes.glob("gtFine/val/*/*_labelIds.png"):
        stem = path.name.removesuffix("_gtFine_labelIds.png")
        target = SPACE.encode_table[np.asarray(Image.open(path))]
        predicted = SPACE.encode_table[written(tmp_path / "scored", stem)]
        valid = target != 255
        present = np.union1d(target[valid], predicted[valid])
        name = f"leftImg8bit/val/{path.parent.name}/{stem}_leftImg8bit.png"
        expected[name] = jaccard_score(target[valid], predicted[valid], labels=present, average="macro")
    assert {row["image"]: row["miou"] for row in figures["worst"]} == pytest.approx(expected)
    assert [row["miou"] for row in figures["worst"]] == pytest.approx(sorted(expected.values()))
    assert figures["mean"] == pytest.approx(np.mean(list(expected.values())))
    assert figures["quartiles"] == pytest.approx(np.quantile(list(expected.values()), [0.25, 0.5, 0.75]))


def test_twenty_images_are_named_and_images_of_void_are_not():
    prediction = np.zeros((30, 1, 30), np.uint8)
    target = np.triu(np.ones((30, 30), np.uint8))[:, None]  # image n has n pixels right
    target[29] = 255
    names = [str(number) for number in range(30)]
    worst = image_scores(names, count_pixels(prediction, target, 2))["worst"]
    assert [row["image"] for row in worst] == names[:20]


def test_the_worst_images_are_drawn_with_photo_truth_and_errors(tmp_path):
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (30, 40, 40, 3), np.uint8)
    target = np.zeros((30, 40, 40), np.uint8)
    wrong = rng.permutation(30) // 2  # pairs of images are equally bad
    for index, count in enumerate(wrong):
        target[index, :count] = 1
    target[5] = 255
    prediction = np.zeros_like(target)
    samples = Samples(tmp_path, np.array([f"{index:02d}.png" for index in range(30)], np.bytes_), None)
    task = SimpleNamespace(label_space=SPACE)
    per_image = PerImage(tmp_path, samples, draw=True)
    for part in np.split(np.arange(30), 10):
        pictures = {
            "photo": torch.from_numpy(photos[part]).permute(0, 3, 1, 2),
            "target": torch.from_numpy(target[part]),
        }
        per_image.on_scored(task, torch.from_numpy(prediction[part]), {"index": torch.from_numpy(part), **pictures})
    per_image.on_test_end(None, task)
    worst = [row["image"] for row in per_image.figures(task)["per_image"]["worst"]]
    assert len(worst) == 20
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == sorted(worst)
    index = int(worst[0][:2])
    drawn = np.asarray(Image.open(tmp_path / "predictions" / worst[0]))
    np.testing.assert_array_equal(drawn, panel(photos[index], target[index], prediction[index], SPACE))


def test_boundary_and_calibration_are_choices(trained, run_evaluate):
    plain = run_evaluate(f"ckpt={trained}", "calibration=false")
    assert not {"boundary", "calibration"} & plain.keys()
    figures = run_evaluate(f"ckpt={trained}", "boundary=0.02")
    assert figures["boundary"]["per_class"].keys() == figures["per_class"].keys()
    assert 0 < figures["boundary"]["miou"] < 1
    counted = sum(row["pixels"] for row in figures["calibration"]["reliability"])
    assert counted == np.sum(figures["confusion_matrix"])
    right = sum(row["pixels"] * (row["accuracy"] or 0) for row in figures["calibration"]["reliability"])
    assert right / counted == pytest.approx(figures["pixel_accuracy"])


def test_cost_counts_the_passes_after_the_first_and_nothing_between():
    class Trainer:
        pass

    cost, task = Cost(), nn.Module()
    task.device = torch.device("cpu")
    cost.on_test_start(Trainer(), task)
    for seconds in (0.5, 0.1, 0.1):
        cost.on_test_batch_start(Trainer(), task, {}, 0)
        time.sleep(seconds)
        cost.on_scored(task, torch.zeros(4, 1, 1), {})
        time.sleep(0.1)
    figures = cost.figures(task)
    assert figures["images_per_second"] == pytest.approx(40, rel=0.3)
    assert figures["device"] == "cpu"
    assert figures["peak_memory_mib"] > 50


def test_photos_that_a_network_of_fixed_size_cannot_take_are_refused_with_the_way_out(
    run_tiny, run_evaluate, monkeypatch
):
    from cityseg.models.network import SegmentationNetwork

    ckpt = run_tiny() / "checkpoints/best.ckpt"
    monkeypatch.setattr(
        SegmentationNetwork,
        "__setattr__",
        lambda self, name, value: nn.Module.__setattr__(self, name, (32, 32) if name == "fixed_size" else value),
    )
    with pytest.raises(ConfigError, match=r"photos of 64x64.*Fix: inference=sliding window=\[32,32\]"):
        run_evaluate(f"ckpt={ckpt}")
    assert run_evaluate(f"ckpt={ckpt}", "inference=sliding", "window=[32,32]")["miou"] > 0


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("inference=slide", "inference: found 'slide', expected one of whole, sliding"),
        ("tta=flips", "tta: found 'flips'"),
        ("window=[64,64,64]", "window"),
        ("window=0.5", "window: found 0.5, expected a number of pixels"),
        ("stride=600", "stride: found 600x600 with windows of 512x512"),
        ("blending=linear", "blending: found 'linear'"),
    ],
)
def test_wrong_values_are_refused_by_key(compose_config, typed, message):
    overrides = ["ckpt=x", "inference=sliding", typed]
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        build_inference(compose_config(overrides, name="evaluate"))
