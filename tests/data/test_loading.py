import tracemalloc
from itertools import chain

import numpy as np
import pytest
import torch

from cityseg.data.loading import Key, SameSizeBatches, Sample, TrainBatches, collate
from cityseg.data.pairs import PairsDataModule
from cityseg.data.transforms import Augment


def keys(batches):
    return [tuple(key) for batch in batches for key in batch]


def test_an_epoch_has_every_sample_once_and_epochs_differ():
    batches = TrainBatches(12, 4, seed=1)
    first = keys(batches)
    assert sorted(index for _, index, _ in first) == list(range(12))
    batches.set_epoch(1)
    second = keys(batches)
    assert [index for _, index, _ in first] != [index for _, index, _ in second]
    assert {epoch for epoch, _, _ in second} == {1}


def test_the_order_depends_on_seed_and_epoch_alone():
    one, two = TrainBatches(50, 4, seed=1), TrainBatches(50, 4, seed=1)
    keys(two)  # used before
    for epoch in (3, 0):
        one.set_epoch(epoch)
        two.set_epoch(epoch)
        assert keys(one) == keys(two)
    assert keys(TrainBatches(50, 4, seed=2)) != keys(one)


@pytest.mark.parametrize(("count", "batch", "expected"), [(10, 4, 2), (3, 8, 1), (8, 8, 1)])
def test_a_smaller_last_batch_is_dropped_unless_it_is_the_only_one(count, batch, expected):
    batches = TrainBatches(count, batch, seed=0)
    assert len(batches) == len(list(batches)) == expected


def test_processes_share_an_epoch_without_overlap():
    parts = [keys(TrainBatches(22, 4, seed=5, rank=rank, world=2)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1])
    assert not set(parts[0]) & set(parts[1])


def test_two_processes_see_in_a_step_what_one_with_twice_the_batch_sees():
    whole = list(TrainBatches(24, 8, seed=5))
    halves = zip(TrainBatches(24, 4, 5, rank=0, world=2), TrainBatches(24, 4, 5, rank=1, world=2), strict=True)
    assert [sorted(batch) for batch in whole] == [sorted(a + b) for a, b in halves]


BALANCED = np.array([0.7, 0.1, 0.1, 0.1])


def balanced(seed=3, batch=4, rank=0, world=1, epoch=0, probabilities=None):
    chosen = np.repeat(BALANCED / 10, 10) if probabilities is None else probabilities
    batches = TrainBatches(len(chosen), batch, seed, rank, world, chosen)
    batches.set_epoch(epoch)
    return list(batches)


def test_weighted_draws_fill_an_epoch_and_depend_on_seed_and_epoch_alone():
    assert balanced() == balanced()
    assert [len(batch) for batch in balanced()] == [4] * 10
    assert balanced() != balanced(epoch=1)
    assert balanced() != balanced(seed=4)
    halves = zip(balanced(batch=2, world=2), balanced(batch=2, rank=1, world=2), strict=True)
    assert [a + b for a, b in halves] == balanced()


def test_weighted_draws_follow_their_probabilities():
    drawn = [key.sample for epoch in range(2500) for key in chain(*balanced(probabilities=BALANCED, epoch=epoch))]
    assert len(drawn) == 10_000
    # Four standard deviations of a binomial count.
    np.testing.assert_allclose(np.bincount(drawn) / 10_000, BALANCED, atol=4 * np.sqrt(0.7 * 0.3 / 10_000))


def test_a_sample_drawn_again_is_numbered_and_gets_another_crop(data):
    keys = list(chain(*balanced()))
    assert [key.draw for key in keys if key.sample == 0] == list(range(sum(key.sample == 0 for key in keys)))
    assert all(key.draw == 0 for batch in TrainBatches(12, 4, seed=1) for key in batch)
    dataset = data(0).train_dataloader().dataset
    first, again, other = (dataset[Key(0, 2, draw)].photo for draw in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_sampling_once_each_draws_the_crops_that_seed_epoch_and_index_give(data):
    module = data(0)
    samples = module.samples("train")
    rng = np.random.default_rng((0, 4, 2))
    photo, _ = Augment(scale=(0.5, 2.0), flip=0.5)(
        module.reader(samples.photo(2), samples.label(2)), module.crop_size(), rng
    )
    np.testing.assert_array_equal(module.train_dataloader().dataset[Key(4, 2)].photo, photo)


def test_evaluation_batches_hold_one_size_and_every_sample_once():
    sizes = np.array([[4, 4], [4, 4], [4, 4], [4, 6], [4, 6], [4, 4]], np.int32)
    assert list(SameSizeBatches(sizes, 2)) == [[0, 1], [2], [3, 4], [5]]
    shared = [index for rank in (0, 1) for batch in SameSizeBatches(sizes, 2, rank, 2) for index in batch]
    assert sorted(shared) == list(range(6))
    assert [len(SameSizeBatches(sizes[:3], 4, rank, 2)) for rank in (0, 1)] == [2, 1]  # none goes without


def test_evaluation_batches_break_wherever_the_size_changes_or_they_are_full():
    rng = np.random.default_rng(0)
    sizes = np.repeat(rng.integers(4, 6, (40, 2)), rng.integers(1, 9, 40), axis=0).astype(np.int32)
    expected, batch = [], []
    for index, size in enumerate(sizes.tolist()):
        if batch and (len(batch) == 3 or size != sizes[batch[0]].tolist()):
            expected.append(batch)
            batch = []
        batch.append(index)
    assert list(SameSizeBatches(sizes, 3)) == [*expected, batch]
    assert list(SameSizeBatches(sizes[:0], 3)) == []


def test_the_order_of_an_epoch_takes_little_memory_however_many_samples_there_are():
    tracemalloc.start()
    for probabilities in (None, np.full(20_000, 1 / 20_000)):
        next(iter(TrainBatches(20_000, 4, seed=0, probabilities=probabilities)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / 20_000 < 100  # bytes; a list of keys takes three times as much


@pytest.fixture
def data(cache_dir):
    def build(workers, seed=0):
        return PairsDataModule(
            None, augment=Augment(scale=(0.5, 2.0), flip=0.5), crop=32, batch_size=2, eval_batch_size=2,
            workers=workers, seed=seed, cache_dir=str(cache_dir), scenes={"train": 6, "val": 3, "size": 64},
        )  # fmt: skip

    return build


def epoch_of(data, epoch):
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def test_workers_do_not_change_the_samples(data):
    for epoch in (0, 1):
        alone, with_workers = epoch_of(data(0), epoch), epoch_of(data(2), epoch)
        assert len(alone) == len(with_workers) == 3
        for one, two in zip(alone, with_workers, strict=True):
            assert all(torch.equal(one[key], two[key]) for key in ("photo", "target", "index"))


def test_the_same_sample_looks_different_in_another_epoch_and_with_another_seed(data):
    def crop_of_sample_0(seed, epoch):
        for batch in epoch_of(data(0, seed), epoch):
            for position, index in enumerate(batch["index"].tolist()):
                if index == 0:
                    return batch["photo"][position]
        raise AssertionError

    base = crop_of_sample_0(0, 0)
    assert not torch.equal(base, crop_of_sample_0(0, 1))
    assert not torch.equal(base, crop_of_sample_0(1, 0))


def test_loading_leaves_the_global_generator_alone(data):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    epoch_of(data(0), 0)
    assert torch.equal(torch.rand(1), expected)


def test_photos_leave_the_loader_as_bytes(data):
    batch = next(iter(data(0).train_dataloader()))
    assert batch["photo"].dtype == batch["target"].dtype == torch.uint8
    assert batch["photo"].shape == (2, 3, 32, 32)
    whole = next(iter(data(0).val_dataloader()))
    assert whole["photo"].shape == (2, 3, 64, 64)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_one_piece_of_memory(data, workers):
    batch = epoch_of(data(workers), 0)[0]
    assert len({tensor.untyped_storage().data_ptr() for tensor in batch.values()}) == 1
    assert all(tensor.is_shared() == (workers > 0) for tensor in batch.values())
    assert sum(tensor.nbytes for tensor in batch.values()) == batch["photo"].untyped_storage().nbytes()


def test_photos_without_labels_come_with_the_size_that_is_wanted():
    photos = [np.random.default_rng(seed).integers(0, 256, (6, 4, 3), np.uint8) for seed in range(2)]
    batch = collate([Sample(7 + row, photo, None, (12, 8)) for row, photo in enumerate(photos)])
    assert batch.keys() == {"photo", "index", "size"}
    np.testing.assert_array_equal(batch["photo"].permute(0, 2, 3, 1), photos)
    assert (batch["index"].tolist(), batch["size"].tolist()) == ([7, 8], [[12, 8], [12, 8]])
