"""Train a network: ``python train.py [group=choice] [key=value]``; see ``python train.py --help``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from cityseg.cli import run
from cityseg.paths import check_data_root


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """Train with the composed config; returns the objective of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:  # a job of a sweep notes what is wrong, and the others go on
        check_data_root(config.data.root)
    from cityseg.runs.jobs import run_hydra_job  # heavy: not needed to answer --help

    return run_hydra_job(config, hydra_config)


if __name__ == "__main__":
    run(main, Path(__file__).parent.absolute() / "conf", "train")
