"""The commands, as ``train.py`` and its siblings or, where the package is installed, ``cityseg-train`` and its.

Nothing heavy is imported before a command is known to be sound, so that ``--help`` and its errors are quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cityseg.cli import fail, run
from cityseg.errors import CitysegError, ConfigError
from cityseg.paths import check_checkpoints, check_data_root

_HERE = Path(__file__).absolute().parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parents[1] / "conf"
"""The configs: beside this module in an installed package, at the top of a clone."""


def train() -> None:
    """Train a network: ``python train.py [group=choice] [key=value]``; see ``python train.py --help``."""
    _run("train")


def evaluate() -> None:
    """Score a checkpoint: ``python evaluate.py ckpt=PATH [split=val] [data.root=...]``; see ``--help``."""
    _run("evaluate")


def predict() -> None:
    """Predict pictures and videos: ``python predict.py ckpt=PATH input=PATH output=DIR``; see ``--help``."""
    _run("predict")


def export() -> None:
    """Write the network of a checkpoint as one file: ``python export.py ckpt=PATH format=onnx``; see ``--help``."""
    _run("export")


def _run(name: str) -> None:
    def job(config: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        in_sweep = hydra_config.mode == RunMode.MULTIRUN
        try:
            if missing := sorted(OmegaConf.missing_keys(config)):
                raise ConfigError(f"{', '.join(missing)}: not given. Fix: {missing[0]}=..., see --help")
            if name != "train":
                check_checkpoints(config.ckpt)
            if name != "train" or not in_sweep:  # a job of a sweep notes what is wrong, and the others go on
                check_data_root(OmegaConf.select(config, "data.root"))
            return _do(name, config, hydra_config)
        except CitysegError as error:
            if in_sweep:
                raise
            fail(str(error))  # here: Hydra would say first that a job was executed with an error

    run(hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job), CONF, name)


def _do(name: str, config: DictConfig, hydra_config: HydraConf) -> float | None:
    if name == "train":
        from cityseg.runs.jobs import run_hydra_job

        return run_hydra_job(config, hydra_config)
    if name == "evaluate":
        from cityseg.runs.evaluation import evaluate

        return evaluate(config, Path(hydra_config.runtime.output_dir))
    if name == "predict":
        from cityseg.runs.prediction import predict

        predict(config)
    if name == "export":
        from cityseg.runs.export import export

        export(config)
    return None
