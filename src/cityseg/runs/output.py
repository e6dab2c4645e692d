"""What a run says on the console."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

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


def print_closing(figures: Mapping[str, Any], folder: Path, *, brief: bool = False) -> None:
    """Print the closing table: scores, per-class IoU, and the paths worth opening; or the scores alone."""
    wanted = {
        "report": folder / "report.html",
        "figures": folder / "metrics.json",
        "predictions": folder / "predictions",
        "label ids": folder / "label_ids",
        "plots": folder / "plots",
        "best weights": folder / "checkpoints" / "best.ckpt",
    }
    shown = {what: _short(path) for what, path in wanted.items() if path.exists()}
    console = Console()
    # Without a terminal rich assumes 80 columns, which cuts paths in two.
    console = console if console.is_terminal else Console(width=100)
    console.print(headline(figures) if brief else closing_table(figures, shown), soft_wrap=True)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
