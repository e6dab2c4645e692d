import io
import math
import pickle

import numpy as np
import pytest
from PIL import Image

from cityseg.data.color_labels import MAX_MEAN_DISTANCE, PaletteDecoder
from cityseg.errors import DataError
from cityseg.labels import VOID, custom_label_space, label_space

SPACES = ("cityscapes19", "cityscapes20", "cityscapes_categories")


def brute_force(colors, space, max_distance):
    """Nearest colour in float64, one pixel against all colours; ties go to the lower train id."""
    entries = [*zip(space.colors, range(space.num_classes), strict=True), *space.aliases]
    entries.sort(key=lambda entry: entry[1])
    palette = np.array([color for color, _ in entries], np.float64)
    distances = np.linalg.norm(colors[..., None, :].astype(np.float64) - palette, axis=-1)
    train_ids = np.array([train_id for _, train_id in entries])[distances.argmin(-1)]
    if max_distance is not None:
        train_ids[distances.min(-1) > max_distance] = VOID
    return train_ids, distances.min(-1).mean()


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (60, 70, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def street():
    """Train ids of a made-up street: bands with a few boxes, no region thinner than 20 px."""
    train_ids = np.full((256, 256), 10, np.uint8)
    train_ids[80:150] = 2
    train_ids[150:] = 0
    train_ids[170:, :60] = 1
    train_ids[60:150, 160:] = 8
    train_ids[130:190, 90:150] = 13
    train_ids[110:180, 30:50] = 11
    return train_ids


def as_jpeg(colors, quality=90):
    buffer = io.BytesIO()
    Image.fromarray(colors).resize((200, 200), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("max_distance", [None, 40.0])
def test_agrees_with_brute_force(noise, name, max_distance):
    space = label_space(name)
    expected, _ = brute_force(noise, space, max_distance)
    np.testing.assert_array_equal(PaletteDecoder(space, max_distance)(noise), expected)


@pytest.mark.parametrize("name", SPACES)
def test_exact_colors_come_back_as_their_train_ids(name):
    space = label_space(name)
    train_ids = np.arange(space.num_classes, dtype=np.uint8)[None]
    decoder = PaletteDecoder(space)
    decoded = decoder(space.colorize(train_ids))
    np.testing.assert_array_equal(decoded, train_ids)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoder.decode_exact(space.colorize(train_ids)), train_ids)


@pytest.mark.parametrize(("name", "black"), [("cityscapes19", VOID), ("cityscapes20", 19)])
def test_void_colors_become_what_the_space_says(name, black):
    void_colors = np.array([[(0, 0, 0), (81, 0, 81), (111, 74, 0), (250, 170, 160)]], np.uint8)
    decoder = PaletteDecoder(label_space(name))
    assert decoder(void_colors).tolist() == decoder.decode_exact(void_colors).tolist() == [[black] * 4]


def test_a_pixel_at_the_max_distance_is_kept_and_one_beyond_is_void():
    space = custom_label_space({"low": (0, 0, 0), "high": (250, 250, 250)})
    pixels = np.array([[(3, 4, 0), (3, 4, 1), (5, 5, 5), (245, 250, 250)]], np.uint8)
    assert PaletteDecoder(space, 5)(pixels).tolist() == [[0, VOID, VOID, 1]]
    assert math.sqrt(3) ** 2 < 3  # so rounding would lose a pixel at exactly this distance
    assert PaletteDecoder(space, math.sqrt(3))(np.array([[(1, 1, 1)]], np.uint8)).tolist() == [[0]]
    assert PaletteDecoder(space, 0)(pixels).tolist() == [[VOID] * 4]


@pytest.mark.parametrize("max_distance", [-1.0, math.nan])
def test_a_meaningless_max_distance_is_refused(max_distance):
    with pytest.raises(DataError, match="max_distance: found"):
        PaletteDecoder(label_space("cityscapes19"), max_distance)


def test_default_keeps_most_of_a_blurred_image_and_nearly_all_of_it_right(street):
    space = label_space("cityscapes19")
    blurred = as_jpeg(space.colorize(street))
    truth = np.asarray(Image.fromarray(street).resize((200, 200), Image.Resampling.NEAREST))
    decoded = PaletteDecoder(space)(blurred)
    kept = decoded != VOID
    assert kept.mean() > 0.9
    everything = PaletteDecoder(space, None)(blurred)
    assert np.mean(decoded[kept] == truth[kept]) > 0.995 > np.mean(everything == truth)


def test_pickle_is_small_and_decodes_the_same_after_use(noise):
    decoder = PaletteDecoder(label_space("cityscapes19"), 25)
    expected = decoder(noise)
    data = pickle.dumps(decoder)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data)(noise), expected)


def test_mean_distance_agrees_with_brute_force(noise):
    space = label_space("cityscapes19")
    _, expected = brute_force(noise, space, None)
    assert PaletteDecoder(space).mean_distance(noise) == pytest.approx(expected, rel=1e-5)


def test_mean_distance_tells_blur_from_another_palette(street):
    space = label_space("cityscapes19")
    decoder = PaletteDecoder(space)
    other = np.random.default_rng(3).integers(0, 256, (256, 3)).astype(np.uint8)
    assert decoder.mean_distance(space.colorize(street)) == 0
    assert decoder.mean_distance(as_jpeg(space.colorize(street))) < MAX_MEAN_DISTANCE
    assert decoder.mean_distance(as_jpeg(other[street])) > MAX_MEAN_DISTANCE


def test_decode_exact_lists_the_foreign_colors_with_their_counts():
    space = custom_label_space({"road": (10, 20, 30), "void": (0, 0, 0)})
    colors = np.zeros((4, 4, 3), np.uint8)
    colors[0] = (10, 20, 30)
    colors[1, :3] = (255, 128, 1)
    colors[2, 0] = (10, 20, 31)
    with pytest.raises(DataError, match=r"2 RGB colour.*\(255, 128, 1\) on 3 px, \(10, 20, 31\) on 1 px;"):
        PaletteDecoder(space).decode_exact(colors)


@pytest.mark.parametrize(
    "colors", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
@pytest.mark.parametrize("method", ["__call__", "decode_exact", "mean_distance"])
def test_anything_but_rgb_bytes_is_refused(colors, method):
    decoder = PaletteDecoder(label_space("cityscapes19"))
    with pytest.raises(DataError, match=r"expected \(H, W, 3\) uint8"):
        getattr(decoder, method)(colors)
