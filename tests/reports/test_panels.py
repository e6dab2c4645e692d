import numpy as np
import pytest

from cityseg.labels import VOID, label_space
from cityseg.reports.panels import ERROR_COLOR, MAX_TILE_WIDTH, panel

SPACE = label_space("cityscapes19")
HEIGHT, WIDTH, GAP = 96, 128, 4


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


@pytest.fixture
def truth():
    train_ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    train_ids[:40] = 10
    train_ids[40:60, :30] = 13
    train_ids[70:, 90:] = VOID
    return train_ids


def tiles(image, count, height=HEIGHT, width=WIDTH):
    """Cut the tiles, without their captions, out of a panel."""
    assert image.dtype == np.uint8
    assert image.shape[1:] == (count * width + (count - 1) * GAP, 3)
    return [image[-height:, i * (width + GAP) : i * (width + GAP) + width] for i in range(count)]


def is_error(tile):
    return (tile == ERROR_COLOR).all(-1)


def test_shows_photo_truth_prediction_and_error_side_by_side(photo, truth):
    prediction = np.full_like(truth, 2)
    shown = tiles(panel(photo, truth, prediction, SPACE), 4)
    np.testing.assert_array_equal(shown[0], photo)
    np.testing.assert_array_equal(shown[1], SPACE.colorize(truth))
    np.testing.assert_array_equal(shown[2], SPACE.colorize(prediction))


def test_marks_exactly_the_wrong_pixels_and_no_void(photo, truth):
    prediction = np.where(truth == VOID, 5, truth)
    prediction[10:20, 50:80] = 8
    error = tiles(panel(photo, truth, prediction, SPACE), 4)[3]
    expected = np.zeros(truth.shape, bool)
    expected[10:20, 50:80] = True
    np.testing.assert_array_equal(is_error(error), expected)


def test_hatches_void_and_nothing_else(photo, truth):
    error = tiles(panel(photo, truth, truth, SPACE), 4)[3]
    white = (error == 255).all(-1)
    assert 0.1 < white[truth == VOID].mean() < 0.5
    assert not white[truth != VOID].any()


def test_prediction_of_void_on_a_valid_pixel_is_an_error(photo, truth):
    prediction = truth.copy()
    prediction[0, 0] = VOID
    assert is_error(tiles(panel(photo, truth, prediction, SPACE), 4)[3]).sum() == 1


def test_without_truth_lays_the_prediction_over_the_photo(photo, truth):
    shown = tiles(panel(photo, None, truth, SPACE), 3)
    np.testing.assert_array_equal(shown[0], photo)
    np.testing.assert_array_equal(shown[1], SPACE.colorize(truth))
    mean = (photo.astype(int) + SPACE.colorize(truth)) / 2
    assert np.abs(shown[2] - mean).max() <= 1


def test_captions_are_written_above_every_tile(photo, truth):
    image = panel(photo, truth, truth, SPACE)
    strip = image[: image.shape[0] - HEIGHT]
    assert 10 <= strip.shape[0] <= 30
    for index in range(4):
        assert (strip[:, index * (WIDTH + GAP) :][:, :WIDTH] < 100).any()


def test_large_images_are_shown_smaller_with_unmixed_label_colors():
    train_ids = 18 * np.random.default_rng(0).integers(0, 2, (512, 1024)).astype(np.uint8)
    photo = np.zeros((512, 1024, 3), np.uint8)
    shown = tiles(panel(photo, train_ids, train_ids, SPACE), 4, 256, MAX_TILE_WIDTH)
    colors = {tuple(color) for color in shown[1].reshape(-1, 3).tolist()}
    assert colors == {SPACE.colors[0], SPACE.colors[18]}
    assert not is_error(shown[3]).any()


@pytest.mark.filterwarnings("error")
def test_all_void_truth_has_no_error_and_no_share_of_nothing(photo):
    void = np.full((HEIGHT, WIDTH), VOID, np.uint8)
    assert not is_error(tiles(panel(photo, void, np.zeros_like(void), SPACE), 4)[3]).any()


def test_labels_of_another_size_are_refused(photo, truth):
    with pytest.raises(ValueError, match=r"truth: found size \(95, 128\)"):
        panel(photo, truth[1:], truth, SPACE)
    with pytest.raises(ValueError, match="prediction: found size"):
        panel(photo, None, truth[1:], SPACE)
