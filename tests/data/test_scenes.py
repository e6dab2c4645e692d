"""The built-in street scenes: reproducible, rich in every declared class, and written in the real layouts."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cityseg.data.scenes import SCENE_CLASSES, render_scene, scenes_root
from cityseg.data.scenes.layouts import CITIES, TRAIN_CITIES, VAL_CITIES
from cityseg.errors import ConfigError
from cityseg.labels import CITYSCAPES_LABELS, label_space

LABELS = {label.name: label for label in CITYSCAPES_LABELS}
SMALL = {"train": 7, "val": 3, "size": 64}


@pytest.fixture(scope="module")
def training_labels():
    """Label ids of the first 40 scenes of the default training part, which has five cities out of seven."""
    indices = [index for index in range(56) if CITIES[index % len(CITIES)] in TRAIN_CITIES]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda index: render_scene(0, index)[1], indices))


def read(path):
    with Image.open(path) as image:
        return image.mode, np.array(image)


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_the_same_seed_and_index_give_the_same_scene():
    photo, label_ids = render_scene(3, 5, size=96)
    again_photo, again_label_ids = render_scene(3, 5, size=96)
    assert photo.shape == (96, 96, 3)
    assert label_ids.shape == (96, 96)
    assert photo.dtype == label_ids.dtype == np.uint8
    np.testing.assert_array_equal(photo, again_photo)
    np.testing.assert_array_equal(label_ids, again_label_ids)


@pytest.mark.parametrize("other", [(3, 6), (4, 5)])
def test_another_index_or_seed_gives_another_scene(other):
    assert np.any(render_scene(3, 5, size=64)[1] != render_scene(*other, size=64)[1])


def test_every_declared_class_covers_30_pixels_in_a_quarter_of_the_images(training_labels):
    for name in SCENE_CLASSES:
        share = np.mean([np.sum(label_ids == LABELS[name].id) >= 30 for label_ids in training_labels])
        assert share >= 0.25, name


def test_only_declared_classes_and_void_labels_occur(training_labels):
    found = {int(label_id) for label_ids in training_labels for label_id in np.unique(label_ids)}
    void = {label.id for label in CITYSCAPES_LABELS if label.ignored}
    assert found - void == {LABELS[name].id for name in SCENE_CLASSES}
    assert found & void, "no void pixel in 40 scenes"


def test_photo_and_label_show_the_same_geometry():
    # The sky of a scene is brighter than its road, wherever both are.
    for index in range(6):
        photo, label_ids = render_scene(0, index, size=96)
        sky, road = (photo[label_ids == LABELS[name].id].mean() for name in ("sky", "road"))
        assert sky > road + 10


def test_gtfine_holds_photos_and_label_ids_by_city(tmp_path):
    root = scenes_root("gtfine", cache_dir=tmp_path, **SMALL)
    photos = files(root / "leftImg8bit")
    assert len(photos) == 10
    assert files(root / "gtFine") == [name.replace("_leftImg8bit.png", "_gtFine_labelIds.png") for name in photos]
    assert {name.split("/")[1] for name in photos if name.startswith("train/")} == set(TRAIN_CITIES)
    assert {name.split("/")[1] for name in photos if name.startswith("val/")} == set(VAL_CITIES)
    city = TRAIN_CITIES[0]
    mode, photo = read(root / "leftImg8bit" / "train" / city / f"{city}_000000_000000_leftImg8bit.png")
    label_mode, label_ids = read(root / "gtFine" / "train" / city / f"{city}_000000_000000_gtFine_labelIds.png")
    expected_photo, expected_label_ids = render_scene(0, 0, size=64)
    assert (mode, label_mode) == ("RGB", "L")
    np.testing.assert_array_equal(photo, expected_photo)
    np.testing.assert_array_equal(label_ids, expected_label_ids)


def test_pairs_hold_the_photo_left_and_the_coloured_label_right(tmp_path):
    root = scenes_root("pairs", cache_dir=tmp_path, train=2, val=1, size=256)
    assert files(root) == ["train/1.jpg", "train/2.jpg", "val/1.jpg"]
    mode, composite = read(root / "train" / "1.jpg")
    assert mode == "RGB"
    assert composite.shape == (256, 512, 3)
    photo, label_ids = render_scene(0, 0, size=256)
    assert np.abs(composite[:, :256].astype(int) - photo).mean() < 8  # JPEG
    space = label_space("cityscapes19")
    right = composite[:, 256:].astype(int)
    distances = np.abs(right[..., None, :] - np.vstack([space.palette[:19], [[0, 0, 0]]])).sum(axis=-1)
    nearest = np.append(np.arange(19), 255)[distances.argmin(axis=-1)]
    assert np.mean(distances.min(axis=-1) < 24) > 0.85
    assert np.mean(nearest == space.encode_table[label_ids]) > 0.95


def test_folders_hold_train_ids_in_the_order_of_the_classes(tmp_path):
    root = scenes_root("folders", cache_dir=tmp_path, **SMALL)
    for split, count in (("train", 7), ("val", 3)):
        images, masks = files(root / split / "images"), files(root / split / "masks")
        assert images == masks
        assert len(images) == count
    mode, mask = read(root / "train" / "masks" / f"{TRAIN_CITIES[0]}_000000.png")
    assert mode == "L"
    _, label_ids = render_scene(0, 0, size=64)
    for train_id, name in enumerate(SCENE_CLASSES):
        np.testing.assert_array_equal(mask == train_id, label_ids == LABELS[name].id)
    np.testing.assert_array_equal(mask == 255, [[CITYSCAPES_LABELS[i].ignored for i in row] for row in label_ids])


def test_a_second_call_writes_nothing(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="cityseg.data.scenes"):
        root = scenes_root("folders", cache_dir=tmp_path, train=1, val=1, size=64)
        times = {name: (root / name).stat().st_mtime_ns for name in files(root)}
        assert scenes_root("folders", cache_dir=tmp_path, train=1, val=1, size=64) == root
    assert {name: (root / name).stat().st_mtime_ns for name in files(root)} == times
    assert len(caplog.records) == 1


def test_sets_that_differ_get_folders_of_their_own(tmp_path):
    base = {"train": 1, "val": 1, "size": 32}
    asked = [
        ("folders", {}),
        ("pairs", {}),
        ("folders", {"seed": 1}),
        ("folders", {"size": 64}),
        ("folders", {"val": 2}),
    ]
    roots = {scenes_root(layout, cache_dir=tmp_path, **(base | other)) for layout, other in asked}
    assert len(roots) == len(asked)


def test_a_set_that_was_not_finished_is_not_used(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cityseg.data.scenes.layouts.render_scene", fail)
        with pytest.raises(KeyboardInterrupt):
            scenes_root("folders", cache_dir=tmp_path, train=2, val=1, size=64)
    assert list(tmp_path.iterdir()) == []
    name = scenes_root("folders", cache_dir=tmp_path / "elsewhere", train=2, val=1, size=64).name
    killed = tmp_path / f".{name}-killed"
    (killed / "train" / "images").mkdir(parents=True)
    root = scenes_root("folders", cache_dir=tmp_path, train=2, val=1, size=64)
    assert root != killed
    assert len(files(root)) == 6


def test_two_callers_at_once_get_one_complete_set(tmp_path):
    def ask(_):
        return scenes_root("folders", cache_dir=tmp_path, train=2, val=1, size=64)

    with ThreadPoolExecutor(3) as pool:
        roots = set(pool.map(ask, range(3)))
    assert [*roots] == list(tmp_path.iterdir())
    assert len(files(roots.pop())) == 6


@pytest.mark.parametrize("wrong", [{"train": -1}, {"size": 8}, {"seed": -1}])
def test_numbers_that_cannot_work_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        scenes_root("pairs", cache_dir=tmp_path, **wrong)


def test_an_unknown_layout_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="gtfine, pairs, folders"):
        scenes_root("tiles", cache_dir=tmp_path)
