"""Every row of what a user can get wrong with files, with the message that is shown."""

import shutil

import numpy as np
import pytest
from PIL import Image

from cityseg.data.folders import FoldersDataModule
from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.pairs import PairsDataModule
from cityseg.errors import ConfigError, DataError
from tests.data.layouts import (
    CLASSES,
    OPTIONS,
    bomb,
    composite,
    photo,
    save,
    write_folders,
    write_gtfine,
    write_pairs,
)

PHOTO = "leftImg8bit/train/ulm/ulm_000000_000001_leftImg8bit.png"
LABEL = "gtFine/train/ulm/ulm_000000_000001_gtFine_labelIds.png"


@pytest.fixture
def gtfine(tmp_path):
    return write_gtfine(tmp_path / "gtfine")


def message(data, splits=("train",)):
    with pytest.raises(DataError) as caught:
        data.index(list(splits))
    return str(caught.value)


def gtfine_message(root, **options):
    return message(GtFineDataModule(str(root), **OPTIONS, **options))


def test_label_values_that_are_no_class(tmp_path):
    root = write_folders(tmp_path)
    save(np.full((24, 32), 26), root / "train/masks/2.png")
    text = message(FoldersDataModule(str(root), classes=CLASSES, **OPTIONS))
    assert "train/masks/2.png: found 26" in text
    assert "train ids 0 to 2 and 255 (data.classes names 3 classes)" in text
    assert "label ids instead of train ids?" in text


def test_label_ids_where_train_ids_are_read(gtfine):
    save(np.full((24, 32), 26), gtfine / LABEL.replace("labelIds", "labelTrainIds"))
    text = gtfine_message(gtfine, labels="train_ids")
    assert "found 26" in text
    assert "data.labels=label_ids" in text


def test_photo_without_a_label_and_label_without_a_photo(gtfine):
    (gtfine / LABEL).unlink()
    (gtfine / PHOTO.replace("000001", "000002")).unlink()
    text = gtfine_message(gtfine)
    assert "2 problems" in text
    assert f"{PHOTO}: expected {LABEL}" in text
    assert f"{LABEL.replace('000001', '000002')}: expected {PHOTO.replace('000001', '000002')}" in text


@pytest.mark.parametrize(
    ("module", "options", "searched"),
    [
        (GtFineDataModule, {}, "leftImg8bit/train/*/*_leftImg8bit.png"),
        (PairsDataModule, {}, "train/*.jpg"),
        (FoldersDataModule, {"classes": CLASSES}, "train/images/*"),
    ],
)
def test_wrong_root_says_what_was_searched_and_what_is_there(tmp_path, module, options, searched):
    (tmp_path / "holiday").mkdir()
    text = message(module(str(tmp_path), **OPTIONS, **options))
    assert searched in text
    assert "holiday/" in text


def test_pictures_of_ones_own_without_a_val_split_are_sent_to_folds(tmp_path):
    root = write_folders(tmp_path)
    shutil.rmtree(root / "val")
    text = message(FoldersDataModule(str(root), classes=CLASSES, **OPTIONS), ("train", "val"))
    assert "no photos for split 'val'" in text
    assert "or hold out folds of train: fold=0" in text


def test_missing_root_is_an_error_never_a_fallback(tmp_path):
    assert "no such folder" in gtfine_message(tmp_path / "typo")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def empty(path):
    path.write_bytes(b"")


def text_file(path):
    path.write_text("this is no picture")


@pytest.mark.parametrize("file", [PHOTO, LABEL])
@pytest.mark.parametrize(
    ("damage", "words"),
    [(truncated, "truncated or damaged picture"), (empty, "empty file"), (text_file, "not a picture")],
)
def test_damaged_files_are_named(gtfine, file, damage, words):
    save(np.random.default_rng(0).integers(0, 34, (24, 32)), gtfine / LABEL)
    damage(gtfine / file)
    text = gtfine_message(gtfine)
    assert words in text
    assert file in text
    assert "Fix: copy or download the file again" in text


@pytest.mark.parametrize("file", [PHOTO, LABEL])
def test_a_picture_above_the_limit_is_refused_by_its_header(gtfine, file):
    (gtfine / file).write_bytes(bomb(20_000, 10_000))
    text = gtfine_message(gtfine)
    assert f"{file}: found 20000x10000, expected at most 178956970 pixels" in text
    assert "Fix: scale it down, or raise data.max_pixels" in text
    higher = gtfine_message(gtfine, max_pixels=200_000_000)
    assert "20000x10000" in higher  # the other file is 32x24
    assert "too large" not in higher


def test_the_limit_is_the_last_number_that_is_allowed(gtfine):
    GtFineDataModule(str(gtfine), **OPTIONS, max_pixels=24 * 32).index(["train"])
    assert "found 32x24, expected at most 767 pixels" in gtfine_message(gtfine, max_pixels=767)
    with pytest.raises(ConfigError, match=r"data\.max_pixels: found 0, expected a whole number"):
        GtFineDataModule(str(gtfine), **OPTIONS, max_pixels=0)


def test_a_truncated_jpeg_is_never_half_a_picture(tmp_path):
    root = write_pairs(tmp_path)
    truncated(root / "train/3.jpg")
    text = message(PairsDataModule(str(root), **OPTIONS))
    assert "truncated or damaged picture" in text
    assert "train/3.jpg" in text


def test_damage_in_the_middle_is_found_by_full_verification_and_when_read(gtfine):
    rng = np.random.default_rng(0)
    path = save(rng.integers(0, 256, (64, 64, 3)), gtfine / PHOTO)
    save(np.zeros((64, 64)), gtfine / LABEL)
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(bytes(content))
    assert PHOTO in gtfine_message(gtfine, verify="full")


def test_photo_and_label_of_different_size(gtfine):
    save(np.zeros((24, 30)), gtfine / LABEL)
    text = gtfine_message(gtfine)
    assert "photo and label differ in size" in text
    assert "the photo is 32x24" in text
    assert "is 30x24" in text


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA"])
def test_grey_palette_and_alpha_photos_are_read_rightly(gtfine, mode):
    picture = Image.fromarray(photo()).convert(mode)
    picture.save(gtfine / PHOTO)
    data = GtFineDataModule(str(gtfine), **OPTIONS)
    samples = data.samples("train")
    read = data.reader(samples.photo(1), samples.label(1)).photo
    np.testing.assert_array_equal(read, np.asarray(picture.convert("RGB")))


def test_16_bit_photo_is_refused_with_its_mode(gtfine):
    Image.fromarray(np.full((24, 32), 4000, np.uint16)).save(gtfine / PHOTO)
    assert "found mode 'I;16'" in gtfine_message(gtfine)


def test_colours_where_label_ids_belong(gtfine):
    save(photo(), gtfine / LABEL)
    text = gtfine_message(gtfine)
    assert "label of the wrong mode" in text
    assert "found mode 'RGB'" in text


@pytest.mark.parametrize("size", [(32, 65), (48, 64)])
def test_a_picture_that_is_no_composite(tmp_path, size):
    root = write_pairs(tmp_path)
    save(photo(*size), root / "train/5.jpg")
    text = message(PairsDataModule(str(root), **OPTIONS))
    assert "not a composite of two halves" in text
    assert f"train/5.jpg: found {size[1]}x{size[0]}" in text
    assert "data=gtfine or data=folders" in text


def test_composites_in_other_colours(tmp_path):
    for number in range(4):
        save(np.concatenate([photo(32, 32), photo(32, 32, seed=9)], axis=1), tmp_path / f"train/{number}.png")
    text = message(PairsDataModule(str(tmp_path), **OPTIONS))
    assert "painted in other colours than the classes have" in text
    assert "data=folders" in text


def test_composites_with_the_label_on_the_left(tmp_path):
    for number in range(4):
        save(composite(seed=number)[:, ::-1], tmp_path / f"train/{number}.png")
    assert "the label belongs on the right" in message(PairsDataModule(str(tmp_path), **OPTIONS))


def test_mask_colours_that_belong_to_no_class(tmp_path):
    root = write_folders(tmp_path, colors=True)
    save(np.full((24, 32, 3), 77), root / "train/masks/1.png")
    text = message(FoldersDataModule(str(root), classes={**CLASSES, "void": [0, 0, 0]}, labels="palette", **OPTIONS))
    assert "mask colours that belong to no class" in text
    assert "(77, 77, 77)" in text


def test_ten_offenders_are_listed_and_the_rest_counted(tmp_path):
    root = write_gtfine(tmp_path, (("train", 15),))
    for path in (root / "leftImg8bit").rglob("*.png"):
        empty(path)
    text = gtfine_message(root)
    assert "empty file (15)" in text
    assert text.count("_leftImg8bit.png: 0 bytes") == 10
    assert "... and 5 more" in text


def test_one_problem_does_not_hide_another(gtfine):
    empty(gtfine / PHOTO)
    save(np.zeros((24, 30)), gtfine / LABEL.replace("000001", "000002"))
    save(np.full((24, 32), 99), gtfine / LABEL.replace("000001", "000003"))
    (gtfine / "leftImg8bit/val/ulm/ulm_000000_000000_leftImg8bit.png").unlink()
    text = message(GtFineDataModule(str(gtfine), **OPTIONS), ("train", "val"))
    assert "4 problems" in text
    for words in ("empty file", "differ in size", "label values without a class", "label without a photo"):
        assert words in text


def test_a_file_that_breaks_later_is_named_by_the_loader(gtfine):
    data = GtFineDataModule(str(gtfine), **{**OPTIONS, "workers": 1})
    data.index(["train"])
    text_file(gtfine / PHOTO)
    with pytest.raises(DataError, match=r"ulm_000000_000001_leftImg8bit\.png: not a picture"):
        list(data.train_dataloader())


def test_an_unknown_split_names_those_there_are(gtfine):
    assert "split is one of train, val, test" in message(GtFineDataModule(str(gtfine), **OPTIONS), ("valid",))
