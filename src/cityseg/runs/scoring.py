"""The final figures of a split: one pass over it, with the pictures and files that people ask for on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
from PIL import Image
from torch import Tensor

from cityseg import __version__
from cityseg.callbacks.images import batch_panels, spread
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.loading import Batch
from cityseg.data.samples import Samples
from cityseg.image_counts import FILE_NAME, ImageCounts, count_pixels, write_image_counts
from cityseg.tasks.base import Task


class Pictures(pl.Callback):
    """Writes panels of some samples and, if wanted, the prediction of every sample.

    Predictions are written as the benchmark server wants them, label ids in one folder and colours in another:
    ``label_ids/NAME_pred_labelIds.png`` and ``colors/NAME_pred_color.png``.

    Args:
        folder: where ``predictions``, ``label_ids`` and ``colors`` go.
        samples: the split.
        panels: number of samples shown, spread over the split.
        predictions: write every prediction.
    """

    def __init__(self, folder: Path, samples: Samples, *, panels: int, predictions: bool) -> None:
        """See the class."""
        self._folder, self._samples, self._predictions = folder, samples, predictions
        self._chosen = frozenset(spread(len(samples), panels))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write what this batch has."""
        task = cast(Task, pl_module)
        for index, picture in batch_panels(batch, outputs, task, self._chosen):
            _save(picture, self._folder / "predictions" / f"{self._samples.name(index)}.png")
        if self._predictions:
            for index, train_ids in zip(batch["index"].tolist(), outputs.cpu().numpy(), strict=True):
                name = self._samples.name(index)
                ids, colors = task.label_space.to_label_ids(train_ids), task.label_space.colorize(train_ids)
                _save(ids, self._folder / "label_ids" / f"{name}_pred_labelIds.png")
                _save(colors, self._folder / "colors" / f"{name}_pred_color.png")


class PerImage(pl.Callback):
    """Writes the pixel counts of every image beside ``metrics.json``, for what is drawn or compared by image.

    Args:
        folder: of the run.
        samples: the split.
    """

    def __init__(self, folder: Path, samples: Samples) -> None:
        """See the class."""
        self._path, self._names = folder / FILE_NAME, samples.names()
        self._images: list[str] = []
        self._counts: list[npt.NDArray[np.int64]] = []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the images of this batch."""
        if "target" in batch:
            space = cast(Task, pl_module).label_space
            truth, prediction = batch["target"].cpu().numpy(), outputs.cpu().numpy()
            counts = count_pixels(prediction, truth, space.num_classes, ignore_index=space.ignore_index)
            self._counts.append(counts)
            self._images += [self._names[index] for index in batch["index"].tolist()]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file, where the split has labels."""
        if self._counts:
            names = tuple(cast(Task, pl_module).label_space.class_names)
            counts = ImageCounts(tuple(self._images), names, np.concatenate(self._counts))
            write_image_counts(self._path, counts)


def _save(picture: np.ndarray[Any, np.dtype[np.uint8]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, compress_level=3)


def score(task: Task, data: SegmentationDataModule, split: str, trainer: pl.Trainer) -> dict[str, Any]:
    """Run over a split once and gather its figures.

    Args:
        task: with the weights to score.
        data: the data set.
        split: one of its splits; one without labels is predicted only.
        trainer: runs the pass, with its callbacks.

    Returns:
        The content of ``metrics.json``, fractions, None for an absent class; without scores where there are no labels.
    """
    data.trainer = trainer  # the loaders share a split between this trainer's processes, not the training's
    logged = trainer.test(task, dataloaders=data.eval_dataloader(split), verbose=False)
    figures: dict[str, Any] = {"dataset": data.dataset_name, "split": split}
    if task.scores is not None:
        figures |= {**task.scores, "loss": logged[0]["test/loss"]}
    figures |= {
        "images": len(data.samples(split)),
        "label_space": task.label_space.name,
        "protocol": data.protocol,
        "precision": trainer.precision,
        "parameters": task.parameters_by_part(),
        "cityseg": __version__,
    }
    return figures
