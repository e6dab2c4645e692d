"""The built-in synthetic street scenes, for when there is no data at hand, written in the real layouts."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from cityseg.data.scenes.backdrop import develop
from cityseg.data.scenes.composer import compose
from cityseg.errors import ConfigError
from cityseg.files import refusals_named
from cityseg.labels import CITYSCAPES_LABELS, VOID, ByteArray, label_space

log = logging.getLogger(__name__)

SCENES_VERSION = 1
"""Part of the cache folder's name: raised whenever a scene would look different."""

SCENE_CLASSES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "sky",
    "person",
    "rider",
    "car",
    "bus",
    "bicycle",
)
"""The classes that occur; the train ids of the folders layout number them in this order."""

Layout = Literal["gtfine", "pairs", "folders"]

TRAIN_CITIES = ("aldermoor", "brunnstadt", "castellan", "dorneval", "eastmarch")
VAL_CITIES = ("fennwick", "grauhafen")
CITIES = (*TRAIN_CITIES, *VAL_CITIES)
SUPERSAMPLING = 2
SCENES_PER_PROCESS = 40  # fewer are not worth the start of a process
MIN_SIZE = 32  # pixels: below, people would be smaller than one


def render_scene(seed: int, index: int, size: int = 256) -> tuple[ByteArray, ByteArray]:
    """Draw one street scene; the same arguments give the same scene.

    Args:
        seed: of the whole set; also decides what its cities look like.
        index: number of the scene, from 0; scenes whose index differs by ``len(CITIES)`` share a city.
        size: height and width, pixels.

    Returns:
        The photo ``(size, size, 3)`` uint8 RGB, and its Cityscapes label ids ``(size, size)`` uint8: those of
        ``SCENE_CLASSES`` and of a few void labels.
    """
    rng = np.random.default_rng([seed, index])
    canvas = compose(seed, index % len(CITIES), size * SUPERSAMPLING, rng)
    photo = develop(canvas.photo, size, rng)
    return photo, np.ascontiguousarray(canvas.label_ids[::SUPERSAMPLING, ::SUPERSAMPLING])


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
    if layout not in _WRITERS:
        raise ConfigError(f"no layout {layout!r} for the built-in scenes: expected one of {', '.join(_WRITERS)}")
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
        _draw(layout, root, {"train": train, "val": val}, size, seed)
    return root


def _draw(layout: Layout, root: Path, counts: dict[str, int], size: int, seed: int) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_all(layout, unfinished, counts, size, seed)
        unfinished.chmod(0o755)  # mkdtemp makes folders that only their owner may read
        try:
            unfinished.rename(root)
        except OSError:
            if not root.is_dir():  # another process that finished first is no error
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


# --------------------------------------------------------------------------------------- writing the layouts


class _Frame(NamedTuple):
    """One scene's place in a set: its split, city and number there (from 0), and which scene it is."""

    split: str
    city: str
    number: int
    scene: int


def _frames(split: str, count: int) -> list[_Frame]:
    cities = TRAIN_CITIES if split == "train" else VAL_CITIES
    frames = []
    for number in range(count):
        city = cities[number % len(cities)]
        frames.append(_Frame(split, city, number, number // len(cities) * len(CITIES) + CITIES.index(city)))
    return frames


def _write_all(layout: Layout, root: Path, counts: dict[str, int], size: int, seed: int) -> None:
    parts = max(1, min(os.cpu_count() or 1, sum(counts.values()) // SCENES_PER_PROCESS))
    if parts == 1:
        write_part(layout, root, counts, size, seed, part=0, parts=1)
        return
    # Processes of their own: drawing is Python work, and a pool would need a main guard in the caller's script.
    base = {"layout": layout, "root": str(root), "counts": counts, "size": size, "seed": seed, "parts": parts}
    jobs = [json.dumps({**base, "part": part}) for part in range(parts)]
    commands = [[sys.executable, "-m", "cityseg.data.scenes", job] for job in jobs]
    painters = [subprocess.Popen(command) for command in commands]
    if failed := [command for command, painter in zip(commands, painters, strict=True) if painter.wait()]:
        raise OSError(f"{len(failed)} of {parts} processes that draw it failed, as they say above")


def write_part(
    layout: Layout, root: Path, counts: dict[str, int], size: int, seed: int, *, part: int, parts: int
) -> None:
    """Draw and write every `parts`-th scene of each split, from the `part`-th on."""
    for split, count in counts.items():
        for frame in _frames(split, count)[part::parts]:
            photo, label_ids = render_scene(seed, frame.scene, size)
            _WRITERS[layout](root, frame, photo, label_ids)


def _write_image(path: Path, image: ByteArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95, compress_level=1)  # the first for JPEG, the second for PNG


def _write_gtfine(root: Path, frame: _Frame, photo: ByteArray, label_ids: ByteArray) -> None:
    name = f"{frame.city}_000000_{frame.number:06d}"
    place = Path(frame.split) / frame.city
    _write_image(root / "leftImg8bit" / place / f"{name}_leftImg8bit.png", photo)
    _write_image(root / "gtFine" / place / f"{name}_gtFine_labelIds.png", label_ids)


def _write_pairs(root: Path, frame: _Frame, photo: ByteArray, label_ids: ByteArray) -> None:
    space = label_space("cityscapes19")
    train_ids = space.encode_table[label_ids].astype(np.uint8)
    composite = np.concatenate([photo, space.colorize(train_ids)], axis=1)
    _write_image(root / frame.split / f"{frame.number + 1}.jpg", composite)


def _write_folders(root: Path, frame: _Frame, photo: ByteArray, label_ids: ByteArray) -> None:
    ids = {label.name: label.id for label in CITYSCAPES_LABELS}
    table = np.full(256, VOID, np.uint8)
    table[[ids[name] for name in SCENE_CLASSES]] = np.arange(len(SCENE_CLASSES))
    name = f"{frame.city}_{frame.number:06d}.png"
    _write_image(root / frame.split / "images" / name, photo)
    _write_image(root / frame.split / "masks" / name, table[label_ids])


_Writer = Callable[[Path, _Frame, ByteArray, ByteArray], None]
_WRITERS: dict[str, _Writer] = {"gtfine": _write_gtfine, "pairs": _write_pairs, "folders": _write_folders}
