"""Sweep folders as a multirun leaves them, from random pictures that a test can score by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image
from sklearn.metrics import confusion_matrix

from cityseg.image_counts import ImageCounts, count_pixels, write_image_counts
from cityseg.labels import custom_label_space
from cityseg.scores import scores_from_confusion

CLASSES = ("road", "sky", "car", "bus")
SPACE = custom_label_space({name: (index, 0, 0) for index, name in enumerate(CLASSES)}, "four")
VOID = 255


class Pictures(NamedTuple):
    """Truth and prediction of a fold's held-out images, ``(N, H, W)`` uint8."""

    truth: np.ndarray
    prediction: np.ndarray

    def flat(self):
        """Valid pixels of both, for scikit-learn."""
        valid = self.truth != VOID
        return self.truth[valid], self.prediction[valid]


def pictures(seed, *, images=6, error=0.3, classes=4):
    """Random truth with some void, and a prediction that is wrong in about `error` of the pixels.

    Truth follows from the part of the seed below 100, so that two models see the same images.
    """
    true, wrong = np.random.default_rng(seed % 100), np.random.default_rng(seed)
    truth = true.choice(classes, (images, 12, 16), p=np.arange(classes, 0, -1) / np.arange(classes + 1).sum())
    noise = wrong.integers(classes, size=truth.shape)
    prediction = np.where(wrong.random(truth.shape) < error, noise, truth).astype(np.uint8)
    truth[true.random(truth.shape) < 0.05] = VOID
    return Pictures(truth.astype(np.uint8), prediction)


def write_overrides(run, overrides, config=None):
    """The part of a run folder that is there when the run starts."""
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config or {}))


def write_run(sweep: Path, overrides, made: Pictures, *, config=None, counts=True, **figures) -> Path:
    """A finished run folder, named as Hydra names it."""
    run = sweep / ",".join(sorted(overrides))
    write_overrides(run, overrides, config)
    matrix = confusion_matrix(*made.flat(), labels=range(len(CLASSES)))
    fold = dict(text.split("=", 1) for text in overrides).get("fold")
    content = {
        "dataset": "made",
        "split": "test",
        **scores_from_confusion(matrix, SPACE),
        "images": len(made.truth),
        "train_images": 20,
        "label_space": "four",
        "parameters": {"total": 1234567, "trainable": 1000},
        "seconds": 1.5,
        "best_epoch": 2,
    }
    (run / "metrics.json").write_text(json.dumps({**content, **figures}))
    (run / "history.csv").write_text("epoch,val/loss,val/miou\n1,1.0,0.3\n2,0.5,\n3,0.4,0.5\n")
    (run / "predictions").mkdir()
    Image.new("RGB", (8, 8)).save(run / "predictions" / "a street.png")
    if counts:
        names = tuple(f"fold{fold}/{index}.png" for index in range(len(made.truth)))
        pixels = count_pixels(made.prediction, made.truth, len(CLASSES))
        write_image_counts(run / "per_image.npz", ImageCounts(names, CLASSES, pixels))
    return run
