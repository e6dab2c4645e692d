"""Time what answers before a run starts against ``python -c "import torch"``, in turns.

    python benchmarks/startup.py [--repeats 10]

Printed are the medians, and the ratio to torch of each turn: median, least and most. The first turn warms the file
cache and is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "import torch": ("-c", "import torch"),
    "--help": (f"{ROOT}/train.py", "--help"),
    "--cfg job": (f"{ROOT}/train.py", "--cfg", "job"),
    "completion": (f"{ROOT}/train.py", "-sc", "query=bash"),
    "wrong key": (f"{ROOT}/train.py", "modl=unet"),
    "wrong choice": (f"{ROOT}/train.py", "model=unett"),
    "no data.root": (f"{ROOT}/train.py", "data.root=/no/such/folder"),
    "no ckpt": (f"{ROOT}/evaluate.py", "ckpt=none.ckpt"),
    "crossval": ("-m", "cityseg.crossval", "none"),
    "compare": ("-m", "cityseg.compare", "none", "none"),
}
COMPLETED = {"COMP_LINE": "python train.py model=une", "COMP_POINT": "25"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10, help="turns that are counted")
    repeats: int = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats + 1):
            for name, command in COMMANDS.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], cwd=folder, env=os.environ | COMPLETED, capture_output=True)
                seconds[name].append(time.perf_counter() - start)
    torch = seconds["import torch"][1:]
    for name, (_, *own) in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(own, torch, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:14s} {statistics.median(own):6.2f} s   {spread}")


if __name__ == "__main__":
    main()
