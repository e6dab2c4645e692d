import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from cityseg.errors import DataError
from cityseg.image_counts import ImageCounts, count_pixels, merge, read_image_counts, write_image_counts
from tests.crossval.sweeps import CLASSES, Pictures, pictures


def test_counts_of_an_image_are_diagonal_rows_and_columns_of_its_confusion_matrix():
    made = pictures(3)
    counts = count_pixels(made.prediction, made.truth, 4)
    assert counts.dtype == np.int64
    for index in range(len(made.truth)):
        one = Pictures(made.truth[index], made.prediction[index])
        matrix = confusion_matrix(*one.flat(), labels=range(4))
        np.testing.assert_array_equal(counts[index], [matrix.diagonal(), matrix.sum(1), matrix.sum(0)])


def test_an_image_of_void_alone_counts_nothing():
    void = np.full((1, 2, 2), 255, np.uint8)
    assert count_pixels(np.zeros((1, 2, 2), np.uint8), void, 3).sum() == 0


def test_counts_are_read_as_they_were_written(tmp_path):
    written = ImageCounts(("a/1.png", "ü.png"), CLASSES, np.arange(24).reshape(2, 3, 4) + 2**40)
    write_image_counts(tmp_path / "new" / "per_image.npz", written)
    read = read_image_counts(tmp_path / "new" / "per_image.npz")
    assert (read.images, read.class_names) == (written.images, written.class_names)
    np.testing.assert_array_equal(read.counts, written.counts)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["per_image.npz"]


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "per_image.npz", images=np.array([{}], object), class_names=["a"], counts=np.zeros((1, 3, 1)))
    with pytest.raises(DataError, match=r"per_image\.npz cannot be read"):
        read_image_counts(tmp_path / "per_image.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "per_image.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"per_image\.npz cannot be read"):
        read_image_counts(tmp_path / "per_image.npz")


def test_an_image_that_is_there_twice_is_refused(tmp_path):
    write_image_counts(tmp_path / "per_image.npz", ImageCounts(("a", "a"), ("x",), np.zeros((2, 3, 1), np.int64)))
    with pytest.raises(DataError, match=r"found counts \(2, 3, 1\), expected \(1, 3, 1\)"):
        read_image_counts(tmp_path / "per_image.npz")


def test_merging_lines_images_up_by_name_and_adds_those_of_several_repeats():
    ones = np.ones((2, 3, 1), np.int64)
    merged = merge([ImageCounts(("b", "a"), ("x",), ones * [[[1]], [[10]]]), ImageCounts(("c", "a"), ("x",), ones)])
    assert merged[:, 0, 0].tolist() == [11, 1, 1]
