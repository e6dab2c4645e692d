import itertools
import os

import hydra
import numpy as np
import pytest
from sklearn import model_selection

from cityseg.data import split_files
from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.pairs import CITIES, PairsDataModule
from cityseg.data.split_files import Split, check_leaks, read_groups, read_split, write_split
from cityseg.data.splits import Files, Grouped, KFold, Stratified, TrainingImages, balanced_parts
from cityseg.errors import ConfigError, DataError
from tests.data.layouts import OPTIONS, config_problems

CITIES_OF_SEVEN = ["aachen"] * 3 + ["bochum"] * 2 + ["ulm"] * 2
HALF_IN_ONE = ["aachen"] * 10 + ["bochum", "bremen", "jena", "ulm", "zurich"] * 2


def images(groups=None, count=None, pixels=None):
    total = len(groups) if groups is not None else len(pixels) if pixels is not None else count
    if pixels is None:
        pixels = np.random.default_rng(total).integers(0, 50, (total, 4), np.int32)
    names = [f"train/{number}.jpg" for number in range(total)]
    return TrainingImages(names, lambda: groups, lambda: pixels)


def everything(split):
    return sorted(np.concatenate([indices for _, indices in split.items()]).tolist())


# ---- what holds for every strategy


@pytest.mark.parametrize("inner_val", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize(
    ("strategy", "folds", "groups"),
    [
        (KFold, 5, list("abcde")),
        (Stratified, 5, list("abcde")),
        (Grouped, 5, list("abcde")),
        (KFold, 3, CITIES_OF_SEVEN),
        (Stratified, 3, CITIES_OF_SEVEN),
        (Grouped, 3, CITIES_OF_SEVEN),
        (Grouped, 3, HALF_IN_ONE),
        (Grouped, 5, HALF_IN_ONE),
    ],
)
def test_parts_are_disjoint_cover_all_images_and_hold_each_out_once_a_repeat(strategy, folds, groups, inner_val):
    data, cv = images(groups), strategy(folds=folds, inner_val=inner_val, repeats=2)
    splits = [cv(data, fold) for fold in range(cv.count)]
    assert cv.count == 2 * folds
    for split in splits:
        assert everything(split) == list(range(len(groups)))
        assert len(split.train) >= 1
        assert len(split.test) >= 1
        assert (len(split.val) >= 1) == (inner_val > 0)
        assert {indices.dtype for _, indices in split.items()} == {np.dtype(np.int64)}
        assert all((np.diff(indices) > 0).all() for _, indices in split.items())
        if strategy is Grouped:
            seen = [{groups[index] for index in indices} for _, indices in split.items()]
            assert sum(map(len, seen)) == len(set(groups))
    for repeat in (splits[:folds], splits[folds:]):
        assert sorted(np.concatenate([split.test for split in repeat]).tolist()) == list(range(len(groups)))


@pytest.mark.parametrize("strategy", [KFold, Stratified, Grouped])
def test_inner_validation_follows_from_seed_and_fold_and_leaves_the_test_part_alone(strategy):
    data = images([f"{number % 20:02}" for number in range(100)])

    def val(seed, fold):
        return strategy(seed=seed)(data, fold).val.tolist()

    assert val(1, 0) == val(1, 0)
    without = [strategy(inner_val=0)(data, fold) for fold in range(5)]
    half = [strategy(inner_val=0.5)(data, fold) for fold in range(5)]
    tenth = [strategy()(data, fold) for fold in range(5)]
    for a, b, c in zip(without, half, tenth, strict=True):
        assert a.test.tolist() == b.test.tolist() == c.test.tolist()
        assert (len(a.val), len(b.val)) == (0, 40)
        assert len(c.val) == (10 if strategy is Grouped else 8)  # groups of 5: 10 is nearer to 8 than 5
    assert len({tuple(split.val) for split in tenth}) == 5


# ---- k-fold


@pytest.mark.parametrize("count", [5, 7, 23, 2975])
def test_k_fold_is_that_of_scikit_learn(count):
    truth = model_selection.KFold(5, shuffle=True, random_state=42).split(np.zeros(count))
    for fold, (train, test) in enumerate(truth):
        split = KFold(inner_val=0)(images(count=count), fold)
        np.testing.assert_array_equal(split.train, train)
        np.testing.assert_array_equal(split.test, test)


def test_a_repeat_is_the_k_fold_of_the_next_seed():
    truth = model_selection.KFold(4, shuffle=True, random_state=9).split(np.zeros(30))
    cv = KFold(folds=4, seed=7, repeats=3)
    for number, (_, test) in enumerate(truth):
        np.testing.assert_array_equal(cv(images(count=30), 2 * 4 + number).test, test)


# ---- stratified


def test_a_rare_class_is_dealt_out_evenly_and_folds_are_equally_large():
    pixels = np.full((23, 2), 100, np.int32)
    pixels[:, 1] = np.arange(23) < 5  # five images have one pixel each
    cv = Stratified(inner_val=0)
    for fold in range(5):
        test = cv(images(pixels=pixels), fold).test
        assert pixels[test, 1].sum() == 1
        assert len(test) == (5 if fold < 3 else 4)


def test_pixels_count_not_images():
    pixels = np.array([[4], [1], [1], [1], [1], [0], [0], [0]], np.int32)
    tests = [Stratified(folds=2)(images(pixels=pixels), fold).test.tolist() for fold in (0, 1)]
    assert sorted(tests) == [[0, 5, 6, 7], [1, 2, 3, 4]]


def test_the_inner_part_is_stratified_too():
    pixels = np.ones((40, 2), np.int32)
    pixels[:, 1] = np.arange(40) < 20
    split = Stratified(folds=2, inner_val=0.2)(images(pixels=pixels), 1)
    assert [pixels[indices, 1].sum() for _, indices in split.items()] == [8, 2, 10]


def test_street_scenes_are_balanced_ten_times_better_than_by_chance():
    rng = np.random.default_rng(0)
    # Rare classes are in every sixth image; sizes of objects spread as far as between near and far.
    pixels = ((rng.random((300, 8)) < np.linspace(1, 1 / 6, 8)) * rng.lognormal(8, 1, (300, 8))).astype(np.int32)

    def imbalance(strategy):
        tests = [strategy(images(pixels=pixels), fold).test for fold in range(5)]
        return np.mean([np.abs(5 * pixels[test].sum(axis=0) / pixels.sum(axis=0) - 1) for test in tests])

    assert imbalance(Stratified()) < imbalance(KFold()) / 10


def test_stratified_repeats_differ_and_images_of_void_are_taken():
    pixels = np.random.default_rng(0).integers(0, 9, (20, 3)).astype(np.int32)
    pixels[:6] = 0
    cv = Stratified(folds=2, repeats=2)
    assert cv(images(pixels=pixels), 0).test.tolist() != cv(images(pixels=pixels), 2).test.tolist()
    sizes = np.bincount(balanced_parts(np.zeros((7, 3), np.int32), [4, 3], np.random.default_rng(0)))
    assert sizes.tolist() == [4, 3]


# ---- grouped


def test_the_first_grouped_repeat_is_that_of_scikit_learn():
    cities = [city for city, count in CITIES["train"].items() for _ in range(count)]
    truth = model_selection.GroupKFold(5).split(cities, groups=cities)
    for fold, (train, test) in enumerate(truth):
        split = Grouped(inner_val=0, seed=3)(images(cities), fold)
        np.testing.assert_array_equal(split.test, test)
        np.testing.assert_array_equal(split.train, train)
        assert abs(len(test) - 2975 / 5) < 0.07 * 2975 / 5


def test_a_city_with_half_of_all_is_a_fold_of_its_own():
    sizes = [len(Grouped(folds=3)(images(HALF_IN_ONE), fold).test) for fold in range(3)]
    assert sorted(sizes) == [4, 6, 10]


def test_later_grouped_repeats_are_other_folds_as_even_as_can_be():
    sizes = {"a": 9, "b": 8, "c": 7, "d": 6, "e": 5, "f": 4, "g": 3, "h": 2}
    groups = [name for name, count in sizes.items() for _ in range(count)]
    cv = Grouped(folds=2, repeats=4)
    tests = [cv(images(groups), fold).test for fold in range(0, cv.count, 2)]
    assert [len(test) for test in tests] == [22, 22, 22, 22]
    assert len({tuple(test) for test in tests}) > 1


def test_inner_groups_are_the_nearest_to_the_share_of_all_choices():
    rng = np.random.default_rng(5)
    for _ in range(20):
        sizes = rng.integers(1, 40, rng.integers(3, 8))
        groups = np.repeat([f"g{number}" for number in range(len(sizes))], sizes).tolist()
        split = Grouped(folds=3, inner_val=(share := float(rng.uniform(0.02, 0.9))))(images(groups), 0)
        rest = np.unique([groups[index] for index in (*split.train, *split.val)], return_counts=True)[1]
        sums = [sum(chosen) for r in range(1, len(rest)) for chosen in itertools.combinations(rest.tolist(), r)]
        wanted = share * rest.sum()
        assert abs(len(split.val) - wanted) == pytest.approx(min(abs(total - wanted) for total in sums))


def test_groups_can_come_from_a_file(tmp_path):
    data = images(count=4)
    path = tmp_path / "drives.csv"
    path.write_text("file,group\n" + "".join(f"{name},{i % 2}\n" for i, name in reversed(list(enumerate(data.names)))))
    cv = Grouped(folds=2, inner_val=0, groups=str(path))
    assert sorted(cv(data, fold).test.tolist() for fold in (0, 1)) == [[0, 2], [1, 3]]
    assert cv.groups_of(data) == ["0", "1", "0", "1"]
    path.write_text(f"file,group\n{data.names[0]},\n")
    with pytest.raises(DataError, match=r"file without a group\n.*train/0.jpg\n.*\n?.*file not listed \(3\)"):
        read_groups(path, data.names)


# ---- cities


def numbered_cities(names):
    return PairsDataModule(None, **OPTIONS).cities(names)


def test_numbers_of_the_public_pairs_are_cities_in_the_order_of_their_files():
    names = [f"train/{number}.jpg" for number in range(1, 2976)]
    cities = dict(zip(range(1, 2976), numbered_cities(names), strict=True))
    counts = [174, 96, 316, 154, 85, 221, 109, 248, 196, 119, 99, 94, 365, 196, 144, 95, 142, 122]
    assert [len(list(run)) for _, run in itertools.groupby(cities.values())] == counts
    # Last numbers by hand: 174; + 96; + 316; ...
    expected = {1: "aachen", 174: "aachen", 175: "bochum", 270: "bochum", 271: "bremen", 586: "bremen", 2853: "weimar"}
    expected |= {2854: "zurich", 2975: "zurich", 1911: "monchengladbach", 1912: "strasbourg", 2276: "strasbourg"}
    assert {number: cities[number] for number in expected} == expected
    val = numbered_cities([f"val/{number:04}.png" for number in range(500, 0, -1)])
    assert (val[-1], val[-267], val[-268], val[500 - 326], val[500 - 327], val[0]) == (
        "frankfurt", "frankfurt", "lindau", "lindau", "munster", "munster",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([f"train/{n}.jpg" for n in range(1, 2975)], r"found 2974 composites, expected exactly 2975 .* or 500"),
        ([f"train/{n}.jpg" for n in range(2975)], "found no number 2975, expected the numbers 1 to 2975"),
        ([f"val/img_{n}.png" for n in range(1, 501)], "found val/img_1.png, expected the numbers 1 to 500"),
        ([], "found 0 composites"),
    ],
)
def test_other_numberings_have_no_cities_and_the_ways_out_are_named(names, found):
    with pytest.raises(DataError, match=rf"{found}.* Fix: cv.groups=FILE.csv .* or cv=kfold"):
        numbered_cities(names)


def test_cities_of_the_downloaded_layout_are_its_folders(tmp_path):
    names = ["leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png", "leftImg8bit/train/jena/x_leftImg8bit.png"]
    assert GtFineDataModule(str(tmp_path), **OPTIONS).cities(names) == ["ulm", "jena"]


# ---- what cannot work


@pytest.mark.parametrize(
    ("strategy", "data", "message"),
    [
        (KFold(), images(count=3), r"cv.folds=5: found 3 training images, .* Fix: cv.folds=3, or more images"),
        (Stratified(), images(count=1), r"cv.folds=5: found 1 training images, .* Fix: more images"),
        (Grouped(), images(CITIES_OF_SEVEN), r"found 3 groups of .* \(aachen, bochum, ulm\), .* Fix: cv.folds=3, or"),
        (KFold(folds=2), images(count=2), r"cv.inner_val=0.1: fold 0 leaves 1 image .* Fix: cv.inner_val=0"),
        (Grouped(folds=2), images(["a", "a", "b"]), r"fold 0 leaves 1 group of images beside .* Fix: cv.inner_val=0"),
        (Grouped(folds=2), images(HALF_IN_ONE), r"fold 1 leaves 1 group of images beside"),  # said before fold 0 runs
    ],
)
def test_too_little_data_names_both_numbers_and_the_fix(strategy, data, message):
    with pytest.raises(ConfigError, match=message):
        strategy(data, 0)


@pytest.mark.parametrize("fold", [-1, 10, 1.0, True, "0"])
def test_a_fold_that_does_not_exist_is_refused(fold):
    with pytest.raises(ConfigError, match=rf"fold={fold}: .* from 0 to 9 \(cv.folds=5, cv.repeats=2\)"):
        KFold(repeats=2)(images(count=20), fold)


def test_problems_of_the_options_are_collected():
    with pytest.raises(ConfigError, match=r"4 problems.*\n.*cv.folds: found 1.*\n.*repeats.*\n.*seed.*\n.*inner_val"):
        KFold(folds=1, repeats=0, seed=-1, inner_val=1)
    with pytest.raises(ConfigError, match=r"cv.seed: found 4294967295, expected at most 4294967294"):
        KFold(seed=2**32 - 1, repeats=2)
    typed = config_problems("splits.Grouped", folds=2.5, seed=True, inner_val="0.1", groups=None)
    assert all(f"data.{key}: found" in typed for key in ("folds", "seed", "inner_val", "groups"))


def test_a_config_builds_a_strategy():
    node = {"_target_": "cityseg.data.splits.KFold", "folds": 3, "seed": 1, "inner_val": 0, "repeats": 2}
    assert hydra.utils.instantiate(node) == KFold(folds=3, seed=1, inner_val=0, repeats=2)


# ---- files


NAMES = ["train/1.jpg", "train/2.jpg", "train/a, b.jpg", "train/10.jpg"]
SPLIT = Split(np.array([0, 3]), np.array([2]), np.array([1]))


def write(path, lines, header="file,part"):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def same(split, other):
    return all(a.tolist() == b.tolist() for (_, a), (_, b) in zip(split.items(), other.items(), strict=True))


def test_a_written_split_is_a_table_that_reads_back_in_any_order_of_the_samples(tmp_path):
    path = tmp_path / "run" / "split.csv"
    write_split(path, NAMES, SPLIT)
    assert (
        path.read_text() == 'file,part\ntrain/1.jpg,train\ntrain/2.jpg,test\n"train/a, b.jpg",val\ntrain/10.jpg,train\n'
    )
    assert same(read_split(path, NAMES), SPLIT)
    assert same(read_split(path, NAMES[::-1]), Split(np.array([0, 3]), np.array([1]), np.array([2])))


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "split.csv"
    path.write_bytes("\ufefffile,part,note\r\nä.jpg,test,\r\nb.jpg,train,x\r\n".encode())
    assert same(read_split(path, ["ä.jpg", "b.jpg"]), Split(np.array([1]), np.array([], int), np.array([0])))


def test_every_kind_of_wrong_line_is_named_with_ten_examples_and_a_count(tmp_path):
    lines = ["train/1.jpg,train", "train/1.jpg,test", "train/2.jpg,tset", *(f"other/{n}.jpg,val" for n in range(12))]
    with pytest.raises(DataError) as caught:
        read_split(write(tmp_path / "split.csv", lines), NAMES)
    message = str(caught.value)
    assert message.startswith(f"4 problems with {tmp_path / 'split.csv'}:")
    assert "file listed twice\n       train/1.jpg: train, then test" in message
    assert "unknown part\n       train/2.jpg: found 'tset'. Did you mean 'test'?" in message
    assert "unknown file (12)\n       other/0.jpg" in message
    assert "other/9.jpg\n       ... and 2 more\n     Fix: write paths from data.root on, as train/1.jpg" in message
    assert "file not listed (2)\n       train/a, b.jpg\n       train/10.jpg" in message


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"file;part\n", "found the columns file;part, expected CSV in UTF-8 with the columns file,part"),
        (b"", r"found the columns \(none\), expected"),
        (b"\xff\xd8\xff\xe0", "can't decode .* expected CSV"),
        (b"file,part\ntrain/1.jpg\n", "unknown part"),
    ],
)
def test_a_file_that_is_no_split_says_what_was_expected(tmp_path, content, found):
    (tmp_path / "split.csv").write_bytes(content)
    with pytest.raises(DataError, match=found):
        read_split(tmp_path / "split.csv", NAMES)
    with pytest.raises(DataError, match="No such file or directory, expected CSV"):
        read_split(tmp_path / "none.csv", NAMES)


def test_a_written_split_can_be_given_back(tmp_path):
    data = images(count=11)
    first = KFold()(data, 3)
    write_split(tmp_path / "split.csv", data.names, first)
    cv = Files(path=str(tmp_path / "split.csv"))
    assert cv.count == 1
    assert same(cv(data, 0), first)
    with pytest.raises(ConfigError, match="fold=3: expected 0, the only one"):
        cv(data, 3)


def test_a_folder_has_a_file_for_each_fold(tmp_path):
    data = images(count=12)
    for fold in range(11):
        write_split(tmp_path / f"fold{fold}.csv", data.names, KFold(folds=12)(data, fold))
    cv = Files(path=str(tmp_path))
    assert cv.count == 11
    assert same(cv(data, 10), KFold(folds=12)(data, 10))
    (tmp_path / "fold4.csv").unlink()
    with pytest.raises(DataError, match=r"but no fold4.csv. Fix: number the folds from 0 on"):
        cv(data, 10)


def test_split_files_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cv.path: found none, expected a CSV file .* or a folder of fold0.csv"):
        Files(path=None)
    with pytest.raises(ConfigError, match=r"cv.path: .*nowhere does not exist; .* holds nothing, expected"):
        Files(path=str(tmp_path / "nowhere"))
    (tmp_path / "fold1.csv").touch()
    with pytest.raises(ConfigError, match=r"cv.path: .* holds fold1.csv, expected"):
        Files(path=str(tmp_path))
    data = images(count=2)
    path = write(tmp_path / "split.csv", [f"{name},train" for name in data.names])
    with pytest.raises(DataError, match="no file has the part test"):
        Files(path=str(path))(data, 0)


# ---- leaks


@pytest.fixture
def four(tmp_path):
    """Four different photos, the first three of one size in bytes."""
    for name, content in zip(NAMES, (b"aaaa", b"bbbb", b"cccc", b"d"), strict=True):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def test_a_split_without_leaks_passes_and_only_files_of_one_size_in_two_parts_are_read(four, monkeypatch):
    read, digest = [], split_files._digest
    monkeypatch.setattr(split_files, "_digest", lambda root, name: read.append(name) or digest(root, name))
    check_leaks(four, NAMES, SPLIT, groups=["a", "c", "b", "a"])
    assert sorted(read) == sorted(NAMES[:3])


def test_the_same_file_in_two_parts_is_a_leak(four):
    split = Split(np.array([0, 1]), np.array([2]), np.array([1, 3]))
    with pytest.raises(DataError, match=r"same file twice\n +train/2.jpg: train and test"):
        check_leaks(four, NAMES, split)


def test_equal_content_under_two_names_is_a_leak_between_parts_only(four):
    (four / NAMES[3]).write_bytes(b"aaaa")
    check_leaks(four, NAMES, SPLIT)  # both are trained on
    split = Split(np.array([0, 1]), np.array([2]), np.array([3]))
    with pytest.raises(DataError, match=r"same content .*\n +train/1.jpg \(train\) = train/10.jpg \(test\)\n"):
        check_leaks(four, NAMES, split)


def test_a_link_to_a_file_of_another_part_is_a_leak(four):
    (four / NAMES[1]).unlink()
    os.symlink(four / NAMES[0], four / NAMES[1])
    with pytest.raises(DataError, match=r"train/1.jpg \(train\) = train/2.jpg \(test\)"):
        check_leaks(four, NAMES, SPLIT)


def test_a_city_in_two_parts_is_a_leak_where_grouped(four):
    with pytest.raises(DataError, match=r"group in two parts\n +ulm: 2 train, 1 test\n"):
        check_leaks(four, NAMES, SPLIT, groups=["ulm", "ulm", "jena", "ulm"])
    cv = Files(path=str(write(four / "split.csv", [f"{name},train" for name in NAMES])), groups="city")
    assert cv.groups_of(TrainingImages(NAMES, lambda: ["ulm"] * 4, lambda: np.zeros((4, 1)))) == ["ulm"] * 4
