"""What a run says: libraries quietened, their errors explained, and the figures in the end."""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from rich.console import Console

from cityseg.data.datamodule import SegmentationDataModule
from cityseg.errors import CitysegError, ConfigError, TrainingError
from cityseg.paths import shown
from cityseg.reports.summary import closing_table, headline

NOISE = (
    # The loader's workers are chosen by data.workers, and the choice is logged.
    r".*does not have many workers.*",
    r".*num_workers.*bottleneck.*",
    # Short runs and tests have fewer batches than logging steps; epochs are logged all the same.
    r"The number of training batches.*smaller than the logging interval.*",
    # Checkpoints of a resumed run are meant to go where they went before.
    r"Checkpoint directory .* exists and is not empty.*",
    # Scoring has no use for a logger.
    r".*no logger configured.*",
    # Between epochs frozen parts may be in eval mode on purpose.
    r"Found \d+ module\(s\) in eval mode.*",
    # Lightning's own use of torch's tree utilities.
    r".*isinstance\(treespec, LeafSpec\).*",
)


def quiet_libraries() -> None:
    """Silence what libraries say that a user can do nothing about."""
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=pattern)


@contextmanager
def explained(config: DictConfig, data: SegmentationDataModule) -> Iterator[None]:
    """Say what to change instead of what a library says of options, memory, or a loader that died or hangs.

    Raises:
        CitysegError: in place of what the library raises.
    """
    try:
        yield
    except CitysegError:
        raise
    except (MisconfigurationException, ValueError, RuntimeError, OSError, EOFError) as error:
        if (explanation := _explanation(error, config, data)) is None:
            raise
        raise explanation from error


def _explanation(error: Exception, config: DictConfig, data: SegmentationDataModule) -> CitysegError | None:
    text = " ".join(str(error).split())

    def crops() -> str:
        return f"data.batch_size={data.batch_size} crops of {data.crop_size()[1]}x{data.crop_size()[0]}"

    if isinstance(error, MisconfigurationException):
        return ConfigError(f"trainer: {text}")
    if "more than 1 value per channel" in text:
        return ConfigError(
            f"{crops()}: a batch of one image is one pixel in the network's deepest layer, too little to normalise by. "
            "Fix: a larger data.crop, or more images a batch"
        )
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return TrainingError(
            f"out of memory with {crops()} in {config.trainer.precision} ({text[:200]}). Fix: a smaller "
            "data.batch_size, with trainer.accumulate_grad_batches as much larger for the same steps; a smaller "
            "data.crop or data.scale; trainer.precision=bf16-mixed; in evaluation inference=sliding"
        )
    dead = re.search(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)", text)
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    # Or it died while its batch was fetched, by the run or by the thread that pins memory, which tells it as text.
    if dead or any("resource_sharer.py" in told for told in (text, *files)):
        pids = f" ({dead[1]})" if dead else ""
        return TrainingError(
            f"a loader process{pids} died. If the machine ran out of memory: fewer data.workers than "
            f"{config.data.workers}, or data.workers=0, which also shows errors of its own. The run can be resumed"
        )
    if "DataLoader timed out" in text:
        return TrainingError(
            f"no batch came in data.timeout={config.data.timeout} seconds: a loader process or the disk hangs. "
            "Fix: see that the files can be read, a larger data.timeout, or data.workers=0. The run can be resumed"
        )
    return None


def print_closing(figures: Mapping[str, Any], folder: Path, *, brief: bool = False) -> None:
    """Print the closing table: scores, per-class IoU, and the paths worth opening; or the scores alone."""
    names = {"report": "report.html", "figures": "metrics.json", "label ids": "label_ids"}
    names |= {"predictions": "predictions", "plots": "plots", "best weights": "checkpoints/best.ckpt"}
    found = {what: shown(folder / name) for what, name in names.items() if (folder / name).exists()}
    console = Console()
    # Without a terminal rich assumes 80 columns, which cuts paths in two.
    console = console if console.is_terminal else Console(width=100)
    console.print(headline(figures) if brief else closing_table(figures, found), soft_wrap=True)
