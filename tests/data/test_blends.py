import io
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from cityseg.data.blends import BlendDecoder
from cityseg.data.color_labels import PaletteDecoder
from cityseg.errors import DataError
from cityseg.labels import VOID, custom_label_space, label_space

SPACE = label_space("cityscapes19")
ROAD, SIDEWALK, BUILDING, POLE, VEGETATION, TERRAIN, SKY, PERSON, CAR = 0, 1, 2, 5, 8, 9, 10, 11, 13


@pytest.fixture(scope="module")
def street():
    """Train ids of a made-up street, 2048x1024, with slanted and thin objects; the lower edge is void."""
    train_ids = np.full((1024, 2048), SKY, np.uint8)
    cv2.fillPoly(
        train_ids, [np.array([(0, 100), (700, 350), (1200, 330), (2048, 40), (2048, 700), (0, 700)])], BUILDING
    )
    cv2.fillPoly(train_ids, [np.array([(0, 1024), (900, 500), (1150, 500), (2048, 1024)])], ROAD)
    cv2.fillPoly(train_ids, [np.array([(0, 700), (900, 500), (0, 1024)])], SIDEWALK)
    cv2.fillPoly(train_ids, [np.array([(2048, 600), (1150, 500), (2048, 1024)])], TERRAIN)
    for x, y, radius in ((300, 300, 130), (1500, 250, 180), (1800, 300, 110)):
        cv2.circle(train_ids, (x, y), radius, VEGETATION, -1)
        cv2.line(train_ids, (x + 170, y - 120), (x + 175, 720), POLE, 14)
    for x, y in ((950, 560), (1080, 600), (700, 800), (1300, 820)):
        cv2.ellipse(train_ids, (x, y), (60, 40), 10, 0, 360, CAR, -1)
        cv2.ellipse(train_ids, (x - 130, y - 30), (16, 45), 0, 0, 360, PERSON, -1)
    train_ids[980:] = VOID
    return train_ids


def shrunk(train_ids, subsampling, quality=85):
    """A 256x256 JPEG of the colours, and the train id with the largest share of each pixel."""
    buffer = io.BytesIO()
    small = Image.fromarray(SPACE.colorize(train_ids)).resize((256, 256), Image.Resampling.BICUBIC)
    small.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    present = np.unique(train_ids)
    shares = [cv2.resize(np.float32(train_ids == value), (256, 256), None, 0, 0, cv2.INTER_AREA) for value in present]
    return np.asarray(Image.open(buffer)), present[np.argmax(shares, axis=0)]


def edge(left, right, share):
    """A 24x24 image of two colours; in column 11, between them, the right one has the given share."""
    colors = np.empty((24, 24, 3))
    colors[:, :11], colors[:, 12:] = left, right
    colors[:, 11] = (1 - share) * np.array(left) + share * np.array(right)
    return np.round(colors).astype(np.uint8)


def mean_iou(decoded, truth):
    valid = truth != VOID
    classes = np.unique(truth[valid])
    hits = [np.sum((decoded == c) & (truth == c)) / np.sum(((decoded == c) & valid) | (truth == c)) for c in classes]
    return float(np.mean(hits))


@pytest.mark.parametrize("reject_ambiguous", [False, True])
@pytest.mark.parametrize("name", ["cityscapes19", "cityscapes20", "cityscapes_categories"])
def test_exact_colors_come_back_as_their_train_ids(name, reject_ambiguous):
    space = label_space(name)
    train_ids = np.repeat(np.repeat(np.arange(space.num_classes, dtype=np.uint8)[None], 8, axis=1), 20, axis=0)
    decoded = BlendDecoder(space, reject_ambiguous)(space.colorize(train_ids))
    np.testing.assert_array_equal(decoded[:, 3::8], train_ids[:, 3::8])
    assert decoded.dtype == np.uint8
    if not reject_ambiguous:
        np.testing.assert_array_equal(decoded, train_ids)


@pytest.mark.parametrize(("name", "black"), [("cityscapes19", VOID), ("cityscapes20", 19)])
def test_void_colors_become_what_the_space_says(name, black):
    decoder = BlendDecoder(label_space(name))
    for color in ((0, 0, 0), (81, 0, 81), (111, 74, 0), (250, 170, 160)):
        assert np.unique(decoder(np.full((9, 9, 3), color, np.uint8))).tolist() == [black]


@pytest.mark.parametrize(("left", "right"), [(BUILDING, TERRAIN), (ROAD, TERRAIN), (SIDEWALK, CAR), (SKY, PERSON)])
def test_a_blend_takes_the_larger_share_where_the_nearest_colour_is_a_third_class(left, right):
    keep, reject = BlendDecoder(SPACE, reject_ambiguous=False), BlendDecoder(SPACE)
    third = set()
    for share, winner in ((0.25, left), (0.35, left), (0.65, right), (0.75, right)):
        image = edge(SPACE.colors[left], SPACE.colors[right], share)
        third |= set(np.unique(PaletteDecoder(SPACE, None)(image)).tolist()) - {left, right}
        expected = np.where(np.arange(24) < 11, left, right)
        expected[11] = winner
        np.testing.assert_array_equal(keep(image), np.tile(expected, (24, 1)))
        np.testing.assert_array_equal(reject(image)[:, [0, 9, 14, 23]], np.tile(expected[[0, 9, 14, 23]], (24, 1)))
    assert third  # or the pair tests nothing


def test_an_even_blend_is_void_when_ambiguous_pixels_are_rejected():
    image = edge(SPACE.colors[BUILDING], SPACE.colors[TERRAIN], 0.5)
    assert set(np.unique(BlendDecoder(SPACE)(image)[:, 11])) == {VOID}
    assert set(np.unique(BlendDecoder(SPACE, reject_ambiguous=False)(image)[:, 11])) <= {BUILDING, TERRAIN}


@pytest.mark.parametrize(("share_of_void", "expected"), [(0.25, ROAD), (0.75, VOID)])
def test_a_blend_with_a_void_colour_is_void_only_where_void_has_the_larger_share(share_of_void, expected):
    image = edge(SPACE.colors[ROAD], (0, 0, 0), share_of_void)
    assert set(np.unique(BlendDecoder(SPACE, reject_ambiguous=False)(image)[:, 11])) == {expected}


def test_a_thin_pole_that_is_nowhere_pure_is_found():
    image = np.full((40, 40, 3), SPACE.colors[BUILDING], np.float32)
    image[:, 20] += 0.7 * (np.array(SPACE.colors[POLE], np.float32) - image[:, 20])
    decoded = BlendDecoder(SPACE, reject_ambiguous=False)(image.astype(np.uint8))
    assert set(np.unique(decoded[:, 20])) == {POLE}
    assert set(np.unique(np.delete(decoded, 20, axis=1))) == {BUILDING}


@pytest.mark.parametrize(("subsampling", "least"), [("4:2:0", 0.955), ("4:4:4", 0.975)])
def test_blurred_street_is_decoded_far_better_than_by_the_nearest_colour(street, subsampling, least):
    colors, truth = shrunk(street, subsampling)
    nearest, blends = (
        decoder(colors) for decoder in (PaletteDecoder(SPACE, None), BlendDecoder(SPACE, reject_ambiguous=False))
    )
    assert mean_iou(blends, truth) > least
    assert 1 - mean_iou(blends, truth) < 0.6 * (1 - mean_iou(nearest, truth))
    phantoms = [np.sum(~np.isin(decoded, truth)) for decoded in (nearest, blends)]
    assert phantoms[1] < phantoms[0] / 10


# With a value of its own for each pixel, chroma is more exact than where 2x2 pixels share one: more can be decided.
@pytest.mark.parametrize(("subsampling", "least"), [("4:2:0", 0.95), ("4:4:4", 0.98)])
def test_rejecting_keeps_most_pixels_and_nearly_all_of_them_right(street, subsampling, least):
    colors, truth = shrunk(street, subsampling)
    decoded = BlendDecoder(SPACE)(colors)
    kept = (decoded != VOID) & (truth != VOID)
    assert kept.sum() > least * (truth != VOID).sum()
    assert np.mean(decoded[kept] == truth[kept]) > 0.998
    nearest = PaletteDecoder(SPACE)(colors)
    assert kept.sum() > np.sum((nearest != VOID) & (truth != VOID))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 50)])
def test_any_size_is_decoded(size):
    decoded = BlendDecoder(SPACE)(np.full((*size, 3), SPACE.colors[CAR], np.uint8))
    np.testing.assert_array_equal(decoded, np.full(size, CAR))


def test_noise_gives_train_ids_without_a_numerical_warning():
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    with np.errstate(all="raise", under="ignore"):
        decoded = BlendDecoder(SPACE, reject_ambiguous=False)(noise)
        lone = BlendDecoder(custom_label_space({"all": (9, 9, 9)}))(noise)
    assert set(np.unique(decoded)) <= {*range(19), VOID}
    assert set(np.unique(lone)) == {0}


def test_pickle_is_small_and_decodes_the_same(street):
    colors, _ = shrunk(street[:, :1024], "4:2:0")
    decoder = BlendDecoder(SPACE)
    data = pickle.dumps(decoder)
    assert len(data) < 20_000
    np.testing.assert_array_equal(pickle.loads(data)(colors), decoder(colors))


def test_mean_distance_is_that_of_the_palette_decoder(street):
    colors, _ = shrunk(street, "4:2:0")
    assert BlendDecoder(SPACE).mean_distance(colors) == PaletteDecoder(SPACE).mean_distance(colors)


@pytest.mark.parametrize(
    "colors", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_anything_but_rgb_bytes_is_refused(colors):
    with pytest.raises(DataError, match=r"expected \(H, W, 3\) uint8"):
        BlendDecoder(SPACE)(colors)
