"""The commands, as ``train.py`` and its siblings or, where the package is installed, ``cityseg-train`` and its.

Nothing heavy is imported before a command is known to be sound, so that ``--help`` and its errors are quick.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cityseg.cli import fail, run
from cityseg.errors import CitysegError
from cityseg.paths import check_checkpoints, check_data_root

_HERE = Path(__file__).absolute().parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parents[1] / "conf"
"""The configs: beside this module in an installed package, at the top of a clone."""


def train() -> None:
    """Train a network: ``python train.py [group=choice] [key=value]``; see ``python train.py --help``."""
    _run("train", _train)


def evaluate() -> None:
    """Score a checkpoint: ``python evaluate.py ckpt=PATH [split=val] [data.root=...]``; see ``--help``."""
    _run("evaluate", _evaluate)


def predict() -> None:
    """Predict pictures and videos: ``python predict.py ckpt=PATH input=PATH output=DIR``; see ``--help``."""
    _run("predict", _predict)


def export() -> None:
    """Write the network of a checkpoint as one file: ``python export.py ckpt=PATH format=onnx``; see ``--help``."""
    _run("export", _export)


def _run(name: str, job: Callable[[DictConfig], Any]) -> None:
    @functools.wraps(job)
    def told(config: DictConfig) -> Any:
        try:
            return job(config)
        except CitysegError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            fail(str(error))  # here: Hydra would say first that a job was executed with an error

    run(hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(told), CONF, name)


def _train(config: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:  # a job of a sweep notes what is wrong, and the others go on
        check_data_root(config.data.root)
    from cityseg.runs.jobs import run_hydra_job

    return run_hydra_job(config, hydra_config)


def _evaluate(config: DictConfig) -> float | None:
    check_checkpoints(config.ckpt)
    check_data_root(config.data.root)
    from cityseg.runs.evaluation import evaluate

    return evaluate(config, Path(HydraConfig.get().runtime.output_dir))


def _predict(config: DictConfig) -> None:
    check_checkpoints(config.ckpt)
    from cityseg.runs.prediction import predict

    predict(config)


def _export(config: DictConfig) -> None:
    check_checkpoints(config.ckpt)
    from cityseg.runs.exporting import export

    export(config)
