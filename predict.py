"""Predict pictures and videos: ``python predict.py ckpt=PATH input=PATH output=DIR``; see ``--help``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from cityseg.cli import run
from cityseg.paths import check_checkpoints


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(config: DictConfig) -> None:
    """Predict with the composed config."""
    check_checkpoints(config.ckpt)
    from cityseg.runs.prediction import predict  # heavy: not needed to answer --help

    predict(config)


if __name__ == "__main__":
    run(main, Path(__file__).parent.absolute() / "conf", "predict")
