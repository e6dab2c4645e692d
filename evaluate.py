"""Score a checkpoint: ``python evaluate.py ckpt=PATH [split=val] [data.root=...]``; see ``--help``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from cityseg.cli import run
from cityseg.paths import check_checkpoints, check_data_root


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> float | None:
    """Score with the composed config; returns the mIoU."""
    check_checkpoints(config.ckpt)
    check_data_root(config.data.root)
    from hydra.core.hydra_config import HydraConfig

    from cityseg.runs.evaluation import evaluate  # heavy: not needed to answer --help

    return evaluate(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    run(main, Path(__file__).parent.absolute() / "conf", "evaluate")
