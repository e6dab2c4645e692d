"""Packs the files of a data set, as they are, into WebDataset shards for ``data=stream``.

``python -m cityseg.data.pack gtfine /data/cityscapes /data/packed label_space=cityscapes20``
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.samples import progress
from cityseg.data.stream import FORMAT, INDEX, LAYOUTS
from cityseg.data.transforms import Augment
from cityseg.errors import CitysegError, ConfigError, DataError
from cityseg.files import refusals_named, write_bytes

SHARD_BYTES = 256_000_000
"""A shard that has reached this size is closed. Files are read one by one: it matters only to copying."""


def pack(
    layout: str,
    root: str,
    output: Path,
    splits: Sequence[str] = ("train", "val"),
    settings: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the shards of some splits and, when all are there, the index; all of them or nothing.

    Args:
        layout: ``gtfine``, ``pairs`` or ``folders``.
        root: the data set.
        output: a new or empty folder.
        splits: what is packed.
        settings: arguments of the layout that say how labels are read; they are packed too.
        shard_bytes: size at which a shard is closed.

    Raises:
        CitysegError: if the data or the folder will not do, or the disk is full.
    """
    if find_spec("webdataset") is None:
        raise ConfigError("packing needs webdataset. Fix: pip install 'cityseg[stream]'")
    if output.is_dir() and any(output.iterdir()):
        raise DataError(f"output={output}: the folder is not empty, expected a new one")
    options: dict[str, Any] = {"crop": "auto", "batch_size": 1, "eval_batch_size": 1, "workers": 0}
    data = LAYOUTS[layout](root, **(settings or {}), augment=Augment(), **options)
    data.index(splits)
    about = {"format": FORMAT, "layout": layout, "settings": dict(settings or {}), "time_ns": time.time_ns()}
    try:
        with refusals_named(output):
            output.mkdir(parents=True, exist_ok=True)
            _write_shards(data, output, splits, shard_bytes, about)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise


def _write_shards(
    data: SegmentationDataModule, output: Path, splits: Sequence[str], shard_bytes: int, about: Mapping[str, Any]
) -> None:
    import webdataset

    named: dict[str, str] = {}  # in its shard -> in the data set
    places: dict[str, tuple[int, int, int]] = {}
    shards: list[tuple[str, int]] = []
    arrays: dict[str, Any] = {}

    def note(shard: str) -> None:
        with tarfile.open(shard) as members:
            for member in members:
                places[named.pop(member.name)] = len(shards), member.offset_data, member.size
        shards.append((Path(shard).name, Path(shard).stat().st_size))

    for split in splits:
        samples = data.samples(split)
        arrays |= {f"{split}/photos": samples.photos, f"{split}/sizes": samples.sizes}
        arrays |= {} if samples.labels is None else {f"{split}/labels": samples.labels}
        pattern = str(output / split).replace("%", "%%") + "-%06d.tar"
        with webdataset.ShardWriter(
            pattern, maxcount=sys.maxsize, maxsize=shard_bytes, post=note, verbose=0, encoder=False
        ) as writer:
            for index in progress(range(len(samples)), len(samples), f"packing {split}"):
                photo, label, key = samples.photo(index), samples.label(index), f"{index:08d}"
                files = {photo.suffix.lower()[1:]: photo}
                if label is not None and label != photo:
                    files[f"label{label.suffix.lower()}"] = label
                named |= {f"{key}.{part}": str(path.relative_to(samples.root)) for part, path in files.items()}
                writer.write({"__key__": key, **{part: path.read_bytes() for part, path in files.items()}})
    names = np.array(sorted(os.fsencode(name) for name in places), np.bytes_)
    arrays["places"] = np.array([places[os.fsdecode(name)] for name in names], np.int64)
    content = io.BytesIO()
    np.savez_compressed(content, about=np.array(json.dumps({**about, "shards": shards})), names=names, **arrays)
    write_bytes(output / INDEX, content.getbuffer())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m cityseg.data.pack", description=__doc__)
    parser.add_argument("layout", choices=sorted(LAYOUTS))
    parser.add_argument("root", help="the data set")
    parser.add_argument("output", type=Path, help="a new folder; copy it to where it is to be read from")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="keys of conf/data/LAYOUT.yaml")
    parser.add_argument("--splits", default="train,val", help="comma-separated; default: %(default)s")
    typed = parser.parse_args()
    try:
        settings = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in typed.settings)}
        pack(typed.layout, typed.root, typed.output, typed.splits.split(","), settings)
    except CitysegError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
