import numpy as np
import pytest

from cityseg.data.samples import Pair
from cityseg.data.transforms import BORDER_COLOR, Augment, strict_pixel_transform
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
    [({"scale": (2.0, 0.5)}, "scale"), ({"flip": 1.5}, "flip"), ({"cat_max_ratio": -1}, "cat_max")],
)
def test_impossible_options_are_refused(options, key):
    with pytest.raises(ConfigError, match=f"augment.{key}"):
        Augment(**options)
