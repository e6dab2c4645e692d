"""Train one network on the labels of each colour decoder and score all of them on the true train ids.

    python benchmarks/decoder_training.py ROOT OUT [key=value ...]

ROOT holds pairs composites, with the true train ids in a ``trainids`` folder beside it. OUT is a folder for the runs
(a run that is there and finished is not repeated). What follows is given to ``train.py`` as it is. Clusters of K-means
count as the class they are named by. Prints the score on the decoded labels, which each decoder makes easier or
harder for itself, and the score on the truth, which compares them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from decoders import to_train_ids
from omegaconf import OmegaConf
from PIL import Image

from cityseg.checkpoints import load_checkpoint
from cityseg.labels import VOID, label_space
from cityseg.runs.evaluation import build_scoring_task, evaluation_config
from cityseg.runs.objects import build_data

TRAIN = Path(__file__).parent.parent / "train.py"
EVALUATE = TRAIN.parent / "conf" / "evaluate.yaml"
DECODERS = {
    "nearest": ["data.labels=palette", "data.max_distance=null"],
    "rejecting 20": ["data.labels=palette", "data.max_distance=20"],
    "blend-aware, all kept": ["data.labels=palette_blend", "data.reject_ambiguous=false"],
    "blend-aware": ["data.labels=palette_blend", "data.reject_ambiguous=true"],
    "K-means 10": ["data.labels=kmeans", "data.clusters=10"],
    "K-means 20": ["data.labels=kmeans", "data.clusters=20"],
}


def true_scores(checkpoint: Path, root: Path, folder: Path) -> dict:
    """Scores of a checkpoint on the true train ids of the validation split; a void prediction is a miss."""
    loaded = load_checkpoint(checkpoint)
    run = evaluation_config(loaded, OmegaConf.load(EVALUATE), folder)
    data = build_data(run)
    data.index(["val"])
    task = build_scoring_task(run, loaded, data)
    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, enable_model_summary=False, precision=run.trainer.precision
    )
    outputs = trainer.predict(task, dataloaders=data.eval_dataloader("val"))
    truth_space = label_space("cityscapes19")
    table, samples = to_train_ids(data.label_space, truth_space), data.samples("val")
    counts = np.zeros((truth_space.num_classes, 256), np.int64)
    for index, prediction in enumerate(image for batch in outputs for image in batch.numpy()):
        truth = np.asarray(Image.open(root.parent / "trainids" / "val" / f"{samples.name(index)}.png"))
        valid = truth != VOID
        cells = truth[valid].astype(np.int64) * 256 + table[prediction[valid]]
        counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
    confusion = counts[:, : truth_space.num_classes]
    missed = counts[:, truth_space.num_classes :].sum(axis=1)
    occurs = counts.sum(axis=1) > 0
    hits = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits + missed
    return {
        "miou": float((hits[occurs] / union[occurs]).mean()),
        "pixel_accuracy": float(hits.sum() / counts.sum()),
        "lost": [
            name for name, there, hit in zip(truth_space.class_names, occurs, hits, strict=True) if there and not hit
        ],
    }


def main() -> None:
    """Train with every decoder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="a pairs set with trainids beside it")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the runs")
    args, overrides = parser.parse_known_args()
    root = args.root.absolute()
    rows = []
    for name, choice in DECODERS.items():
        folder = (args.out / name.replace(", ", "-").replace(" ", "-")).absolute()
        if not (folder / "metrics.json").is_file():
            command = [sys.executable, str(TRAIN), "data=pairs", f"data.root={root}", *choice, *overrides]
            print(" ".join(command), flush=True)
            subprocess.run([*command, f"hydra.run.dir={folder}"], check=True, stdout=subprocess.DEVNULL)
        own = json.loads((folder / "metrics.json").read_text())
        true = true_scores(folder / "checkpoints" / "best.ckpt", root, folder)
        cells = f"{100 * own['miou']:.1f} | {100 * true['miou']:.1f} | {100 * true['pixel_accuracy']:.1f}"
        rows.append(f"| {name} | {cells} | {', '.join(true['lost']) or 'none'} | {own['seconds'] / 60:.1f} |")
    print("\n| labels | mIoU, own labels | mIoU, truth | pixel accuracy, truth | lost classes | minutes |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
