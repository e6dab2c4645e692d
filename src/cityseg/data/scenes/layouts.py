"""The built-in synthetic street scenes, for when there is no data at hand, written in the real layouts."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from cityseg.data.scenes.scene import CITIES, TRAIN_CITIES, VAL_CITIES, render_scene
from cityseg.errors import ConfigError
from cityseg.files import refusals_named
from cityseg.labels import CITYSCAPES_LABELS, VOID, ByteArray, label_space

log = logging.getLogger(__name__)

SCENES_VERSION = 2
"""Part of the cache folder's name: raised whenever a scene would look different."""

SCENE_CLASSES: tuple[str, ...] = (
    "road", "sidewalk", "building", "pole", "traffic light", "traffic sign", "vegetation", "sky",
    "person", "rider", "car", "bus", "bicycle",
)  # fmt: skip
"""The classes that occur; the train ids of the folders layout number them in this order."""

Layout = Literal["gtfine", "pairs", "folders"]

SCENES_PER_PROCESS = 40  # fewer are not worth the start of a process
MIN_SIZE = 32  # pixels: below, people would be smaller than one


def scenes_root(
    layout: Layout, *, cache_dir: Path, train: int = 200, val: int = 50, size: int = 256, seed: int = 0
) -> Path:
    """The root folder of a set of scenes in one of the layouts, drawn and written if not there yet.

    It is written into a temporary folder beside its place and renamed when complete, so that no half-written
    set is ever used and two processes may ask for the same set at once.

    Args:
        layout: ``gtfine``, ``pairs`` or ``folders``; the last holds train ids in ``SCENE_CLASSES``' order.
        cache_dir: where the sets of scenes are kept; made if missing.
        train: number of training scenes.
        val: number of validation scenes; they show cities that no training scene shows.
        size: height and width of a scene, pixels.
        seed: of the whole set.

    Raises:
        ConfigError: if there is no such layout, or a count or the size is too small.
        WriteError: if the system refuses to write them.
    """
    if layout not in get_args(Layout):
        raise ConfigError(
            f"no layout {layout!r} for the built-in scenes: expected one of {', '.join(get_args(Layout))}"
        )
    if min(train, val) < 0 or size < MIN_SIZE or seed < 0:
        raise ConfigError(
            f"built-in scenes: found train={train}, val={val}, size={size}, seed={seed}; "
            f"expected counts and seed of 0 or more and a size of {MIN_SIZE} or more"
        )
    root = cache_dir / f"scenes-v{SCENES_VERSION}-{layout}-{train}+{val}-{size}px-seed{seed}"
    if root.is_dir():
        return root
    log.info("Drawing %d + %d street scenes (%d px, %s layout) into %s", train, val, size, layout, root)
    with refusals_named(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            _write_all(layout, unfinished, {"train": train, "val": val}, size, seed)
            unfinished.chmod(0o755)  # mkdtemp makes folders that only their owner may read
            try:
                unfinished.rename(root)
            except OSError:
                if not root.is_dir():  # another process that finished first is no error
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return root


def _write_all(layout: Layout, root: Path, counts: dict[str, int], size: int, seed: int) -> None:
    parts = max(1, min(os.cpu_count() or 1, sum(counts.values()) // SCENES_PER_PROCESS))
    if parts == 1:
        write_part(layout, root, counts, size, seed, part=0, parts=1)
        return
    # Processes of their own: drawing is Python work, and a pool would need a main guard in the caller's script.
    base = {"layout": layout, "root": str(root), "counts": counts, "size": size, "seed": seed, "parts": parts}
    jobs = [json.dumps({**base, "part": part}) for part in range(parts)]
    painters = [subprocess.Popen([sys.executable, "-m", "cityseg.data.scenes", job]) for job in jobs]
    if failed := sum(painter.wait() != 0 for painter in painters):
        raise OSError(f"{failed} of {parts} processes that draw it failed, as they say above")


def write_part(
    layout: Layout, root: Path, counts: dict[str, int], size: int, seed: int, *, part: int, parts: int
) -> None:
    """Draw and write every `parts`-th scene of each split, from the `part`-th on."""
    for split, cities in (("train", TRAIN_CITIES), ("val", VAL_CITIES)):
        for number in range(part, counts[split], parts):
            city = cities[number % len(cities)]
            photo, label_ids = render_scene(seed, number // len(cities) * len(CITIES) + CITIES.index(city), size)
            for name, image in _files(layout, split, city, number, photo, label_ids).items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path, quality=95, compress_level=1)  # of JPEG, and of PNG


def _files(
    layout: Layout, split: str, city: str, number: int, photo: ByteArray, label_ids: ByteArray
) -> dict[str, ByteArray]:
    """What a layout keeps of a scene, by path."""
    if layout == "gtfine":
        name = f"{split}/{city}/{city}_000000_{number:06d}"
        return {f"leftImg8bit/{name}_leftImg8bit.png": photo, f"gtFine/{name}_gtFine_labelIds.png": label_ids}
    if layout == "pairs":
        space = label_space("cityscapes19")
        colors = space.colorize(space.encode_table[label_ids].astype(np.uint8))
        return {f"{split}/{number + 1}.jpg": np.concatenate([photo, colors], axis=1)}
    ids = {label.name: label.id for label in CITYSCAPES_LABELS}
    table = np.full(256, VOID, np.uint8)
    table[[ids[name] for name in SCENE_CLASSES]] = np.arange(len(SCENE_CLASSES))
    name = f"{city}_{number:06d}.png"
    return {f"{split}/images/{name}": photo, f"{split}/masks/{name}": table[label_ids]}
