"""Train the adversarial model against itself without the adversarial term: same schedule, several seeds.

    python benchmarks/adversarial.py ROOT OUT [--seeds 0 1 2] [--weights 0 0.01] [key=value ...]

ROOT is a pairs set, OUT a folder for the runs (a run that is there and finished is not repeated). What follows is
given to ``train.py`` as it is (``trainer.max_epochs=10``). Prints each run's mIoU and mPA of its best epoch and of
the last, and for each weight the mean and the standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

TRAIN = Path(__file__).parent.parent / "train.py"


def train(root: Path, folder: Path, overrides: list[str]) -> dict[str, float]:
    """Train one run, unless it is finished; returns its scores and minutes."""
    if not (folder / "metrics.json").is_file():
        command = [sys.executable, str(TRAIN), "model=gan_fpn_aspp", "data=pairs", f"data.root={root}"]
        command += ["model.generator.pretrained=false", f"hydra.run.dir={folder}", *overrides]
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    figures = json.loads((folder / "metrics.json").read_text())
    with (folder / "history.csv").open(newline="") as handle:
        last = float(list(csv.DictReader(handle))[-1]["val/miou"])
    return {"best": figures["miou"], "mpa": figures["mpa"], "last": last, "minutes": figures["seconds"] / 60}


def main() -> None:
    """Train every weight and seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="a pairs set")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.01], help="task.adversarial_weight")
    args, overrides = parser.parse_known_args()
    scores: dict[float, list[dict[str, float]]] = {weight: [] for weight in args.weights}
    for seed in args.seeds:  # seeds outside: the weights are compared after every seed
        for weight in args.weights:
            folder = args.out / f"weight={weight:g}" / f"seed={seed}"
            typed = [f"seed={seed}", f"task.adversarial_weight={weight:g}", *overrides]
            scores[weight].append(train(args.root.absolute(), folder.absolute(), typed))
    print("\n| weight | seed | mIoU of the best epoch | mPA | mIoU of the last epoch | minutes |")
    print("| --- | --- | --- | --- | --- | --- |")
    for weight, runs in scores.items():
        for seed, run in zip(args.seeds, runs, strict=True):
            cells = f"{100 * run['best']:.1f} | {100 * run['mpa']:.1f} | {100 * run['last']:.1f} | {run['minutes']:.1f}"
            print(f"| {weight:g} | {seed} | {cells} |")
        table = np.array([[run[key] for key in ("best", "mpa", "last", "minutes")] for run in runs])
        mean, std = table.mean(axis=0), table.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(4)
        cells = " | ".join(f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in zip(mean[:3], std[:3], strict=True))
        print(f"| {weight:g} | mean ± std | {cells} | {mean[3]:.1f} |")


if __name__ == "__main__":
    main()
