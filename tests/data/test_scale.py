import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from sklearn.metrics import jaccard_score
from torch import nn

from cityseg.data.decoded import View
from cityseg.data.folders import FoldersDataModule
from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.pairs import PairsDataModule
from cityseg.data.samples import Pair
from cityseg.errors import ConfigError
from cityseg.losses import CrossEntropyLoss
from cityseg.runs.evaluation import evaluate
from cityseg.tasks.base import Task
from tests.data.layouts import CLASSES, OPTIONS, config_problems, photo, save, write_folders, write_gtfine, write_pairs


@pytest.fixture
def gtfine(tmp_path):
    """Photos of 32x24 whose labels differ from pixel to pixel."""
    root = write_gtfine(tmp_path / "data")
    for number, path in enumerate(sorted(root.glob("gtFine/*/*/*labelIds.png"))):
        save(np.random.default_rng(number).choice([0, 7, 23, 26], (24, 32)), path)

    def build(**options):
        return GtFineDataModule(str(root), cache_dir=str(tmp_path), **{**OPTIONS, **options})

    return build


def file_pair(data, split, index):
    samples = data.samples(split)
    return data.reader(samples.photo(index), samples.label(index))


def mean_of_squares(picture):
    """Mean of every 2x2 block of ``(H, W, 3)``, unrounded."""
    height, width = picture.shape[:2]
    return picture.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))


def test_training_sees_photo_and_target_at_half_resolution(gtfine):
    data = gtfine(scale=0.5, crop=100, batch_size=4)
    assert data.crop_size() == (12, 16)
    batch = next(iter(data.train_dataloader()))
    for shown, target, index in zip(batch["photo"], batch["target"], batch["index"].tolist(), strict=True):
        whole = file_pair(data, "train", index)
        np.testing.assert_allclose(shown.permute(1, 2, 0), mean_of_squares(whole.photo), atol=0.51)
        # The centre of a pixel of the half lies between four pixels; nearest takes one, always the same of the four.
        np.testing.assert_array_equal(target, whole.target[1::2, 1::2])


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.77])
def test_scaled_targets_are_the_nearest_pixels_of_the_file(scale):
    target = np.random.default_rng(0).integers(0, 19, (37, 53), np.uint8)
    view = View(scale, scale_target=True)
    shown = view(Pair(np.zeros((37, 53, 3), np.uint8), target))
    assert shown.photo.shape[:2] == shown.target.shape == (round(37 * scale), round(53 * scale))
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(shown.target.shape, target.shape, strict=True)
    )
    np.testing.assert_array_equal(shown.target, target[np.ix_(rows, columns)])


def test_evaluation_scales_the_photo_alone(gtfine):
    data = gtfine(scale=0.5)
    batch = next(iter(data.val_dataloader()))
    for place in (0, 1):
        whole = file_pair(data, "val", place)
        np.testing.assert_allclose(batch["photo"][place].permute(1, 2, 0), mean_of_squares(whole.photo), atol=0.51)
        np.testing.assert_array_equal(batch["target"][place], whole.target)
    assert data.eval_sizes("val").tolist() == [[12, 16]] * 2


class Classify(nn.Module):
    """A fixed linear classifier of colours."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(19, 3, generator=generator))

    def forward(self, photo):
        return torch.einsum("kc,bchw->bkhw", self.weight, photo.float() - 128)


def upsample(logits, size):
    """Bilinear interpolation ``(C, h, w)`` -> ``(C, *size)`` with pixel centres, one axis after the other."""
    for axis, new in zip((1, 2), size, strict=True):
        old = logits.shape[axis]
        position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, None)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (position - low).reshape([-1 if a == axis else 1 for a in range(3)])
        logits = logits.take(low, axis) * (1 - share) + logits.take(high, axis) * share
    return logits


def test_scores_at_half_resolution_are_those_of_interpolated_logits_at_full_resolution(gtfine):
    data = gtfine(scale=0.5)
    task = Task(Classify(), CrossEntropyLoss(num_classes=19), data.label_space)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(task, dataloaders=data.eval_dataloader("val"), verbose=False)

    truths, predictions = [], []
    for index in (0, 1):
        whole = file_pair(data, "val", index)
        half = np.floor(mean_of_squares(whole.photo) + 0.5)
        logits = np.einsum("kc,hwc->khw", task.network.weight.detach().numpy(), half - 128)
        valid = whole.target != 255
        truths.append(whole.target[valid])
        predictions.append(upsample(logits, (24, 32)).argmax(axis=0)[valid])
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    expected = jaccard_score(truth, prediction, average="macro", labels=np.union1d(truth, prediction))
    assert np.sum(task.scores["confusion_matrix"]) == len(truth)
    assert task.scores["miou"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("scale", "crop"), [(1.0, (256, 352)), (0.5, (128, 160))])
def test_an_automatic_crop_is_three_quarters_of_scaled_photos(tmp_path, scale, crop):
    root = write_gtfine(tmp_path, size=(360, 480))
    data = GtFineDataModule(str(root), **{**OPTIONS, "crop": "auto", "scale": scale})
    assert data.crop_size() == crop


def test_photos_that_scale_to_one_size_but_differ_in_their_files_are_not_batched(tmp_path):
    root = write_gtfine(tmp_path / "data", (("train", 1), ("val", 1)))
    for height in (23, 24):  # both 12 high at half resolution
        stem = f"val/zug/zug_{height:06d}_000000"
        save(photo(height, 32), root / f"leftImg8bit/{stem}_leftImg8bit.png")
        save(np.full((height, 32), 7), root / f"gtFine/{stem}_gtFine_labelIds.png")
    data = GtFineDataModule(str(root), scale=0.5, **OPTIONS)
    assert [tuple(batch["target"].shape) for batch in data.val_dataloader()] == [(1, 24, 32), (1, 23, 32), (1, 24, 32)]
    assert data.eval_sizes("val").tolist() == [[12, 16]] * 3


def test_a_split_without_labels_says_the_size_of_its_photos(tmp_path):
    root = write_gtfine(tmp_path / "data")
    save(photo(25, 33), root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    data = GtFineDataModule(str(root), scale=0.5, **OPTIONS)
    batch = next(iter(data.eval_dataloader("test")))
    assert batch["photo"].shape == (1, 3, 12, 16)
    assert batch["size"].tolist() == [[25, 33]]
    assert "target" not in batch


def test_centre_crops_cut_photo_and_target_at_one_place(gtfine):
    data = gtfine(val_crop=[10, 20], scale=0.5)
    batch = next(iter(data.val_dataloader()))
    whole = file_pair(data, "val", 1)
    np.testing.assert_array_equal(batch["target"][1], whole.target[7:17, 6:26])
    expected = mean_of_squares(whole.photo[7:17, 6:26])
    np.testing.assert_allclose(batch["photo"][1].permute(1, 2, 0), expected, atol=0.51)
    assert data.eval_sizes("val").tolist() == [[5, 10]] * 2


def test_a_centre_crop_is_at_most_the_image_and_leaves_training_alone(gtfine):
    data = gtfine(val_crop=28)
    assert next(iter(data.val_dataloader()))["target"].shape == (2, 24, 28)
    assert data.crop_size() == (24, 32)


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        ({}, "whole images at the resolution of the ground truth"),
        ({"val_crop": "none"}, "whole images at the resolution of the ground truth"),
        (
            {"scale": 0.5},
            "whole images at the resolution of the ground truth, photos loaded at 0.5 of their resolution",
        ),
        (
            {"val_crop": [512, 1024]},
            "not the standard: centre crops of at most 1024x512 px at the resolution of the ground truth",
        ),
    ],
)
def test_the_protocol_says_how_images_are_scored(gtfine, options, protocol):
    assert gtfine(**options).protocol == protocol


@pytest.mark.parametrize(
    ("write", "module", "extra"),
    [
        (write_gtfine, GtFineDataModule, {}),
        (write_pairs, PairsDataModule, {}),
        (write_folders, FoldersDataModule, {"classes": CLASSES}),
    ],
)
def test_every_layout_scales_and_crops(tmp_path, write, module, extra):
    data = module(str(write(tmp_path)), scale=0.5, val_crop=16, **OPTIONS, **extra)
    train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert train["photo"].shape[2:] == train["target"].shape[1:] == data.crop_size()
    assert data.crop_size() == tuple(data.samples("train").sizes[0] // 2)
    assert val["photo"].shape == (2, 3, 8, 8)
    assert val["target"].shape == (2, 16, 16)
    np.testing.assert_array_equal(
        val["target"][0],
        np.asarray(Image.fromarray(file_pair(data, "val", 0).target).crop(centre(data.samples("val").sizes[0], 16))),
    )


def centre(size, side):
    height, width = size.tolist()
    top, left = (height - side) // 2, (width - side) // 2
    return left, top, left + side, top + side


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "data.scale: found 0, expected a number above 0 and at most 1, as 0.5"),
        ({"scale": 2}, "augment.scale enlarges training crops"),
        ({"val_crop": 0}, "data.val_crop: found 0, expected a whole number of at least 1"),
        ({"crop": [0, 9]}, "data.crop: found [0, 9]"),
    ],
)
def test_impossible_values_are_refused_with_what_is_possible(gtfine, options, message):
    with pytest.raises(ConfigError) as caught:
        gtfine(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("values", [{"scale": "half"}, {"scale": True}, {"val_crop": [1, 2, 3]}, {"val_crop": "auto"}])
def test_values_of_other_types_are_refused_with_the_config(values):
    ((key, value),) = values.items()
    assert f"data.{key}: found {value!r}, expected" in config_problems("gtfine.GtFineDataModule", **values)


@pytest.mark.slow
def test_a_run_on_centre_crops_says_so_and_can_be_scored_on_whole_images(run_tiny, compose_config, tmp_path):
    folder = run_tiny("data.val_crop=32", "data.cache=ram", "data.sampling=class_balanced", "callbacks.images=null")
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["protocol"].startswith("not the standard: centre crops of at most 32x32 px")
    assert sum(entry["pixels"] for entry in figures["per_class"].values()) <= 3 * 32 * 32
    typed = [f"ckpt={folder}/checkpoints/best.ckpt", "data.val_crop=none"]
    evaluate(compose_config(typed, name="evaluate"), tmp_path / "scored")
    scored = json.loads((tmp_path / "scored/metrics.json").read_text())
    assert scored["protocol"] == "whole images at the resolution of the ground truth"
    assert np.sum(scored["confusion_matrix"]) > 3 * 32 * 32


def test_a_run_at_half_resolution_scores_and_predicts_at_the_files_own(run_tiny, compose_config, tmp_path):
    root = write_gtfine(tmp_path / "mine", size=(64, 96))
    save(photo(50, 70), root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    folder = run_tiny(f"data.root={root}", "model.pretrained=false", "data.scale=0.5", "data.crop=auto")
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["protocol"].endswith("photos loaded at 0.5 of their resolution")
    assert np.sum(figures["confusion_matrix"]) == 2 * (64 * 96 - 4)
    typed = [f"ckpt={folder}/checkpoints/best.ckpt", "split=test", "predictions=true"]
    evaluate(compose_config(typed, name="evaluate"), tmp_path / "scored")
    prediction = tmp_path / "scored/label_ids/berlin_000000_000019_pred_labelIds.png"
    assert Image.open(prediction).size == (70, 50)
