import numpy as np
import pytest

from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.statistics import class_balanced_probabilities, image_class_pixels
from cityseg.errors import DataError
from tests.data.layouts import OPTIONS, label_ids, save, write_gtfine

ROAD, SKY, CAR = 0, 10, 13  # train ids of label ids 7, 23 and 26


@pytest.fixture
def data(tmp_path):
    write_gtfine(tmp_path / "data")

    def build(**options):
        return GtFineDataModule(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"), **{**OPTIONS, **options})

    return build


def class_pixel_counts(data):
    return image_class_pixels(data).sum(axis=0)


def test_training_pixels_are_counted_by_class_without_void(data):
    counts = class_pixel_counts(data())
    ids = label_ids()
    assert counts[[ROAD, SKY, CAR]].tolist() == [4 * (ids == raw).sum() for raw in (7, 23, 26)]
    assert counts.sum() == 4 * (ids != 0).sum()


def test_pixels_are_counted_image_by_image_at_the_files_resolution(data):
    save(np.full((24, 32), 26), data().samples("train").label(2))
    counts = image_class_pixels(data(scale=0.25))
    assert counts.shape == (4, 19)
    assert counts[:, CAR].tolist() == [32, 32, 24 * 32, 32]
    assert counts[2].sum() == 24 * 32
    np.testing.assert_array_equal(class_pixel_counts(data()), counts.sum(axis=0))


def test_counts_are_kept_and_counted_anew_when_a_label_or_its_reading_changes(data, tmp_path):
    first = class_pixel_counts(data())
    kept = list((tmp_path / "cache/class-pixels").iterdir())
    assert len(kept) == 1
    np.save(kept[0], np.full((4, 19), 7))
    assert class_pixel_counts(data(scale=0.5)).tolist() == [28] * 19  # read, not counted
    path = data().samples("train").label(0)
    save(np.full((24, 32), 7), path)
    assert class_pixel_counts(data()).tolist() != [28] * 19
    assert class_pixel_counts(data(label_space="cityscapes_categories")).shape == (7,)
    assert class_pixel_counts(data())[ROAD] > first[ROAD]


def test_balanced_probabilities_of_four_images_by_hand():
    # Class 0 is in all four images, class 1 in the first two, class 2 in the last alone, class 3 nowhere.
    pixels = np.array([[5, 1, 0, 0], [9, 9, 0, 0], [3, 0, 0, 0], [1, 0, 8, 0]], np.int32)
    a, b, c, d = 1 / 4 + 1 / 2, 1 / 4 + 1 / 2, 1 / 4, 1 / 4 + 1
    np.testing.assert_allclose(class_balanced_probabilities(pixels), np.array([a, b, c, d]) / 3)


def test_an_image_of_void_is_never_drawn_and_a_split_of_void_is_refused():
    assert class_balanced_probabilities(np.array([[0, 0], [0, 2]], np.int32)).tolist() == [0, 1]
    with pytest.raises(DataError, match="no training label has a pixel of any class"):
        class_balanced_probabilities(np.zeros((3, 2), np.int32))


def test_a_rare_class_is_drawn_as_often_as_its_images_are_likely(tmp_path):
    # Cars are in the first of forty images; the others show road, as it does. The first is likely 1/2 + 1/80.
    root = write_gtfine(tmp_path / "data", (("train", 40), ("val", 1)))
    data = GtFineDataModule(str(root), cache_dir=str(tmp_path), sampling="class_balanced", **OPTIONS)
    for index in range(40):
        ids = np.full((24, 32), 7)
        ids[0, 0] = 26 if index == 0 else 7
        save(ids, data.samples("train").label(index))
    batches = data.train_dataloader().batch_sampler
    drawn = []
    for epoch in range(250):
        batches.set_epoch(epoch)
        drawn += [key.sample for batch in batches for key in batch]
    assert len(drawn) == 10_000
    likely = 1 / 2 + 1 / 80
    assert np.mean(np.array(drawn) == 0) == pytest.approx(likely, abs=4 * np.sqrt(likely * (1 - likely) / 10_000))
