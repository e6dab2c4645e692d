"""Crops, views and orders: photo and target move together, and all follows from (seed, epoch, index, draw)."""

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cityseg.data.decoded import View
from cityseg.data.loading import Key, SameSizeBatches, TrainBatches, TrainDataset
from cityseg.data.samples import Pair
from cityseg.data.transforms import BORDER_COLOR, Augment, Color
from cityseg.labels import VOID

SIDES = st.integers(1, 40)
SIZES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(0, 2**32 - 1)


def sample(size):
    """A photo whose red and green are its coordinates, and a target that numbers the pixels of a 15x15 raster."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.uint8)
    return Pair(np.stack([rows, columns, rows ^ columns], axis=2), (rows % 15) * 15 + columns % 15)


@given(size=SIZES, crop=SIZES, seed=SEEDS, shift=st.sampled_from([0.0, 0.3, 1.0]))
def test_a_crop_is_a_slice_of_the_photo_in_a_frame_of_void(size, crop, seed, shift):
    photo, target = sample(size)
    cut, ids = Augment(shift=shift)(Pair(photo, target), crop, np.random.default_rng(seed))
    assert cut.shape == (*crop, 3)
    assert ids.shape == crop
    inside = ids != VOID
    rows, columns, _ = np.moveaxis(cut[inside].astype(int), -1, 0)
    np.testing.assert_array_equal(ids[inside], target[rows, columns])
    np.testing.assert_array_equal(cut[inside], photo[rows, columns])
    assert (cut[~inside] == BORDER_COLOR).all()
    y, x = np.nonzero(inside)
    assert len({*zip(y - rows, x - columns, strict=True)}) <= 1  # all by the same way
    if not shift:
        assert inside.sum() == min(size[0], crop[0]) * min(size[1], crop[1])


@given(size=SIZES, crop=SIZES, seed=SEEDS)
def test_a_flip_mirrors_photo_and_target(size, crop, seed):
    plain = Augment()(sample(size), crop, np.random.default_rng(seed))
    flipped = Augment(flip=1.0)(sample(size), crop, np.random.default_rng(seed))
    np.testing.assert_array_equal(flipped.photo, plain.photo[:, ::-1])
    np.testing.assert_array_equal(flipped.target, plain.target[:, ::-1])


@given(
    size=SIZES, crop=SIZES, seed=SEEDS, scale=st.tuples(st.floats(0.05, 8), st.floats(1, 3)),
    rotate=st.floats(0, 180), shift=st.floats(0, 1), ratio=st.floats(0, 1), colored=st.booleans(),
)  # fmt: skip
def test_any_augmentation_gives_the_crop_and_known_train_ids(size, crop, seed, scale, rotate, shift, ratio, colored):
    augment = Augment(
        scale=(scale[0], scale[0] * scale[1]), rotate=(-rotate, rotate), shift=shift, flip=0.5, cat_max_ratio=ratio,
        color=Color((0, 3), (0, 3), (0, 3), (-0.5, 0.5)) if colored else None,
    )  # fmt: skip
    before = sample(size)
    cut, ids = augment(sample(size), crop, np.random.default_rng(seed))
    assert cut.shape == (*crop, 3)
    assert ids.shape == crop
    assert cut.dtype == ids.dtype == np.uint8
    assert set(np.unique(ids)) <= {*np.unique(before.target), VOID}
    if not colored:
        assert ((cut == BORDER_COLOR).all(-1) | (ids != VOID) | (cut.max(-1) <= 124)).all()


@given(size=st.tuples(st.integers(8, 40), st.integers(8, 40)), seed=SEEDS, scale=st.floats(0.5, 3), flip=st.booleans())
def test_photo_and_target_move_together(size, seed, scale, flip):
    rows = np.repeat(np.arange(size[0], dtype=np.uint8)[:, None], size[1], 1)
    augment = Augment(scale=(scale, scale), flip=float(flip))
    cut, ids = augment(Pair(np.stack([rows] * 3, 2), rows), (24, 32), np.random.default_rng(seed))
    inside = ids != VOID
    # Interpolation and averaging move a value by half a pixel of the crop, which is 1 / scale of the photo.
    apart = np.abs(cut[..., 0].astype(int) - ids)[inside]
    assert apart.max(initial=0) <= 1 + 1 / scale


@given(size=SIZES, seed=SEEDS, scale=st.floats(0.02, 1), crop=st.none() | SIZES)
def test_a_view_is_the_centre_scaled_and_says_its_size(size, seed, scale, crop):
    photo = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    target = photo[..., 0].copy()
    for view in (View(scale, scale_target=True, crop=crop), View(scale, crop=crop)):
        seen = view(Pair(photo, target))
        assert seen.photo.shape[:2] == tuple(view.photo_sizes(np.array(size, np.int32)))
        assert seen.target.shape == tuple(view.target_sizes(np.array(size, np.int32)))
    height, width = size if crop is None else (min(a, b) for a, b in zip(size, crop, strict=True))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    centre = photo[top : top + height, left : left + width]
    np.testing.assert_array_equal(seen.target, centre[..., 0])
    if scale == 1:
        np.testing.assert_array_equal(seen.photo, centre)
    else:
        wanted = max(round(width * scale), 1), max(round(height * scale), 1)
        np.testing.assert_array_equal(seen.photo, cv2.resize(centre, wanted, interpolation=cv2.INTER_AREA))


@given(
    count=st.integers(1, 50), batch=st.integers(1, 12), seed=SEEDS, epoch=st.integers(0, 99), world=st.integers(1, 3),
    drawn=st.booleans(),
)  # fmt: skip
def test_the_order_of_an_epoch_follows_from_seed_and_epoch_and_goes_on_anywhere(
    count, batch, seed, epoch, world, drawn
):
    probabilities = np.arange(1, count + 1) / np.arange(1, count + 1).sum() if drawn else None

    def batches(rank=0, processes=1, first=0):
        sampler = TrainBatches(count, batch, seed, rank, processes, probabilities)
        sampler.set_epoch(epoch)
        sampler.first = first
        return list(sampler)

    whole = batches()
    keys = [key for one in whole for key in one]
    assert batches() == whole
    assert batches(first=len(whole) // 2) == whole[len(whole) // 2 :]
    assert len(whole) == count // min(batch, count)
    assert len({*keys}) == len(keys)  # of the same sample, the draw differs
    assert {key.epoch for key in keys} == {epoch}
    if not drawn:
        assert len({key.sample for key in keys}) == len(keys)
    if world <= count:
        shares = [batches(rank, world) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        together = [key for share in shares for one in share for key in one]
        assert len({*together}) == len(together)


@given(seed=SEEDS, key=st.tuples(st.integers(0, 500), st.integers(0, 4), st.integers(0, 3)), others=st.integers(0, 3))
def test_a_crop_follows_from_seed_epoch_index_and_draw(seed, key, others):
    pairs = [sample((20 + i, 30)) for i in range(5)]
    augment = Augment(scale=(0.5, 2), flip=0.5, color=Color((0.5, 1.5)))
    one, two = (TrainDataset(pairs, augment, (16, 16), seed) for _ in range(2))
    for other in range(others):  # what was drawn before makes no difference
        two[Key(key[0], other)]
    first, second = one[Key(*key)], two[Key(*key)]
    np.testing.assert_array_equal(first.photo, second.photo)
    np.testing.assert_array_equal(first.target, second.target)


@given(sides=st.lists(st.integers(1, 3), min_size=1, max_size=30), batch=st.integers(1, 8), world=st.integers(1, 4))
def test_evaluation_sees_each_image_once_in_batches_of_one_size(sides, batch, world):
    sizes = np.array([(side, 1) for side in sides], np.int32)
    shares = [list(SameSizeBatches(sizes, batch, rank, world)) for rank in range(world)]
    seen = [index for share in shares for one in share for index in one]
    assert sorted(seen) == list(range(len(sides)))
    assert all(len({sides[i] for i in one}) == 1 and len(one) <= batch for share in shares for one in share)
    assert all(shares) or len(sides) < world
