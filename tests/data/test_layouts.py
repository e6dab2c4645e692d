import numpy as np
import pytest
from PIL import Image

from cityseg.data.folders import FoldersDataModule
from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.pairs import PairsDataModule
from cityseg.errors import ConfigError, DataError
from cityseg.labels import label_space
from tests.data.layouts import (
    CLASSES,
    OPTIONS,
    composite,
    label_ids,
    photo,
    save,
    write_folders,
    write_gtfine,
    write_pairs,
)


def sample(data, split="train", index=0):
    samples = data.samples(split)
    return data.reader(samples.photo(index), samples.label(index))


def test_gtfine_turns_label_ids_into_train_ids(tmp_path):
    pair = sample(GtFineDataModule(str(write_gtfine(tmp_path)), **OPTIONS))
    np.testing.assert_array_equal(pair.photo, photo(seed=0))
    expected = {7: 0, 23: 10, 26: 13, 0: 255}
    for raw, train_id in expected.items():
        assert set(pair.target[label_ids() == raw]) == {train_id}


@pytest.mark.parametrize("space", ["cityscapes19", "cityscapes20", "cityscapes_categories", "cityscapes_ids"])
def test_gtfine_reads_any_space_from_label_ids(tmp_path, space):
    pair = sample(GtFineDataModule(str(write_gtfine(tmp_path)), label_space=space, **OPTIONS))
    np.testing.assert_array_equal(pair.target, label_space(space).encode_table[label_ids()])


@pytest.mark.parametrize("space", ["cityscapes19", "cityscapes20", "cityscapes_categories"])
def test_gtfine_train_id_files_give_the_same_targets(tmp_path, space):
    root = str(write_gtfine(tmp_path))
    from_ids = sample(GtFineDataModule(root, label_space=space, **OPTIONS)).target
    from_train_ids = sample(GtFineDataModule(root, label_space=space, labels="train_ids", **OPTIONS)).target
    np.testing.assert_array_equal(from_ids, from_train_ids)


def test_gtfine_test_split_without_labels_can_be_loaded(tmp_path):
    root = write_gtfine(tmp_path)
    save(photo(), root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    data = GtFineDataModule(str(root), **OPTIONS)
    assert data.samples("test").labels is None
    batch = next(iter(data.eval_dataloader("test")))
    assert "target" not in batch
    assert batch["photo"].shape == (1, 3, 24, 32)


def test_pairs_are_in_numeric_order(tmp_path):
    samples = PairsDataModule(str(write_pairs(tmp_path)), **OPTIONS).samples("train")
    assert [samples.name(index) for index in range(12)] == [str(number) for number in range(1, 13)]


@pytest.mark.parametrize("nested", ["", "cityscapes_data", "cityscapes_data/cityscapes_data"])
def test_pairs_are_found_in_the_doubled_folder_too(tmp_path, nested):
    write_pairs(tmp_path / nested)
    assert len(PairsDataModule(str(tmp_path), **OPTIONS).samples("val")) == 2


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_pairs_have_the_photo_left_and_the_label_right(tmp_path, ending):
    pair = sample(PairsDataModule(str(write_pairs(tmp_path, ending=ending)), **OPTIONS))
    expected = label_space("cityscapes19").encode_table[label_ids(32, 32)]
    kept = pair.target != 255
    assert (pair.target[kept] == expected[kept]).mean() > 0.99
    assert kept.mean() > (0.99 if ending == "png" else 0.7)
    if ending == "png":
        np.testing.assert_array_equal(pair.photo, composite(seed=1)[:, :32])


def test_pairs_max_distance_null_keeps_every_coloured_pixel(tmp_path):
    root = str(write_pairs(tmp_path))
    strict = sample(PairsDataModule(root, max_distance=5, **OPTIONS)).target
    loose = sample(PairsDataModule(root, max_distance=None, **OPTIONS)).target
    assert (strict == 255).sum() > (loose == 255).sum()


@pytest.mark.parametrize("labels", ["ids", "palette"])
def test_folders_read_index_masks_and_colour_masks_alike(tmp_path, labels):
    root = write_folders(tmp_path, colors=labels == "palette")
    classes = {**CLASSES, "void": [0, 0, 0]}
    data = FoldersDataModule(str(root), classes=classes, labels=labels, **OPTIONS)
    target = sample(data).target
    assert data.label_space.class_names == ("road", "sky", "car")
    assert np.bincount(target.ravel(), minlength=256)[[0, 1, 2, 255]].tolist() == [352, 383, 32, 1]


def test_folders_palette_png_masks_are_indices(tmp_path):
    root = write_folders(tmp_path)
    mask = Image.fromarray(np.full((24, 32), 2, np.uint8), "L").convert("P")
    indexed = Image.new("P", (32, 24), 2)
    indexed.putpalette([value for color in CLASSES.values() for value in color])
    assert mask.mode == indexed.mode == "P"
    indexed.save(root / "train/masks/0.png")
    assert set(sample(FoldersDataModule(str(root), classes=CLASSES, **OPTIONS)).target.ravel()) == {2}


@pytest.mark.parametrize(
    ("module", "extra"),
    [(GtFineDataModule, {}), (PairsDataModule, {}), (FoldersDataModule, {"classes": None})],
)
def test_no_root_means_the_built_in_scenes_in_that_layout(module, extra, cache_dir):
    data = module(None, **OPTIONS, **extra, cache_dir=str(cache_dir), scenes={"train": 6, "val": 3, "size": 64})
    assert data.builtin
    assert len(data.samples("train")) == 6
    pair = sample(data, "val")
    assert pair.photo.shape == (64, 64, 3)
    assert len(set(pair.target.ravel()) - {255}) > 3


@pytest.mark.parametrize(("size", "crop"), [((24, 32), (24, 32)), ((256, 256), (192, 192)), ((360, 480), (256, 352))])
def test_an_automatic_crop_is_three_quarters_of_small_photos(tmp_path, size, crop):
    data = GtFineDataModule(str(write_gtfine(tmp_path, size=size)), **{**OPTIONS, "crop": "auto"})
    assert data.crop_size() == crop


def test_a_crop_is_never_larger_than_the_photos(tmp_path):
    data = GtFineDataModule(str(write_gtfine(tmp_path)), **{**OPTIONS, "crop": [512, 16]})
    assert data.crop_size() == (24, 16)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (
            GtFineDataModule,
            {"labels": "ids"},
            "data.labels: found 'ids', expected one of label_ids, train_ids",
        ),
        (GtFineDataModule, {"label_space": "cityscape"}, "no label space"),
        (PairsDataModule, {"labels": "colours"}, "data.labels: found 'colours'"),
        (PairsDataModule, {"label_space": "cityscapes_ids"}, "colours do not tell"),
        (FoldersDataModule, {"classes": {}}, "data.classes: found none"),
        (
            GtFineDataModule,
            {"batch_size": 0, "workers": -1},
            r"(?s)2 problems.*data.batch_size.*data.workers",
        ),
    ],
)
def test_impossible_options_are_refused_at_once(module, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        module("/nowhere", **{**OPTIONS, **options})
