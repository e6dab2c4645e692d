import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cityseg.checkpoints import load_checkpoint
from cityseg.data import cache as disk_cache
from cityseg.data import decoded
from cityseg.data.decoded import Stack
from cityseg.data.folders import FoldersDataModule
from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.loading import collate
from cityseg.data.pairs import PairsDataModule
from cityseg.data.samples import Pair
from cityseg.data.splits import KFold
from cityseg.data.transforms import Augment
from cityseg.errors import DataError, FileProblem
from tests.conftest import ROOT
from tests.data.layouts import OPTIONS, config_problems, photo, save, write_gtfine, write_pairs

LAYOUTS = [(GtFineDataModule, {}), (PairsDataModule, {}), (FoldersDataModule, {"classes": None})]


@pytest.fixture
def built_in(cache_dir):
    def build(module=GtFineDataModule, extra=None, **options):
        wanted = {**OPTIONS, "augment": Augment(scale=(0.5, 2.0), flip=0.5), **(extra or {}), **options}
        scenes = {"train": 6, "val": 3, "size": 64}
        data = module(None, cache_dir=str(cache_dir), scenes=scenes, **wanted)
        data.setup("fit")
        return data

    return build


def batches(data):
    return [batch for loader in (data.train_dataloader(), data.val_dataloader()) for batch in loader]


def assert_equal(one, two):
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def forget_files(data):
    """Let anything that is still read from a file fail."""
    for samples in data._samples.values():
        samples.photos[:] = b"gone"


@pytest.fixture
def log(caplog):
    """What was logged since the last look."""
    caplog.set_level(logging.INFO, "cityseg")

    def look():
        text = caplog.text
        caplog.clear()
        return text

    return look


def cached(root, cache_dir, cache="disk", module=GtFineDataModule, **options):
    """A data module whose cache, on disk unless said otherwise, is filled."""
    data = module(str(root), cache=cache, cache_dir=str(cache_dir), **{**OPTIONS, **options})
    data.setup("fit")
    return data


def caches(folder):
    """Folders of the caches on disk, by the kind of picture in them."""
    return {path.name.split("-")[-2]: path for path in (folder / "decoded").glob("data-train-*")}


@pytest.mark.parametrize(("module", "extra"), LAYOUTS)
@pytest.mark.parametrize(("scale", "cache"), [(1.0, "ram"), (0.5, "ram"), (0.5, "disk")])
def test_cached_samples_are_the_same_bit_for_bit_and_no_file_is_read_again(built_in, module, extra, scale, cache):
    cached = built_in(module, extra, scale=scale, cache=cache)
    forget_files(cached)
    assert_equal(batches(built_in(module, extra, scale=scale)), batches(cached))


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_workers_get_the_same_samples_with_and_without_a_cache(built_in, cache):
    assert_equal(batches(built_in()), batches(built_in(workers=2, cache=cache)))


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_spawned_workers_get_the_cached_samples_too(built_in, cache):
    data = built_in(cache=cache)
    expected = list(data.val_dataloader())
    forget_files(data)
    dataset = data.val_dataloader().dataset
    loader = DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=2, multiprocessing_context="spawn")
    assert_equal(expected, list(loader))


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_photos_of_several_sizes_are_cached(tmp_path, cache):
    root = write_gtfine(tmp_path / "data")
    save(photo(31, 17), root / "leftImg8bit/train/zug/zug_000000_000000_leftImg8bit.png")
    save(np.full((31, 17), 7), root / "gtFine/train/zug/zug_000000_000000_gtFine_labelIds.png")
    data = cached(root, tmp_path, cache, val_crop=20)
    forget_files(data)
    assert_equal(batches(cached(root, tmp_path, "none", val_crop=20)), batches(data))


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_what_a_sample_is_used_for_leaves_the_cache_as_it_was(built_in, cache):
    data = built_in(cache=cache)
    dataset = data.val_dataloader().dataset
    batch = collate([dataset[0]])
    batch["photo"].zero_()
    batch["target"].zero_()
    assert dataset[0].photo.any()
    assert dataset[0].target.any()
    with pytest.raises(ValueError, match="read-only"):
        dataset.pairs[0].photo[:] = 0


def test_the_size_is_announced(tmp_path, caplog):
    root = write_gtfine(tmp_path / "data", size=(400, 500))
    with caplog.at_level(logging.INFO, "cityseg"):
        GtFineDataModule(str(root), cache="ram", scale=0.5, **OPTIONS).setup("fit")
    lines = [record.message for record in caplog.records if record.message.startswith("caching")]
    # 4 x (3 + 1) x 200 x 250 bytes; 2 x (3 x 200 x 250 + 400 x 500) bytes
    assert lines == ["caching 4 train photos: 800.0 kB", "caching 2 val photos: 700.0 kB"]


def test_too_little_memory_is_refused_with_both_figures_before_anything_is_decoded(tmp_path, monkeypatch):
    root = write_gtfine(tmp_path / "data", size=(500, 1000))
    data = GtFineDataModule(str(root), cache="ram", **OPTIONS)
    data.index(["train", "val"])
    forget_files(data)
    monkeypatch.setattr(decoded, "available_memory", lambda: 13_300_000)
    # 6 photos of 4 bytes a pixel are 12 MB; nine tenths of 13.3 MB are less
    with pytest.raises(DataError, match=r"4 train and 2 val photos take 12.0 MB.*90% of the 13.3 MB.*data.cache=none"):
        data.setup("fit")
    monkeypatch.setattr(decoded, "available_memory", lambda: 13_400_000)
    with pytest.raises(FileProblem, match="no such file"):  # enough: it starts to decode
        data.setup("fit")


def test_every_process_of_a_run_needs_memory_for_a_cache_of_its_own(tmp_path, monkeypatch):
    data = GtFineDataModule(str(write_gtfine(tmp_path / "data", size=(500, 1000))), cache="ram", **OPTIONS)
    data.trainer = SimpleNamespace(num_devices=2)
    monkeypatch.setattr(decoded, "available_memory", lambda: 20_000_000)
    with pytest.raises(DataError, match=r"take 12.0 MB in each of 2 processes.*20.0 MB"):
        data.setup("fit")


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_file_that_cannot_be_decoded_is_named_and_nothing_half_done_is_left(tmp_path, cache):
    root = write_gtfine(tmp_path / "data", size=(64, 64))
    data = GtFineDataModule(str(root), cache=cache, cache_dir=str(tmp_path), **OPTIONS)
    data.index(["train", "val"])
    damaged = data.samples("train").photo(1)
    damaged.write_bytes(damaged.read_bytes()[:2000])
    with pytest.raises(FileProblem, match=damaged.name):
        data.setup("fit")
    assert not list(tmp_path.rglob("*.bin"))


FOLDS = KFold(folds=3, inner_val=0.3)


@pytest.mark.parametrize(
    ("write", "module", "options"),
    [
        (write_gtfine, GtFineDataModule, {}),
        (write_pairs, PairsDataModule, {"labels": "palette"}),
        (write_pairs, PairsDataModule, {"labels": "kmeans", "clusters": 3}),
    ],
)
def test_folds_share_what_is_decoded(tmp_path, log, write, module, options):
    root = write(tmp_path / "data", counts=(("train", 9), ("val", 1)))

    def samples(fold, cache):
        data = module(str(root), cache=cache, cache_dir=str(tmp_path), **options, **OPTIONS)
        data.divide(FOLDS, fold)
        data.fit_labels()
        classes.append(data.label_space.colors)
        data.setup("fit")
        if cache == "disk":
            forget_files(data)
        loaders = [data.train_dataloader(), data.eval_dataloader("val"), data.eval_dataloader("test")]
        return [batch for loader in loaders for batch in loader]

    found, classes = [], []
    for fold in (0, 1):
        log()
        assert_equal(samples(fold, "none"), samples(fold, "disk"))
        found.append([line.split("cache.py")[1].split(" ", 1)[1] for line in log().splitlines() if "caching" in line])
    first = ["caching 9 train photos and targets on disk"]
    # The clusters of each fold are its own (but the same here with scikit-learn 1.5), the photos are not.
    second = ["caching 9 train targets on disk"] if classes[0] != classes[-1] else []
    assert [[line.rpartition(":")[0] for line in lines] for lines in found] == [first, second]


def test_clusters_of_a_config_are_the_same_cache_as_those_that_were_found(tmp_path, log):
    root = write_pairs(tmp_path / "data")
    data = PairsDataModule(str(root), cache="disk", cache_dir=str(tmp_path), labels="kmeans", clusters=3, **OPTIONS)
    centers = data.fit_labels()["centers"]
    data.setup("fit")
    log()
    cached(root, tmp_path, module=PairsDataModule, labels="kmeans", clusters=3, centers=centers)
    assert "decoded already" in log()


def test_packed_files_are_cached_too(tmp_path, log):
    pytest.importorskip("webdataset")
    from cityseg.data.pack import pack
    from cityseg.data.stream import stream

    root = write_gtfine(tmp_path / "data")
    pack("gtfine", str(root), tmp_path / "packed")
    data = stream(str(tmp_path / "packed"), cache="disk", cache_dir=str(tmp_path), **OPTIONS)
    data.setup("fit")
    forget_files(data)
    assert_equal(batches(cached(root, tmp_path, "none")), batches(data))


def test_how_labels_are_read_and_photos_are_scaled_belongs_to_the_cache(tmp_path, log):
    root = write_gtfine(tmp_path / "data")
    for options, expected in [
        ({}, "4 train photos and targets"),
        ({"label_space": "cityscapes20"}, "4 train targets"),
        ({"scale": 0.5}, "4 train photos and targets"),
        ({"val_crop": 16}, "2 val photos and targets"),
    ]:
        log()
        plain = cached(root, tmp_path, "none", **options)
        assert_equal(batches(plain), batches(cached(root, tmp_path, **options)))
        assert f"caching {expected} on disk" in log()
    cached(root, tmp_path)
    assert "decoded already" in log()


def test_changed_files_are_decoded_again(tmp_path, log):
    def first_photo(data):
        return data._pairs("train", data._train_view)[0].photo

    root = write_gtfine(tmp_path / "data")
    data = cached(root, tmp_path)
    path, before = data.samples("train").photo(0), first_photo(data).copy()
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    save(np.full_like(before, 7), path)
    os.utime(path, ns=(time, time))
    assert (smaller := path.stat().st_size) < size
    log()
    assert (first_photo(cached(root, tmp_path)) == 7).all()  # seen by its size alone
    assert "train-photos" in (text := log())
    assert "is stale" in text
    assert "train-targets" not in text  # whose files are as they were
    save(np.full_like(before, 8), path)
    os.utime(path, ns=(time + 1, time + 1))
    assert path.stat().st_size == smaller
    assert (first_photo(cached(root, tmp_path)) == 8).all()  # seen by its time alone
    assert "is stale" in log()
    assert (first_photo(data) == before).all()  # who has the old one open keeps it


def test_more_files_make_a_cache_stale(tmp_path, log):
    root = write_gtfine(tmp_path / "data")
    cached(root, tmp_path)
    write_gtfine(root, counts=(("train", 5),))
    data = cached(root, tmp_path)
    assert "is stale" in log()
    assert_equal(batches(cached(root, tmp_path, "none")), batches(data))


@pytest.mark.parametrize("harm", ["short data", "no data", "half an index", "no index"])
def test_what_is_not_whole_is_never_used(tmp_path, log, harm):
    root = write_gtfine(tmp_path / "data")
    cached(root, tmp_path)
    folder = caches(tmp_path)["targets"]
    data, index = folder / "data.bin", folder / "index.json"
    match harm:
        case "short data":
            os.truncate(data, 100)
        case "no data":
            data.unlink()
        case "half an index":
            os.truncate(index, 40)
        case "no index":
            index.unlink()
            data.write_bytes(bytes(data.stat().st_size))
    log()
    again = cached(root, tmp_path)
    assert "made anew" in log()
    assert_equal(batches(cached(root, tmp_path, "none")), batches(again))


@pytest.mark.parametrize("foreign", ["notes.txt", "index.json"])
def test_what_is_no_cache_is_neither_used_nor_removed(tmp_path, capsys, foreign):
    root = write_gtfine(tmp_path / "data")
    cached(root, tmp_path)
    folder = caches(tmp_path)["photos"]
    (folder / foreign).write_text(json.dumps({"made_by": "someone else"}))
    with pytest.raises(DataError, match=f"{folder.name}: not a decoded cache.*{foreign}.*left as it is"):
        cached(root, tmp_path)
    assert disk_cache.main(["--dir", str(tmp_path), "--prune", "all"]) == 1
    assert "not a decoded cache" in capsys.readouterr().err
    assert (folder / foreign).is_file()
    assert (folder / "data.bin").is_file()
    assert "targets" not in caches(tmp_path)


def test_too_small_a_disk_is_refused_with_both_figures_before_anything_is_decoded(tmp_path, monkeypatch):
    root = write_gtfine(tmp_path / "data", size=(200, 500))
    free = 2_660_000  # 6 photos of 4 bytes a pixel are 2.4 MB; nine tenths of it are less
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(DataError, match=r"take 2.4 MB.*90% of the 2.7 MB.*--prune DAYS.*data.cache_dir"):
        cached(root, tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    free = 2_670_000
    cached(root, tmp_path)
    free = 0  # there already
    cached(root, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what is in memory")
def test_a_crop_reads_its_own_rows_only(tmp_path):
    height, width, rows = 4096, 2048, 64
    path, sizes = tmp_path / "data.bin", np.array([(height, width)], np.int32)
    path.write_bytes(bytes(height * width * 3))
    photos = Stack(path, sizes, 3)
    sample = Pair(photos[0], np.zeros((height, width), np.uint8))
    Augment(flip=1.0, cat_max_ratio=0.5)(sample, (rows, 128), np.random.default_rng(0))[0].sum()
    resident, mapping = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            mapping = line.endswith(str(path))
        elif mapping and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    assert 0 < resident < 6e6  # 0.4 MB, and what the system maps around them; the photo has 25 MB


def test_caches_are_listed_and_removed(tmp_path, capsys):
    def listed(*options):
        assert disk_cache.main(["--dir", str(tmp_path), *options]) == 0
        return capsys.readouterr().out.splitlines()

    root = write_gtfine(tmp_path / "data", size=(100, 200))
    data = cached(root, tmp_path, val_crop=32)
    capsys.readouterr()
    lines = listed("--prune", "all")
    assert "4 decoded caches" in lines[0]
    assert all(line.endswith("in use") for line in lines[1:])
    assert any(f"{root} train, 4 photos  240.0 kB  last used 20" in line for line in lines)
    data._cached.clear()
    old = caches(tmp_path)["photos"]
    os.utime(old / "index.json", (0, 0))
    assert [line.split()[0] for line in listed("--prune", "1") if line.endswith("removed")] == [old.name]
    (caches(tmp_path)["targets"] / "index.json").unlink()
    assert sum("unfinished" in line and line.endswith("removed") for line in listed("--prune", "1000")) == 1
    assert len(listed("--prune", "all")) == 3
    assert "0 decoded caches" in listed()[0]
    with pytest.raises(SystemExit):
        disk_cache.main(["--prune", "-1"])


BUILDER = """
import sys, time
from cityseg.data import gtfine, samples
from tests.data.layouts import OPTIONS
root, cache_dir, stop_after = sys.argv[1:]
data = gtfine.GtFineDataModule(root, cache="disk", cache_dir=cache_dir, **OPTIONS)
data.index(["train", "val"])
read, decoded = samples.read_photo, 0
def slow(path):
    global decoded
    decoded += 1
    if decoded > int(stop_after):
        print("half", flush=True)
        time.sleep(600)
    time.sleep(0.1)
    return read(path)
samples.read_photo = slow
data.setup("fit")
print(decoded, data._pairs("train", data._train_view)[3].photo.sum(), flush=True)
"""


def builder(root, cache_dir, stop_after):
    """Another process, which takes its time to decode and stops after some samples."""
    command = [sys.executable, "-c", BUILDER, str(root), str(cache_dir), str(stop_after)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_builder_that_is_killed_leaves_nothing_that_is_used(tmp_path, log):
    root = write_gtfine(tmp_path / "data")
    killed = builder(root, tmp_path, stop_after=2)
    assert any("half" in line for line in killed.stdout)
    killed.kill()
    killed.wait()
    assert {path.name for path in caches(tmp_path)["photos"].iterdir()} == {"data.bin"}
    data = cached(root, tmp_path)
    assert "is unfinished" in log()
    assert_equal(batches(cached(root, tmp_path, "none")), batches(data))


@pytest.mark.slow
def test_of_two_processes_at_once_one_decodes(tmp_path):
    root = write_gtfine(tmp_path / "data")
    both = [builder(root, tmp_path, stop_after=100) for _ in range(2)]
    found = [process.communicate(timeout=120)[0].split()[-2:] for process in both]
    assert sorted(int(decoded) for decoded, _ in found) == [0, 6]
    expected = np.asarray(Image.open(cached(root, tmp_path, "none").samples("train").photo(3))).sum()
    assert [int(total) for _, total in found] == [expected, expected]


@pytest.mark.slow
def test_a_fold_is_trained_to_the_same_weights_with_and_without_a_cache(run_tiny):
    def digest(cache):
        folder = run_tiny("fold=0", "cv.folds=2", f"data.cache={cache}", folder=cache)
        weights = load_checkpoint(folder / "checkpoints/last.ckpt").state_dict
        assert weights
        return hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights.values())).hexdigest()

    assert digest("none") == digest("disk")


@pytest.mark.parametrize("target", ["gtfine.GtFineDataModule", "stream.stream"])
def test_unknown_choices_are_refused_with_the_nearest(target):
    text = config_problems(target, cache="rams", sampling="class_balance", verify="fully")
    assert "data.cache: found 'rams', expected Literal['none', 'ram', 'disk']. Did you mean 'ram'" in text
    assert "data.sampling: found 'class_balance'" in text
    assert "Did you mean 'class_balanced'" in text
    assert "Did you mean 'full'" in text
