import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cityseg.data import datamodule
from cityseg.data.folders import FoldersDataModule
from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.pairs import PairsDataModule
from cityseg.data.transforms import Augment
from cityseg.errors import ConfigError, DataError, FileProblem
from tests.data.layouts import OPTIONS, photo, save, write_gtfine

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
    for split in ("train", "val"):
        data.samples(split).photos[:] = b"gone"


@pytest.mark.parametrize(("module", "extra"), LAYOUTS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_cached_samples_are_the_same_bit_for_bit_and_no_file_is_read_again(built_in, module, extra, scale):
    cached = built_in(module, extra, scale=scale, cache="ram")
    forget_files(cached)
    assert_equal(batches(built_in(module, extra, scale=scale)), batches(cached))


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_workers_get_the_same_samples_with_and_without_a_cache(built_in, cache):
    assert_equal(batches(built_in()), batches(built_in(workers=2, cache=cache)))


@pytest.mark.slow
def test_spawned_workers_get_the_cached_samples_too(built_in):
    data = built_in(cache="ram")
    expected = list(data.val_dataloader())
    forget_files(data)
    dataset = data.val_dataloader().dataset
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="spawn")
    assert_equal(expected, list(loader))


def test_photos_of_several_sizes_are_cached(tmp_path):
    root = write_gtfine(tmp_path / "data")
    save(photo(31, 17), root / "leftImg8bit/train/zug/zug_000000_000000_leftImg8bit.png")
    save(np.full((31, 17), 7), root / "gtFine/train/zug/zug_000000_000000_gtFine_labelIds.png")
    plain, cached = (GtFineDataModule(str(root), cache=cache, val_crop=20, **OPTIONS) for cache in ("none", "ram"))
    cached.setup("fit")
    forget_files(cached)
    assert_equal(batches(plain), batches(cached))


def test_what_a_sample_is_used_for_leaves_the_cache_as_it_was(built_in):
    data = built_in(cache="ram")
    dataset = data.val_dataloader().dataset
    dataset[0]["photo"].zero_()
    dataset[0]["target"].zero_()
    assert dataset[0]["photo"].any()
    assert dataset[0]["target"].any()
    with pytest.raises(ValueError, match="read-only"):
        dataset.pairs[0].photo[:] = 0


def test_the_size_is_announced(tmp_path, caplog):
    root = write_gtfine(tmp_path / "data", size=(400, 500))
    with caplog.at_level(logging.INFO, "cityseg"):
        GtFineDataModule(str(root), cache="ram", scale=0.5, **OPTIONS).setup("fit")
    lines = [record.message for record in caplog.records if record.message.startswith("caching")]
    # 4 x (3 + 1) x 200 x 250 bytes; 2 x (3 x 200 x 250 + 400 x 500) bytes
    assert lines == ["caching 4 train photos: 0.8 MB", "caching 2 val photos: 0.7 MB"]


def test_too_little_memory_is_refused_with_both_figures_before_anything_is_decoded(tmp_path, monkeypatch):
    root = write_gtfine(tmp_path / "data", size=(500, 1000))
    data = GtFineDataModule(str(root), cache="ram", **OPTIONS)
    data.index(["train", "val"])
    forget_files(data)
    monkeypatch.setattr(datamodule, "available_memory", lambda: 13_300_000)
    # 6 photos of 4 bytes a pixel are 12 MB; nine tenths of 13.3 MB are less
    with pytest.raises(DataError, match=r"4 train and 2 val photos take 12.0 MB.*90% of the 13.3 MB.*data.cache=none"):
        data.setup("fit")
    monkeypatch.setattr(datamodule, "available_memory", lambda: 13_400_000)
    with pytest.raises(FileProblem, match="no such file"):  # enough: it starts to decode
        data.setup("fit")


def test_every_process_of_a_run_needs_memory_for_a_cache_of_its_own(tmp_path, monkeypatch):
    data = GtFineDataModule(str(write_gtfine(tmp_path / "data", size=(500, 1000))), cache="ram", **OPTIONS)
    data.trainer = SimpleNamespace(num_devices=2)
    monkeypatch.setattr(datamodule, "available_memory", lambda: 20_000_000)
    with pytest.raises(DataError, match=r"take 12.0 MB in each of 2 processes.*20.0 MB"):
        data.setup("fit")


def test_a_file_that_cannot_be_decoded_is_named(tmp_path):
    root = write_gtfine(tmp_path / "data", size=(64, 64))
    data = GtFineDataModule(str(root), cache="ram", **OPTIONS)
    data.index(["train", "val"])
    damaged = data.samples("train").photo(1)
    damaged.write_bytes(damaged.read_bytes()[:2000])
    with pytest.raises(FileProblem, match=damaged.name):
        data.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "rams"}, "data.cache: found 'rams', expected 'none' or 'ram'. Did you mean 'ram'"),
        (
            {"sampling": "class_balance"},
            "data.sampling: found 'class_balance', expected 'uniform' or 'class_balanced'. "
            "Did you mean 'class_balanced'",
        ),
        ({"verify": "fully"}, "Did you mean 'full'"),
    ],
)
def test_unknown_choices_are_refused_with_the_nearest(options, message):
    with pytest.raises(ConfigError) as caught:
        GtFineDataModule(None, **{**OPTIONS, **options})
    assert message in str(caught.value)
