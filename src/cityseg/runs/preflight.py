"""What can be seen to fail before hours are spent: all of it is looked at, and said at once."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.decoded import readable_bytes
from cityseg.errors import CitysegError, ConfigError, WriteError
from cityseg.files import fresh_file
from cityseg.runs.config import check_run_config, check_without_validation, task_class
from cityseg.runs.failures import explained
from cityseg.runs.objects import build_data, build_network, build_trainer, check_fit, chooses_epoch, divide, own_steps
from cityseg.tasks.base import Task

CHECKPOINTS = 4  # best, last, the one before, and the next while it is written
COPIES = 3  # of the weights in a checkpoint: themselves and Adam's two averages
CHECKS = ("quick", "full")
FILLED_WITHOUT_HARM = ("cuda",)  # devices that raise an error when they are full; a processor swaps or kills


class Findings:
    """Collects the errors of checks that do not need each other, so that one run shows all of them."""

    def __init__(self) -> None:
        """Start with none."""
        self.errors: list[CitysegError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the error of one check."""
        try:
            yield
        except CitysegError as error:
            self.errors.append(error)

    def raise_if_any(self) -> None:
        """Raise the only error as it is, or several as one.

        Raises:
            CitysegError: if there is any.
        """
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            listed = "\n\n".join(str(error) for error in self.errors)
            raise CitysegError(f"{len(self.errors)} things to mend before training can start:\n\n{listed}")


def prepare(config: DictConfig) -> tuple[SegmentationDataModule, nn.Module]:
    """Build data and network, and check config, machine, files and sizes.

    Raises:
        CitysegError: with all that is wrong.
    """
    data, findings = build_data(config), Findings()
    network = None
    with findings.collected():
        check_run_config(config, task_class(config))
    with findings.collected():
        network = build_network(config, data.label_space)
    with findings.collected():
        check_machine(config, 0 if network is None else sum(p.numel() * p.element_size() for p in network.parameters()))
    with findings.collected():
        data.check_root()
        divide(config, data)
        if not chooses_epoch(config, data):
            check_without_validation(config)
        if network is not None:
            check_fit(network, data)
    findings.raise_if_any()
    assert network is not None
    return data, network


def check_machine(config: DictConfig, weights: int) -> None:
    """See that device, run folder and disk are there.

    Args:
        config: of the run.
        weights: bytes of the network's parameters.

    Raises:
        CitysegError: if one is not.
    """
    findings, folder = Findings(), Path(config.run_dir)
    with findings.collected():
        if config.check not in CHECKS:
            raise ConfigError(f"check: found {config.check!r}, expected {' or '.join(CHECKS)}")
    with findings.collected():
        with fresh_file(folder / ".writable") as fresh:
            fresh.touch()
        (folder / ".writable").unlink()
        needed, free = weights * COPIES * CHECKPOINTS, shutil.disk_usage(folder).free
        if needed > free:
            raise WriteError(
                f"{folder}: {readable_bytes(free)} are free, expected {readable_bytes(needed)} for the checkpoints. "
                "Fix: make space, or another hydra.run.dir"
            )
    with findings.collected():
        try:
            device = build_trainer(config).strategy.root_device
        except ConfigError as error:
            if not isinstance(error.__cause__, MisconfigurationException):
                raise
            raise ConfigError(f"{error} Fix: trainer.accelerator=cpu, trainer=cpu or trainer=gpu") from error
        if config.data.batch_size == "auto" and device.type not in FILLED_WITHOUT_HARM:
            raise ConfigError(
                f"data.batch_size=auto: it fills the memory of a GPU, and the device is {device.type}. Fix: "
                "data.batch_size=4"
            )
    findings.raise_if_any()


def try_one_batch(config: DictConfig, data: SegmentationDataModule, task: Task) -> None:
    """Train a copy of the task on one batch, and validate it on one.

    Raises:
        CitysegError: as training would.
    """
    trainer = build_trainer(config, fast_dev_run=1, **own_steps(task))
    with explained(config, data), isolate_rng(), torch.random.fork_rng():
        trainer.fit(copy.deepcopy(task), datamodule=data)
