"""The final figures of a split: one pass over it, with the pictures and files that people ask for on the way."""

from __future__ import annotations

import copy
import heapq
import math
import sys
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from cityseg import __version__
from cityseg.boundaries import Boundaries
from cityseg.callbacks.images import batch_panels, spread
from cityseg.crossval.statistics import mean_iou
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.loading import Batch
from cityseg.data.samples import Samples
from cityseg.environment import environment
from cityseg.errors import FileProblem, TrainingError
from cityseg.files import fresh_file, write_json
from cityseg.image_counts import FILE_NAME, ImageCounts, count_pixels, write_image_counts
from cityseg.instances import Instances, read_instance_ids
from cityseg.labels import ByteArray, LabelSpace
from cityseg.reports.html.run import write_run_page
from cityseg.reports.plots import plot_class_iou, plot_confusion
from cityseg.reports.run_files import WORST
from cityseg.tasks.base import Task


class Scored(pl.Callback, ABC):
    """A callback that looks at every batch of a scoring pass, and may have figures for ``metrics.json`` in the end."""

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Hand on what a batch was scored as."""
        self.on_scored(cast(Task, pl_module), outputs, batch)

    @abstractmethod
    def on_scored(self, task: Task, train_ids: Tensor, batch: Batch) -> None:
        """Look at the predicted train ids ``(B, H, W)`` uint8 of a batch."""

    def figures(self, task: Task) -> dict[str, Any]:
        """Its figures by key; empty where there was nothing to score."""
        return {}


class Pictures(Scored):
    """Writes panels of some samples, spread over the split, and, if wanted, the prediction of every sample.

    Predictions are label ids as the benchmark server wants them, and colours in another folder.
    """

    def __init__(self, folder: Path, samples: Samples, *, panels: int, predictions: bool) -> None:
        self._folder, self._samples, self._predictions = folder, samples, predictions
        self._chosen = frozenset(spread(len(samples), panels))

    def on_scored(self, task: Task, train_ids: Tensor, batch: Batch) -> None:
        """Write what this batch has."""
        for index, picture in batch_panels(batch, train_ids, task, self._chosen):
            _save(picture, self._folder / "predictions" / f"{self._samples.name(index)}.png")
        if self._predictions:
            for index, prediction in zip(batch["index"].tolist(), train_ids.cpu().numpy(), strict=True):
                name = self._samples.name(index)
                ids, colors = task.label_space.to_label_ids(prediction), task.label_space.colorize(prediction)
                _save(ids, self._folder / "label_ids" / f"{name}_pred_labelIds.png")
                _save(colors, self._folder / "colors" / f"{name}_pred_color.png")


class PerImage(Scored):
    """Writes the pixel counts of every image beside ``metrics.json``; its figures are the images' own mIoU.

    With `draw` panels of the worst images, of which no more are held at a time, go to ``predictions``.
    """

    def __init__(self, folder: Path, samples: Samples, *, draw: bool) -> None:
        self._folder, self._samples, self._names, self._draw = folder, samples, samples.names(), draw
        self._images: list[str] = []
        self._counts: list[npt.NDArray[np.int64]] = []
        self._worst: list[tuple[float, int, int, ByteArray]] = []  # a heap, the best of them first

    def on_scored(self, task: Task, train_ids: Tensor, batch: Batch) -> None:
        """Count the images of this batch."""
        if "target" not in batch:
            return
        space = task.label_space
        truth, prediction = batch["target"].cpu().numpy(), train_ids.cpu().numpy()
        counts = count_pixels(prediction, truth, space.num_classes, ignore_index=space.ignore_index)
        self._counts.append(counts)
        for index, miou in zip(batch["index"].tolist(), mean_iou(counts).tolist(), strict=True):
            self._images.append(self._names[index])
            rank = (-miou, -len(self._images))  # of equals, the first one met is kept
            full = len(self._worst) == WORST
            if self._draw and not np.isnan(miou) and not (full and rank < self._worst[0][:2]):
                ((_, picture),) = batch_panels(batch, train_ids, task, frozenset([index]))
                (heapq.heappushpop if full else heapq.heappush)(self._worst, (*rank, index, picture))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file and the panels, where the split has labels."""
        for _, _, index, picture in self._worst:
            _save(picture, self._folder / "predictions" / f"{self._samples.name(index)}.png")
        if self._counts:
            names = tuple(cast(Task, pl_module).label_space.class_names)
            counts = ImageCounts(tuple(self._images), names, np.concatenate(self._counts))
            write_image_counts(self._folder / FILE_NAME, counts)

    def figures(self, task: Task) -> dict[str, Any]:
        """See :func:`image_scores`."""
        return {"per_image": image_scores(self._images, np.concatenate(self._counts))} if self._counts else {}


class BoundaryFigures(Scored):
    """Boundary scores of a split, see :mod:`cityseg.boundaries`."""

    def __init__(self, boundaries: Boundaries) -> None:
        self._boundaries, self._scored = boundaries, False

    def on_scored(self, task: Task, train_ids: Tensor, batch: Batch) -> None:
        """Count the images of this batch."""
        if "target" in batch:
            self._scored = True
            for prediction, target in zip(train_ids.cpu().numpy(), batch["target"].cpu().numpy(), strict=True):
                self._boundaries.update(prediction, target)

    def figures(self, task: Task) -> dict[str, Any]:
        """The scores."""
        return {"boundary": self._boundaries.scores()} if self._scored else {}


class InstanceFigures(Scored):
    """Instance-weighted scores of a split with an instanceIds file for each sample, see :mod:`cityseg.instances`."""

    def __init__(self, instances: Instances, files: list[Path]) -> None:
        self._instances, self._files = instances, files

    def on_scored(self, task: Task, train_ids: Tensor, batch: Batch) -> None:
        """Count the images of this batch."""
        for index, prediction in zip(batch["index"].tolist(), train_ids.cpu().numpy(), strict=True):
            ids = read_instance_ids(self._files[index])
            if ids.shape != prediction.shape:
                found = f"it is {ids.shape[1]}x{ids.shape[0]}, the photo {prediction.shape[1]}x{prediction.shape[0]}"
                raise FileProblem(self._files[index], "instance ids of another size", found, "copy the file again")
            self._instances.update(prediction, ids)

    def figures(self, task: Task) -> dict[str, Any]:
        """The scores."""
        return {} if task.scores is None else {**self._instances.scores(np.array(task.scores["confusion_matrix"]))}


class Cost(Scored):
    """Time and memory of the network's passes; the first callback, so that no other's work is counted.

    Images a second are without loading and writing, and without the first batch, which is slower, where there are
    several. Peak memory is of the GPU during the pass or, on a CPU, the most that the process has ever held.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._images: list[int] = []
        self._start = 0.0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what was allocated before."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_scored(self, task: Task, train_ids: Tensor, batch: Batch) -> None:
        """Stop it when the device is done."""
        if train_ids.device.type == "cuda":
            torch.cuda.synchronize(train_ids.device)
        self._seconds.append(time.perf_counter() - self._start)
        self._images.append(len(train_ids))

    def figures(self, task: Task) -> dict[str, Any]:
        """Images a second, and the peak memory in MiB with the device it is of."""
        first = 1 if len(self._seconds) > 1 else 0
        seconds = sum(self._seconds[first:])
        rate = round(sum(self._images[first:]) / seconds, 3) if seconds else None
        peak = _peak_memory(task.device)
        mib = None if peak is None else round(peak / 2**20, 1)
        return {"images_per_second": rate, "peak_memory_mib": mib, "device": task.device.type}


def _peak_memory(device: torch.device) -> int | None:
    """Bytes; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def image_scores(names: list[str], counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Mean, quartiles and lowest of the mIoU of single images, from ``(N, 3, C)`` hit, true and predicted pixels.

    The mIoU of an image is the mean IoU over the classes that occur in its truth or prediction; their mean is not the
    mIoU of the split. Images of void alone have none.
    """
    miou = mean_iou(counts)
    scored = miou[np.isfinite(miou)]
    if not len(scored):
        return {"mean": None, "quartiles": None, "worst": []}
    order = np.argsort(miou, kind="stable")[: min(WORST, len(scored))]  # NaN comes last
    return {
        "mean": float(scored.mean()),
        "quartiles": np.quantile(scored, [0.25, 0.5, 0.75]).tolist(),
        "worst": [{"image": names[place], "miou": float(miou[place])} for place in order],
    }


def _save(picture: np.ndarray[Any, np.dtype[np.uint8]], path: Path) -> None:
    with fresh_file(path) as fresh:
        Image.fromarray(picture).save(fresh, compress_level=3)


def score(task: Task, data: SegmentationDataModule, split: str, trainer: pl.Trainer) -> dict[str, Any]:
    """Run over a split once with a trainer and its callbacks, and gather the content of ``metrics.json``.

    Figures are fractions, None for an absent class; there are no scores without labels.

    Raises:
        TrainingError: if the network gives no numbers.
    """
    data.trainer = trainer  # the loaders share a split between this trainer's processes, not the training's
    logged = trainer.test(task, dataloaders=data.eval_dataloader(split), verbose=False)
    figures: dict[str, Any] = {"dataset": data.dataset_name, "split": split}
    if task.scores is not None:
        loss = logged[0]["test/loss"]
        if not math.isfinite(loss):
            fix = "an earlier checkpoint, trainer.precision=32-true, or training with a lower optimizer.lr"
            raise TrainingError(f"split {split}: the loss is {loss}, so the predictions mean nothing. Fix: {fix}")
        figures |= {**task.scores, "loss": loss}
        if task.calibration is not None:
            figures["calibration"] = task.calibration.scores()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Scored):
            figures |= callback.figures(task)
    done = str(task.inference)
    return figures | {
        "images": len(data.samples(split)),
        "label_space": task.label_space.name,
        "protocol": f"{data.protocol}; {done}" if done else data.protocol,
        "precision": trainer.precision,
        "parameters": task.parameters_by_part(),
        "cityseg": __version__,
    }


def write_figures(figures: dict[str, Any], folder: Path, space: LabelSpace, device: torch.device | None = None) -> None:
    """Write plots, ``metrics.json`` with the environment added, and the report."""
    if "confusion_matrix" in figures:
        plot_confusion(np.array(figures["confusion_matrix"]), space.class_names, folder / "plots" / "confusion.png")
        plot_class_iou(figures["per_class"], space.colors, folder / "plots" / "class_iou.png")
    figures["environment"] = environment(device)
    write_json(folder / "metrics.json", figures)
    write_run_page(folder, space)


def official_scores(predictions: Sequence[Path], truths: Sequence[Path], *, instances: bool) -> dict[str, Any]:
    """What cityscapesScripts' own evaluation says of files of label ids, NaN for an absent class.

    With `instances` it needs an instanceIds file beside each truth; without, the instance-weighted scores are NaN.
    """
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    if not hasattr(np, "in1d"):  # it calls a function that numpy 2.4 has removed
        official.np = types.SimpleNamespace(**{**vars(np), "in1d": np.isin})
    options = copy.copy(official.args)
    options.evalInstLevelScore, options.JSONOutput, options.quiet = instances, False, True
    result: dict[str, Any] = official.evaluateImgLists([str(p) for p in predictions], [str(t) for t in truths], options)
    return result
