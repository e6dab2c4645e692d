"""What the libraries raise where the machine fails, said so that a user can act on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from cityseg.data.datamodule import SegmentationDataModule
from cityseg.errors import ConfigError, TrainingError


@contextmanager
def explained(config: DictConfig, data: SegmentationDataModule) -> Iterator[None]:
    """Say of a lack of memory, and of a loader process that died or hangs, what to change.

    Raises:
        ConfigError: if the trainer finds fault with its options once it knows the data.
        TrainingError: in place of the library's error.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        height, width = data.crop_size()
        raise ConfigError(
            f"data.batch_size={data.batch_size} crops of {width}x{height}: a batch of one image is one pixel in the "
            "network's deepest layer, too little to normalise by. Fix: a larger data.crop, or more images a batch"
        ) from error
    except torch.OutOfMemoryError as error:
        raise TrainingError(_no_memory(config, data, error)) from error
    except RuntimeError as error:
        text = str(error)
        if "can't allocate memory" in text:
            raise TrainingError(_no_memory(config, data, error)) from error
        if dead := re.search(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)", text):
            raise TrainingError(
                f"a loader process ({dead[1]}) died. If the machine ran out of memory: fewer data.workers than "
                f"{config.data.workers}, or data.workers=0, which also shows errors of its own. The run can be resumed"
            ) from error
        if "DataLoader timed out" in text:
            raise TrainingError(
                f"no batch came in data.timeout={config.data.timeout} seconds: a loader process or the disk hangs. "
                "Fix: see that the files can be read, a larger data.timeout, or data.workers=0. The run can be resumed"
            ) from error
        raise


def _no_memory(config: DictConfig, data: SegmentationDataModule, error: RuntimeError) -> str:
    height, width = data.crop_size()
    return (
        f"out of memory with data.batch_size={data.batch_size} crops of {width}x{height} in "
        f"{config.trainer.precision} ({' '.join(str(error).split())[:200]}). Fix: a smaller data.batch_size, with "
        "trainer.accumulate_grad_batches as much larger for the same steps; a smaller data.crop or data.scale; "
        "trainer.precision=bf16-mixed; in evaluation inference=sliding"
    )
