"""Time five folds that share what is decoded against five runs that do not.

    python benchmarks/five_folds.py ROOT [--epochs 2] [--repeats 1] [KEY=VALUE ...]

ROOT is a gtFine set. One side is a sweep (``train.py -m fold=0,1,2,3,4 data.cache=disk``) whose cache is empty at the
start; the other is a command for each fold, which decodes its files in every epoch. A tiny network on small crops is
trained, as on a GPU that is faster than the loaders: what is saved is decoding, and four starts of the program.
Repeats take turns in which side is first. Prints the seconds of each side and their ratio, and whether the scores are
the same. KEY=VALUE are further overrides of both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TRAIN = Path(__file__).parent.parent / "train.py"
FOLDS = range(5)
SMALL = (
    "data=gtfine", "data.crop=128", "data.batch_size=8", "model=unet", "model.encoder=tu-test_resnet",
    "+model.decoder_channels=[32,16,16,8,8]", "model.pretrained=false", "trainer.precision=32-true", "logger=none",
    "callbacks.images=null", "panels=1",
)  # fmt: skip


def train(overrides: Sequence[str]) -> float:
    """Run ``train.py``; returns seconds.

    Raises:
        SystemExit: if it fails, with the end of what it wrote.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, str(TRAIN), *overrides], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"train.py {' '.join(overrides)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.perf_counter() - start


def shared(base: Sequence[str], folder: Path) -> float:
    """Seconds of one sweep over the folds, with a cache on disk."""
    folds = ",".join(map(str, FOLDS))
    return train(["-m", f"fold={folds}", *base, "data.cache=disk", f"hydra.sweep.dir={folder}"])


def separate(base: Sequence[str], folder: Path) -> float:
    """Seconds of a command for each fold, without a cache."""
    return sum(train([f"fold={k}", *base, "data.cache=none", f"hydra.run.dir='{folder}/fold={k}'"]) for k in FOLDS)


def scores(folder: Path) -> list[float]:
    """Mean IoU of each fold."""
    return [json.loads((folder / f"fold={k}" / "metrics.json").read_text())["miou"] for k in FOLDS]


def main() -> None:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="data.root of a gtFine set")
    parser.add_argument("--epochs", type=int, default=2, help="of each fold (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="of both sides (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()
    base = [*SMALL, f"data.root={args.root.absolute()}", f"trainer.max_epochs={args.epochs}", *args.overrides]
    sides = {"shared": shared, "separate": separate}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    print(f"{os.cpu_count()} cores; {' '.join(base)}\n")
    print("| repeat | shared cache, s | separate runs, s | ratio | scores |\n| --- | --- | --- | --- | --- |")
    for repeat in range(args.repeats):
        found = {}
        for side in sorted(sides, reverse=repeat % 2 == 1):
            with tempfile.TemporaryDirectory() as folder:
                seconds[side].append(sides[side]([*base, f"data.cache_dir={folder}/cache"], Path(folder, "runs")))
                found[side] = scores(Path(folder, "runs"))
        one, other = (seconds[side][-1] for side in sides)
        same = "the same" if found["shared"] == found["separate"] else str(found)
        print(f"| {repeat + 1} | {one:.1f} | {other:.1f} | {one / other:.2f} | {same} |", flush=True)
    one, other = (statistics.median(seconds[side]) for side in sides)
    print(f"\nmedian of {args.repeats}: {one:.1f} s / {other:.1f} s = {one / other:.2f} (goal: at most 0.90)")


if __name__ == "__main__":
    main()
