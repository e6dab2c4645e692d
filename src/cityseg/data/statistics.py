"""How many pixels of each class the training split has, counted once and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.samples import Reader, Samples
from cityseg.files import write_json

log = logging.getLogger(__name__)


def class_pixel_counts(data: SegmentationDataModule) -> npt.NDArray[np.int64]:
    """Pixels of each class in the training split, void left out.

    The counts are kept in the cache folder under a key of the files (name, size, time) and how they are decoded.

    Returns:
        ``(C,)`` int64.

    Raises:
        DataError: naming a file that cannot be decoded.
    """
    samples, count = data.samples("train"), data.label_space.num_classes
    cached = data.cache_dir / "class-pixels" / f"{_key(samples, data.reader)}.json"
    if cached.is_file():
        return np.array(json.loads(cached.read_text()), np.int64)

    def pixels(index: int) -> npt.NDArray[np.int64]:
        target = data.reader(samples.photo(index), samples.label(index)).target
        assert target is not None
        return np.bincount(target.ravel(), minlength=256)[:count]

    log.info("counting the class pixels of %d training labels", len(samples))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        counts = np.sum(list(pool.map(pixels, range(len(samples)))), axis=0)
    write_json(cached, counts.tolist())
    return np.asarray(counts, np.int64)


def _key(samples: Samples, reader: Reader) -> str:
    digest = hashlib.sha256(pickle.dumps(reader))
    for index in range(len(samples)):
        path = Path(samples.label(index) or "")
        stat = path.stat()
        digest.update(f"{path}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
