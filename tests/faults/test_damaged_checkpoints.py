"""Checkpoints that were damaged on the disk: never taken for whole, and the one before is gone on from."""

import contextlib
import logging
import os
import random
import shutil

import pytest

from cityseg.checkpoints import LAST, NEXT, PREVIOUS, load_checkpoint, resumable_checkpoint
from cityseg.errors import CheckpointError
from cityseg.runs.evaluation import evaluate
from tests.test_resume import content, equal

pytestmark = pytest.mark.slow
LONG = ("trainer.max_epochs=2", "augment=strong")


def truncate(whole, other, draw):
    return whole[: draw.randrange(1, len(whole))]


def zero(whole, other, draw):
    start = draw.randrange(len(whole))
    stop = min(start + draw.randint(1, 1 << draw.randint(0, 21)), len(whole))
    return whole[:start] + bytes(stop - start) + whole[stop:]


def flip(whole, other, draw):
    damaged = bytearray(whole)
    for bit in draw.sample(range(8 * len(whole)), draw.randint(1, 8)):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def swap(whole, other, draw):
    """A part of another file, in the middle or to the end, as disks that write to the wrong place leave it."""
    start, length = draw.randrange(len(whole) - 1), draw.choice([512, 4096, len(whole)])
    return whole[:start] + other[start : start + length] + whole[start + length :]


def append(whole, other, draw):
    return whole + draw.choice([draw.randbytes(draw.randint(1, 100_000)), bytes(4096), other, whole])


def empty(whole, other, draw):
    return b""


def damaged(seed, whole, other):
    draw = random.Random(seed)
    damage = (truncate, zero, flip, flip, swap, append)[seed % 6] if seed else empty
    while (found := damage(whole, other, draw)) == whole:
        pass  # zeros where there were zeros
    return found


def test_of_a_hundred_damages_to_the_last_checkpoint_each_is_seen_and_the_one_before_is_used(run_tiny, caplog):
    folder = run_tiny(*LONG) / "checkpoints"
    last, previous = folder / LAST, folder / PREVIOUS
    whole, other, weights = last.read_bytes(), previous.read_bytes(), load_checkpoint(last).state_dict
    assert whole != other
    assert resumable_checkpoint(folder) == last
    whole_weights = 0
    for seed in range(100):
        last.write_bytes(damaged(seed, whole, other))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "cityseg"):
            assert resumable_checkpoint(folder) == previous, seed
        assert [record.message for record in caplog.records] == [f"{last} is damaged: going on from previous.ckpt"]
        with contextlib.suppress(CheckpointError):
            equal(load_checkpoint(last).state_dict, weights)  # where it lost its seal alone
            whole_weights += 1
    assert whole_weights <= 10
    previous.write_bytes(damaged(3, other, whole))
    with pytest.raises(CheckpointError, match=r"found last\.ckpt and previous\.ckpt damaged.*Fix: start a new run"):
        resumable_checkpoint(folder)


class Killed(BaseException):
    pass


def test_a_run_goes_on_from_the_one_before_and_is_never_without_a_whole_one(run_tiny, monkeypatch, tmp_path, caplog):
    folder = run_tiny(*LONG)
    expected, whole = content(folder), tmp_path / "whole"
    best = load_checkpoint(folder / "checkpoints/best.ckpt").state_dict
    (folder / "checkpoints" / LAST).write_bytes(b"damaged")
    (folder / "metrics.json").unlink()
    folder.rename(whole)
    replace, names = os.replace, []

    def killed(source, target):
        if str(target).startswith(str(folder / "checkpoints/")) and not str(target).endswith("best.ckpt"):
            names.append(os.path.basename(target))
            if len(names) == most:
                raise Killed
        replace(source, target)

    for most in range(1, 9):  # noqa: B007  (for the function above)
        shutil.copytree(whole, folder)
        names.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            try:
                run_tiny(f"resume={folder}")
            except Killed:
                resumable_checkpoint(folder / "checkpoints")
                shutil.rmtree(folder)
            else:
                break
    assert names == [NEXT, PREVIOUS, LAST, NEXT, PREVIOUS, LAST]
    assert "last.ckpt is damaged: going on from previous.ckpt" in caplog.text
    equal(expected, content(folder))
    equal(best, load_checkpoint(folder / "checkpoints/best.ckpt").state_dict)


def test_a_damaged_best_checkpoint_is_not_scored(run_tiny, compose_config, tmp_path):
    best = run_tiny() / "checkpoints/best.ckpt"
    whole = best.read_bytes()
    for seed in (0, 1, 2, 8):
        best.write_bytes(damaged(seed, whole, whole[::-1]))
        with pytest.raises(CheckpointError, match=r"ckpt=.*best\.ckpt: "):
            evaluate(compose_config([f"ckpt={best}"], name="evaluate"), tmp_path / "scored")
    assert not (tmp_path / "scored/metrics.json").exists()
