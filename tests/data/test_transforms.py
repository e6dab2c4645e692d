import colorsys

import cv2
import numpy as np
import pytest
from PIL import Image

from cityseg.data import transforms
from cityseg.data.samples import Pair
from cityseg.data.transforms import BORDER_COLOR, Augment, Color, strict_pixel_transform
from cityseg.errors import ConfigError


@pytest.fixture
def sample():
    """A photo whose red and green channels are its coordinates, and a target that is the row."""
    rows, columns = np.mgrid[0:40, 0:60].astype(np.uint8)
    return Pair(np.stack([rows, columns, rows], axis=2), rows)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_an_unscaled_crop_is_a_part_of_the_photo(sample):
    photo, target = Augment()(sample, (16, 24), rng())
    top, left = photo[0, 0, :2]
    np.testing.assert_array_equal(photo, sample.photo[top : top + 16, left : left + 24])
    np.testing.assert_array_equal(target, sample.target[top : top + 16, left : left + 24])


@pytest.mark.parametrize("seed", range(20))
def test_photo_and_target_stay_aligned_through_scale_and_flip(sample, seed):
    photo, target = Augment(scale=(0.5, 2.0), flip=0.5)(sample, (24, 32), rng(seed))
    inside = target != 255
    assert inside.any()
    # The red channel is the row, as the target is; interpolation and averaging move it by a pixel at most.
    assert np.abs(photo[..., 0].astype(int) - target.astype(int))[inside].max() <= 2


def test_what_lies_outside_the_photo_is_void(sample):
    photo, target = Augment()(sample, (100, 100), rng())
    outside = target == 255
    assert outside.sum() == 100 * 100 - 40 * 60
    assert (photo[outside] == BORDER_COLOR).all()
    assert sorted(set(target[~outside])) == list(range(40))


def test_shrinking_pads_with_void(sample):
    photo, target = Augment(scale=(0.5, 0.5))(sample, (40, 60), rng())
    assert (target != 255).sum() == 20 * 30
    assert photo.shape == (40, 60, 3)


def test_flip_always_and_never(sample):
    plain = Augment()(sample, (40, 60), rng(3))
    flipped = Augment(flip=1.0)(sample, (40, 60), rng(3))
    np.testing.assert_array_equal(plain.photo[:, ::-1], flipped.photo)
    np.testing.assert_array_equal(plain.target[:, ::-1], flipped.target)


def smooth_sample(height=120, width=160):
    """Waves that interpolation hardly changes, and two classes."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(rows / 9 + phase) * np.cos(columns / 7) for phase in range(3)]
    return Pair(np.stack(waves, axis=2).astype(np.uint8), (100 * (rows + 2 * columns > width)).astype(np.uint8))


def shrunk(region):
    """Without what is within two pixels of its edge, or of the picture's."""
    kernel = np.ones((5, 5), np.uint8)
    return cv2.erode(region.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


@pytest.mark.parametrize("angle", [-20, 7, 90])
def test_rotation_turns_counterclockwise_around_the_middle_of_the_crop(angle):
    sample = smooth_sample()
    photo, target = Augment(rotate=(angle, angle))(sample, sample.target.shape, rng())
    turned = np.asarray(Image.fromarray(sample.photo).rotate(angle, Image.Resampling.BILINEAR))
    assert set(np.unique(target)) <= {0, 100, 255}  # nothing between
    inside = shrunk(target != 255)
    assert inside.mean() > 0.5
    assert np.abs(photo.astype(int) - turned)[inside].max() <= 3
    expected = np.asarray(Image.fromarray(sample.target).rotate(angle, Image.Resampling.NEAREST))
    assert (target != expected)[inside].mean() < 0.005
    assert (photo[shrunk(target == 255)] == BORDER_COLOR).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_turned_crop_shows_what_a_warp_of_the_whole_photo_does(monkeypatch, seed):
    augment, sample = Augment(scale=(0.3, 4), rotate=(-180, 180), shift=1.0), smooth_sample()
    found = augment(sample, (50, 70), rng(seed))
    rotation = transforms._rotation

    def of_all(*arguments):
        matrix, (rows, columns) = rotation(*arguments)
        matrix[:, 2] += columns.start, rows.start
        return matrix, (slice(None), slice(None))

    monkeypatch.setattr(transforms, "_rotation", of_all)
    expected = augment(sample, (50, 70), rng(seed))
    assert np.abs(found.photo.astype(int) - expected.photo).max() <= 1
    assert (found.target != expected.target).mean() < 0.001


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_a_hardly_turned_crop_is_the_unturned_one_at_every_scale(scale):
    sample = smooth_sample()
    straight = Augment(scale=(scale, scale))(sample, (50, 70), np.random.default_rng(4))
    turned = Augment(scale=(scale, scale), rotate=(1e-9, 1e-9))(sample, (50, 70), np.random.default_rng(4))
    assert np.abs(straight.photo.astype(int) - turned.photo).mean() < 3
    assert (straight.target != turned.target).mean() < 0.02


def test_a_shifted_crop_moves_by_at_most_its_share_and_may_leave_the_photo(sample):
    moved = []
    for seed in range(40):
        photo, target = Augment(shift=0.25)(sample, (40, 60), rng(seed))
        rows, columns = np.nonzero(target != 255)
        offsets = photo[rows, columns, :2].astype(int) - np.stack([rows, columns], axis=1)
        assert (offsets == offsets[0]).all()  # moved as a whole
        moved.append(offsets[0])
    assert (np.abs(moved).max(axis=0) <= [10, 15]).all()
    assert (np.abs(moved).max(axis=0) >= [8, 12]).all()


def colored(pixels, **options):
    photo = np.array([pixels], np.uint8)
    changed = Color(**{key: (value, value) for key, value in options.items()})(photo, rng())
    return changed[0].astype(float)


def test_color_does_what_its_options_say():
    pixels = np.array([[200, 40, 90], [60, 60, 60], [10, 180, 70]])
    grey = pixels @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(colored(pixels, brightness=1.2), 1.2 * pixels, atol=0.51)
    np.testing.assert_allclose(colored(pixels, contrast=0.5), (pixels + grey.mean()) / 2, atol=0.51)
    np.testing.assert_allclose(colored(pixels, saturation=0.5), (pixels + grey[:, None]) / 2, atol=0.51)
    np.testing.assert_allclose(colored(pixels, saturation=0), np.repeat(grey[:, None], 3, axis=1), atol=0.51)
    np.testing.assert_allclose(colored(pixels, brightness=2)[0], [255, 80, 180], atol=0.51)


@pytest.mark.parametrize("turn", [0.02, -0.04, 0.2])
def test_hue_turns_as_in_hsv(turn):
    pixels = np.array([[150, 90, 100], [90, 140, 120], [100, 90, 160], [120, 120, 90]])
    for before, after in zip(pixels / 255, colored(pixels, hue=turn) / 255, strict=True):
        moved = colorsys.rgb_to_hsv(*after)[0] - colorsys.rgb_to_hsv(*before)[0]
        assert abs((moved - turn + 0.5) % 1 - 0.5) < 2.3 / 360 + 0.004  # and rounding


def test_color_leaves_the_share_of_photos_alone_that_p_says(sample):
    color, photo = Color(brightness=(0.5, 0.6), p=0.3), sample.photo + np.uint8(50)
    changed = [bool((color(photo, rng(seed)) != photo).any()) for seed in range(200)]
    assert 0.2 < np.mean(changed) < 0.4


def test_crops_full_of_one_class_are_drawn_again():
    target = np.zeros((200, 200), np.uint8)
    target[90:110] = 1
    sample = Pair(np.zeros((200, 200, 3), np.uint8), target)

    def largest_share(augment):
        shares = []
        for seed in range(60):
            crop = augment(sample, (40, 40), rng(seed)).target
            shares.append(np.bincount(crop.ravel()).max() / crop.size)
        return np.mean(np.array(shares) > 0.75)

    assert largest_share(Augment(cat_max_ratio=0.75)) < 0.5 * largest_share(Augment())


def test_the_same_generator_gives_the_same_crop_also_through_pixel_transforms(sample):
    augment = Augment(
        scale=(0.5, 2.0),
        flip=0.5,
        pixel={"noise": strict_pixel_transform("GaussNoise", std_range=[0.1, 0.2], p=1.0)},
    )
    first, again, other = (augment(sample, (24, 32), rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.photo, again.photo)
    assert (first.photo != other.photo).any()


def test_pixel_transforms_leave_the_target_alone(sample):
    plain = Augment()(sample, (40, 60), rng())
    noisy = Augment(pixel={"b": strict_pixel_transform("GaussianBlur", blur_limit=[7, 7], p=1.0)})(
        sample, (40, 60), rng()
    )
    np.testing.assert_array_equal(plain.target, noisy.target)
    assert (plain.photo != noisy.photo).any()


def test_a_misspelt_option_is_an_error_not_a_warning():
    with pytest.raises(ConfigError, match="std_rang"):
        strict_pixel_transform("GaussNoise", std_rang=[0.1, 0.2])


def test_an_unknown_transform_is_refused():
    with pytest.raises(ConfigError, match="GaussianBlurr"):
        strict_pixel_transform("GaussianBlurr")


def test_a_transform_that_moves_pixels_is_refused(sample):
    with pytest.raises(ConfigError, match="HorizontalFlip"):
        Augment(pixel={"flip": strict_pixel_transform("HorizontalFlip", p=1.0)})(sample, (8, 8), rng())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"scale": (2.0, 0.5)}, "scale"),
        ({"rotate": (0, 200)}, "rotate"),
        ({"shift": -0.1}, "shift"),
        ({"flip": 1.5}, "flip"),
        ({"cat_max_ratio": -1}, "cat_max"),
    ],
)
def test_impossible_options_are_refused(options, key):
    with pytest.raises(ConfigError, match=f"augment.{key}"):
        Augment(**options)


@pytest.mark.parametrize(
    ("options", "key"),
    [({"contrast": (-1, 1)}, "contrast"), ({"hue": (0, 0.6)}, "hue"), ({"p": 2}, "p"), ({"hue": (0.1, 0)}, "hue")],
)
def test_impossible_colors_are_refused(options, key):
    with pytest.raises(ConfigError, match=f"augment.color.{key}: found"):
        Color(**options)
