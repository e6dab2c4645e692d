"""Folds of any training files, and the CSV files that keep them."""

import csv
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import model_selection

from cityseg.data.split_files import Split, read_groups, read_split, write_split
from cityseg.data.splits import Grouped, KFold, Stratified, TrainingImages, balanced_parts
from cityseg.errors import ConfigError

GROUPS = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40)
OPTIONS = st.fixed_dictionaries(
    {
        "folds": st.integers(2, 6),
        "seed": st.integers(0, 2**31),
        "inner_val": st.sampled_from([0, 0.1, 0.5, 0.999]),
        "repeats": st.integers(1, 3),
    }
)
# Any name that a file can have, but for what a CSV in UTF-8 cannot hold.
NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0/"), min_size=1, max_size=12)
FILES = st.lists(NAMES, min_size=1, max_size=12, unique=True)


def training_images(groups):
    pixels = np.random.default_rng(len(groups)).integers(0, 50, (len(groups), 4), np.int32)
    return TrainingImages([f"{i}.jpg" for i in range(len(groups))], lambda: groups, lambda: pixels)


def held_out_groups(groups, cv):
    """Groups of each fold, where there are enough."""
    if len(set(groups)) < cv.folds:
        return []
    without = Grouped(folds=cv.folds, seed=cv.seed, repeats=cv.repeats, inner_val=0)
    return [{groups[i] for i in without(training_images(groups), fold).test} for fold in range(cv.count)]


@settings(max_examples=8)
@given(groups=GROUPS, options=OPTIONS, strategy=st.sampled_from([KFold, Stratified, Grouped]))
def test_parts_are_disjoint_and_cover_all_or_there_are_too_few(groups, options, strategy):
    cv, images = strategy(**options), training_images(groups)
    units = len(set(groups)) if strategy is Grouped else len(groups)
    # Each fold needs a unit, and with an inner part one to train on and one to choose by beside it.
    most = -(-units // cv.folds) if strategy is not Grouped else max(map(len, held_out_groups(groups, cv)), default=0)
    if units < cv.folds or (cv.inner_val and units - most < 2):
        with pytest.raises(ConfigError, match=f"found {units} |leaves 1 "):
            [cv(images, fold) for fold in range(cv.count)]
        return
    splits = [cv(images, fold) for fold in range(cv.count)]
    for split in splits:
        everything = np.concatenate([indices for _, indices in split.items()])
        assert sorted(everything) == list(range(len(groups)))
        assert len(split.train) > 0 < len(split.test)
        assert (len(split.val) > 0) == (options["inner_val"] > 0)
        if strategy is Grouped:
            parts = [{groups[i] for i in indices} for _, indices in split.items()]
            assert sum(map(len, parts)) == len(set(groups))
        else:
            assert len(split.test) in (len(groups) // cv.folds, -(-len(groups) // cv.folds))
    for repeat in range(cv.repeats):
        held_out = np.concatenate([s.test for s in splits[repeat * cv.folds : (repeat + 1) * cv.folds]])
        assert sorted(held_out) == list(range(len(groups)))


@given(groups=GROUPS, folds=st.integers(2, 6), seed=st.integers(0, 2**31), repeat=st.integers(0, 2))
def test_folds_are_those_of_scikit_learn(groups, folds, seed, repeat):
    images = training_images(groups)
    if len(groups) >= folds:
        theirs = model_selection.KFold(folds, shuffle=True, random_state=seed + repeat).split(groups)
        cv = KFold(folds=folds, seed=seed, repeats=3, inner_val=0)
        for number, (train, test) in enumerate(theirs):
            split = cv(images, repeat * folds + number)
            np.testing.assert_array_equal(split.train, train)
            np.testing.assert_array_equal(split.test, test)
    if len(set(groups)) >= folds:
        theirs = model_selection.GroupKFold(folds).split(groups, groups=groups)
        for number, (_, test) in enumerate(theirs):
            np.testing.assert_array_equal(Grouped(folds=folds, seed=seed, inner_val=0)(images, number).test, test)


@given(data=st.data(), parts=st.integers(1, 5), classes=st.integers(1, 4), seed=st.integers(0, 99))
def test_balanced_parts_have_their_sizes_and_are_no_worse_than_chance(data, parts, classes, seed):
    sizes = data.draw(st.lists(st.integers(0, 6), min_size=parts, max_size=parts).filter(sum))
    flat = st.integers(0, 10**6)
    pixels = np.array(data.draw(st.lists(st.tuples(*[flat] * classes), min_size=sum(sizes), max_size=sum(sizes))))
    part_of = balanced_parts(pixels.astype(np.int32), sizes, np.random.default_rng(seed))
    assert np.bincount(part_of, minlength=parts).tolist() == sizes
    chance = np.random.default_rng(seed).permutation(np.repeat(np.arange(parts), sizes))

    def unevenness(parts_of):
        shares = pixels / np.maximum(pixels.sum(0), 1)
        wanted = np.outer(sizes, shares.sum(0)) / sum(sizes)
        return np.square(np.stack([shares[parts_of == p].sum(0) for p in range(parts)]) - wanted).sum()

    assert unevenness(part_of) <= unevenness(chance) + 1e-4


@given(names=FILES, data=st.data())
def test_split_files_come_back_whatever_the_names_and_their_order(names, data):
    parts = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(names), max_size=len(names))))
    split = Split(*(np.flatnonzero(parts == part) for part in range(3)))
    order = data.draw(st.permutations(range(len(names))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "split.csv"
        write_split(path, names, split)
        again, shuffled = read_split(path, names), read_split(path, [names[i] for i in order])
    for part, (_, indices) in enumerate(split.items()):
        np.testing.assert_array_equal(again.items()[part][1], indices)
        assert {names[order[i]] for i in shuffled.items()[part][1]} == {names[i] for i in indices}


@given(names=FILES, data=st.data())
def test_group_files_come_back(names, data):
    groups = data.draw(st.lists(NAMES, min_size=len(names), max_size=len(names)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "groups.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file", "group"), *zip(names, groups, strict=True)])
        assert read_groups(path, names) == groups


@given(groups=GROUPS, options=OPTIONS)
def test_there_are_as_many_folds_as_asked_for(groups, options):
    cv = KFold(**options)
    assert cv.count == options["folds"] * options["repeats"]
    with pytest.raises(ConfigError, match=f"expected a whole number from 0 to {cv.count - 1}"):
        cv(training_images(groups), cv.count)
