"""Writes tiny data sets in the real layouts, so that a test can break one thing in them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from cityseg.data.transforms import Augment
from cityseg.errors import Problems
from cityseg.labels import label_space
from cityseg.runs.config import check_arguments

OPTIONS = {"augment": Augment(), "crop": 32, "batch_size": 2, "eval_batch_size": 2, "workers": 0}


def config_problems(target, **values) -> str:
    """What is said of values in a config that are not of the type their target takes."""
    problems = Problems("the config")
    check_arguments({"_target_": f"cityseg.data.{target}", **values}, "data", problems)
    return str(problems)


def save(array, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)
    return path


def photo(height=24, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def bomb(width, height) -> bytes:
    """A PNG of a few hundred bytes whose header promises many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (width, 1)).save(buffer, "png")
    data = bytearray(buffer.getvalue())
    data[20:24] = struct.pack(">I", height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def seed_of(split, number):
    """No photo is in two splits."""
    return number + 1000 * ["train", "val", "test"].index(split)


def label_ids(height=24, width=32):
    """Road below, sky above, a car between, an unlabelled corner."""
    ids = np.full((height, width), 23)
    ids[height // 2 :] = 7
    ids[height // 2 : height // 2 + 4, 4:12] = 26
    ids[:2, :2] = 0
    return ids


def write_gtfine(root: Path, counts=(("train", 4), ("val", 2)), size=(24, 32)) -> Path:
    for split, count in counts:
        for number in range(count):
            stem = f"{split}/ulm/ulm_000000_{number:06d}"
            save(photo(*size, seed=seed_of(split, number)), root / "leftImg8bit" / f"{stem}_leftImg8bit.png")
            ids = label_ids(*size)
            save(ids, root / "gtFine" / f"{stem}_gtFine_labelIds.png")
            train_ids = label_space("cityscapes19").encode_table[ids]
            save(train_ids, root / "gtFine" / f"{stem}_gtFine_labelTrainIds.png")
    return root


def composite(size=32, seed=0):
    space = label_space("cityscapes19")
    colors = space.colorize(space.encode_table[label_ids(size, size)].astype(np.uint8))
    return np.concatenate([photo(size, size, seed), colors], axis=1)


def write_pairs(root: Path, counts=(("train", 12), ("val", 2)), ending="jpg") -> Path:
    for split, count in counts:
        for number in range(1, count + 1):
            save(composite(seed=seed_of(split, number)), root / split / f"{number}.{ending}")
    return root


CLASSES = {"road": [128, 64, 128], "sky": [70, 130, 180], "car": [0, 0, 142]}


def write_folders(root: Path, counts=(("train", 4), ("val", 2)), colors=False) -> Path:
    mask = np.zeros((24, 32), np.uint8)
    mask[:12], mask[14:18, 4:12], mask[0, 0] = 1, 2, 255
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = list(CLASSES.values())
    for split, count in counts:
        for number in range(count):
            save(photo(seed=seed_of(split, number)), root / split / "images" / f"{number}.jpg")
            save(palette[mask] if colors else mask, root / split / "masks" / f"{number}.png")
    return root
