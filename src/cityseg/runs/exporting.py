"""Exporting the network of a checkpoint from its file alone."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cityseg import __version__
from cityseg.checkpoints import Checkpoint, load_checkpoint, load_weights
from cityseg.errors import ConfigError
from cityseg.export import SIZES, find_format, write
from cityseg.models.network import SegmentationNetwork
from cityseg.runs.config import network_node
from cityseg.runs.objects import build_network
from cityseg.runs.trust import check_trusted

log = logging.getLogger(__name__)


def export(config: DictConfig) -> Path:
    """Write the network of a checkpoint, of an adversarial one the generator alone.

    Args:
        config: the composed export config.

    Returns:
        The file.

    Raises:
        CitysegError: for what a user can mend.
    """
    path, kind = Path(config.ckpt).expanduser(), find_format(config.format)
    output = path.with_suffix(kind.suffix) if config.output is None else Path(config.output).expanduser()
    if output.is_dir() or (output.exists() and not config.overwrite):
        raise ConfigError(f"output={output}: exists. Fix: another name, or overwrite=true for a file")
    checkpoint = load_checkpoint(path)
    check_trusted(checkpoint.config, config.trusted)
    run = OmegaConf.create(checkpoint.config)
    # The weights are in the checkpoint, and the auxiliary head is for training.
    network_node(run).update({key: False for key in ("pretrained", "auxiliary_head") if key in network_node(run)})
    network = build_network(run, checkpoint.label_space)
    if not isinstance(network, SegmentationNetwork):
        raise ConfigError(f"ckpt={path}: found a {type(network).__name__}, expected a SegmentationNetwork")
    task = "network."  # a task's name for its network
    own = {key.removeprefix(task): w for key, w in checkpoint.state_dict.items() if key.startswith(task)}
    load_weights(network, replace(checkpoint, state_dict=own), leave_out="auxiliary.")
    found = write(config.format, network, output, _texts(checkpoint, run), config.tolerance)
    sizes = [network.fixed_size] if network.fixed_size else [size[1:] for size in SIZES]
    log.info(
        "%s: %.1f MB; on random photos (%s) no probability differs by more than %.2g from PyTorch's",
        *(output, output.stat().st_size / 1e6, ", ".join(f"{width}x{height}" for height, width in sizes), found),
    )
    return output


def _texts(checkpoint: Checkpoint, run: DictConfig) -> dict[str, str]:
    """What a file says of itself, with the monitored figure of the checkpoint's epoch, as ``{"val/miou": 0.5}``."""
    texts = {
        "label_space": checkpoint.label_space.to_dict(),
        "model": OmegaConf.to_container(network_node(run), resolve=True),
        "training": {
            **{"cityseg": checkpoint.version, "epochs": checkpoint.epochs, "scale": run.data.get("scale", 1.0)},
            **{name: round(score, 5) for name, score in checkpoint.scores.items()},
        },
    }
    return {"cityseg": __version__, **{name: json.dumps(text) for name, text in texts.items()}}
