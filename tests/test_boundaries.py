"""Boundary scores against a case by hand and against slow definitions, class by class and pixel by pixel."""

import numpy as np
import pytest
from scipy import ndimage

from cityseg.boundaries import Boundaries
from cityseg.errors import ConfigError

KING = np.ones((3, 3), bool)


def scores(prediction, target, share=0.01, classes=("a", "b")):
    boundaries = Boundaries(classes, share)
    boundaries.update(np.asarray(prediction, np.uint8), np.asarray(target, np.uint8))
    return boundaries.scores()


def halves(split, height=4, width=6):
    picture = np.ones((height, width), np.uint8)
    picture[:, :split] = 0
    return picture


def test_a_shift_by_one_pixel_by_hand():
    # a: of 12 true pixels 10 are beside the outline, of 8 predicted ones all; 6 are in both.
    # b: 10 of 12 and 12 of 16; 8 are in both. The outlines themselves are one pixel apart.
    found = scores(halves(2), halves(3))
    assert found["per_class"] == {"a": {"iou": 6 / 12, "f1": 1.0}, "b": {"iou": 8 / 14, "f1": 1.0}}
    assert (found["miou"], found["mf1"]) == ((6 / 12 + 8 / 14) / 2, 1.0)


def test_outlines_farther_apart_than_the_distance_are_missed():
    assert scores(halves(1), halves(3))["mf1"] == 0
    assert scores(halves(1), halves(3), share=0.3)["mf1"] == 1  # 0.3 of a diagonal of 7.2 is 2


def blobs(seed, classes, shape=(40, 57), void=0.0):
    rng = np.random.default_rng(seed)
    noise = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 3) for _ in range(classes)])
    ids = noise.argmax(0).astype(np.uint8)
    patches = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    ids[patches > np.quantile(patches, 1 - void)] = 255
    return ids


def slow_scores(pairs, classes, share):
    """The definitions as they are written, one class at a time."""
    counts = np.zeros((classes, 6))
    for prediction, target in pairs:
        distance = max(round(share * np.hypot(*target.shape)), 1)
        prediction = np.where(target == 255, 255, prediction)
        for c in range(classes):
            bands, lines, others = [], [], []
            for labels in (prediction, target):
                mask = labels == c
                # https://github.com/bowenc0221/boundary-iou-api, mask_to_boundary: erode a mask padded with zeros
                inner = ndimage.binary_erosion(np.pad(mask, 1), KING, iterations=distance)[1:-1, 1:-1]
                bands.append(mask & ~inner)
                other = ~mask & (labels != 255)
                line = np.zeros_like(mask)
                for y, x in np.argwhere(mask):
                    line[y, x] = other[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any()
                lines.append(np.argwhere(line))
                others.append(other)
            counts[c, 0] += (bands[0] & bands[1]).sum()
            counts[c, 1] += (bands[0] | bands[1]).sum()
            for k, (one, two) in enumerate((lines, lines[::-1])):
                gaps = np.abs(one[:, None] - two[None]).max(2) if len(one) and len(two) else np.empty((len(one), 0))
                counts[c, 2 + 2 * k] += (gaps <= distance).any(1).sum()
                counts[c, 3 + 2 * k] += len(one)
    result = []
    for both, either, precise, predicted, recalled, true in counts:
        precision, recall = precise / max(predicted, 1), recalled / max(true, 1)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        result.append((both / either if either else None, f1 if predicted + true else None))
    return result


@pytest.mark.parametrize(("share", "void"), [(0.01, 0.0), (0.03, 0.0), (0.03, 0.2), (0.1, 0.2)])
def test_slow_definitions_give_the_same_scores_over_a_split(share, void):
    classes = 5
    pairs = [(blobs(seed, 4), blobs(seed + 10, 4, void=void)) for seed in range(2)]
    pairs.append((pairs[0][0], np.roll(pairs[0][0], 2, axis=1)))
    assert (pairs[0][1] == 255).any() == (void > 0)
    boundaries = Boundaries(tuple("abcde"), share)
    for pair in pairs:
        boundaries.update(*pair)
    found = list(boundaries.scores()["per_class"].values())
    for ours, (iou, f1) in zip(found, slow_scores(pairs, classes, share), strict=True):
        assert ours == {"iou": pytest.approx(iou), "f1": pytest.approx(f1)}
    assert found[4] == {"iou": None, "f1": None}  # a class that does not occur


def test_a_perfect_prediction_and_a_class_without_outline():
    target = halves(3)
    assert scores(target, target)["miou"] == scores(target, target)["mf1"] == 1
    whole = np.zeros((4, 6), np.uint8)
    assert scores(whole, whole)["per_class"]["a"] == {"iou": 1.0, "f1": None}


@pytest.mark.parametrize("share", [0, -0.1, 1])
def test_a_share_without_meaning_is_refused(share):
    with pytest.raises(ConfigError, match=r"boundary: found .* such as 0\.005"):
        Boundaries(("a",), share)
