"""Memory of a run's index: peak of a process with many images against one with few, for each image more.

    python benchmarks/index_memory.py [--images 10000 1000000] [--layout gtfine]

Listing, headers and file sizes are simulated, so that no files are needed; all else is what a run does with its list of
files: pair photos and labels, check headers, see that no part leaks into another, write the split, draw the order of an
epoch, and batch the validation split. Every tenth image is for validation.
"""

from __future__ import annotations

import argparse
import glob
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from cityseg.data import samples
from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.split_files import write_split
from cityseg.data.transforms import Augment


def simulated_files(images: int) -> Any:
    """A ``glob.iglob`` that finds a Cityscapes set of this size, in no order."""

    def iglob(pattern: str, **_: Any) -> Iterator[str]:
        kind, split, _, _ = pattern.split("/")
        ending = pattern.rsplit("*", 1)[1]
        val = images // 10
        for number in range(val if split == "val" else images - val, 0, -1):
            city = f"moenchengladbach{number % 50:02d}"
            yield f"{kind}/{split}/{city}/{city}_{number // 100:06d}_{number:06d}{ending}"

    return iglob


def index(images: int) -> None:
    """Everything a run does with its list of files."""
    root = Path(tempfile.mkdtemp())
    data = GtFineDataModule(str(root), augment=Augment(), crop=512, batch_size=8, eval_batch_size=4, workers=0)
    sizes = iter(range(10**9, 10**9 + 2 * images))  # no two files are of one size

    def header(*_: object) -> tuple[int, int]:
        return 1024, 2048

    def stat(path: Path, **_: object) -> SimpleNamespace:
        return SimpleNamespace(st_size=next(sizes), st_mode=0o040755 if path == root else 0o100644)

    with (  # with functions: a Mock would keep every call
        mock.patch.object(glob, "iglob", simulated_files(images)),
        mock.patch.object(samples, "read_header", header),
        mock.patch.object(samples, "QUICK_CHECK", 0),
        mock.patch.object(Path, "stat", stat),
    ):
        data.keep_splits()
    assert data.split is not None
    write_split(root / "split.csv", *data.split)
    loaders = data.train_dataloader(), data.val_dataloader()
    batches = sum(1 for loader in loaders for _ in loader.batch_sampler)
    print(images, batches, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    """Run each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        index(args.images[0])
        return
    peaks = {}
    print("| images | peak, MB | seconds |\n| --- | --- | --- |")
    for images in args.images:
        started = time.perf_counter()
        command = [sys.executable, __file__, "--alone", "--images", str(images)]
        output = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
        peaks[images] = int(output.split()[-1]) * 1024  # the system counts kB
        print(f"| {images} | {peaks[images] / 1e6:.0f} | {time.perf_counter() - started:.0f} |", flush=True)
    few, many = min(peaks), max(peaks)
    print(f"\n{(peaks[many] - peaks[few]) / (many - few):.0f} bytes for each image more")


if __name__ == "__main__":
    main()
