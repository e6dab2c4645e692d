"""TensorBoard: a run under its folder's own name, charts of what belongs together, and its hyper-parameters."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from cityseg.files import refusals_named
from cityseg.reports.plots import reliability_figure

log = logging.getLogger(__name__)

LAYOUT = {
    "training": {
        "losses": ["Multiline", [r"(train|val)/loss$"]],
        "adversarial losses": ["Multiline", [r"train/(adversarial|discriminator)_loss$"]],
        "patches the discriminator tells right": ["Multiline", [r"train/discriminator_\w+_accuracy$"]],
        "learning rates": ["Multiline", [r"optim/(discriminator_)?lr"]],
        "norms of the gradients": ["Multiline", [r"optim/\w*gradient_norm$"]],
    },
    "validation": {
        "scores": ["Multiline", [r"val/(miou|mpa|pixel_accuracy|dice)$"]],
        "IoU of each class": ["Multiline", [r"per-class/"]],
    },
}
"""Category -> chart -> patterns of its tags, for the page of custom scalars."""


class TensorBoard(TensorBoardLogger):
    """Writes its event files into the run folder itself, so that the run is called as the folder is.

    The hyper-parameters of a run are there from its start. They come without the list of columns that torch makes, for
    TensorBoard would show the first run's alone; so it puts together the columns of all runs, those that differ first.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer; a WriteError if the system does not let it begin a file."""
        with refusals_named(Path(self.log_dir)):
            writer: SummaryWriter = super().experiment
            records = writer._get_file_writer().event_writer._async_writer._writer  # type: ignore[no-untyped-call]
        if not isinstance(records._writer, _Dispensable):
            records._writer = _Dispensable(records._writer, self.log_dir)
        return writer

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Log the hyper-parameters, each a number, text or truth value, and how the charts are laid out."""
        self.experiment.add_custom_scalars(LAYOUT)
        self._add(hparams(params, {})[1])  # type: ignore[no-untyped-call]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures; the epoch goes with the system's, from 1 as everywhere people read."""
        epoch = {"system/epoch": metrics["epoch"] + 1} if "epoch" in metrics else {}
        super().log_metrics({**{key: metrics[key] for key in metrics if key != "epoch"}, **epoch}, step)

    @rank_zero_only
    def log_final(self, figures: Mapping[str, Any], step: int) -> None:
        """Log the scores of the kept weights from ``metrics.json``, and how far their confidence can be believed."""
        keys = ("miou", "mpa", "pixel_accuracy", "dice", "loss")
        self.log_metrics({f"final/{key}": figures[key] for key in keys if figures[key] is not None}, step)
        self.experiment.add_figure("final/reliability", reliability_figure(figures["calibration"]), step)
        self._add(hparams({}, {})[2])  # type: ignore[no-untyped-call]
        self.finalize("success")

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged; the config, which Lightning would write beside it, is in ``.hydra``."""
        self.experiment.flush()

    def _add(self, summary: Any) -> None:
        self.experiment._get_file_writer().add_summary(summary)


class _Dispensable:
    """An open event file that a run can do without: the first refusal of the system is logged, and ends the file.

    The thread that writes would die of it, and Lightning would call the next figure no number.
    """

    def __init__(self, file: Any, folder: str) -> None:
        self._file, self._folder, self._lost = file, folder, False

    def write(self, record: bytes) -> None:
        if not self._lost:
            try:
                self._file.write(record)
            except Exception as error:  # an OSError, or one of tensorflow's own where that is installed
                self._lost = True
                log.error(
                    "%s: TensorBoard's file is no longer written (%s). The run goes on, with its figures in "
                    "history.csv. Fix: make space, or bring the folder back, and resume",
                    *(self._folder, getattr(error, "strerror", None) or error),
                )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
