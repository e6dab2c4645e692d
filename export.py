"""Write the network of a checkpoint as one file: ``python export.py ckpt=PATH format=onnx``; see ``--help``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from cityseg.cli import run
from cityseg.paths import check_checkpoints


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
def main(config: DictConfig) -> None:
    """Export with the composed config."""
    check_checkpoints(config.ckpt)
    from cityseg.runs.exporting import export  # heavy: not needed to answer --help

    export(config)


if __name__ == "__main__":
    run(main, Path(__file__).parent.absolute() / "conf", "export")
