"""``data.batch_size=auto``: the largest power of two that a device trains, found by training on noise."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.memory import garbage_collection_cuda, is_oom_error
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from cityseg.data.datamodule import SegmentationDataModule
from cityseg.runs.objects import build_trainer, own_steps
from cityseg.runs.output import explained
from cityseg.tasks.base import Task

log = logging.getLogger(__name__)

USABLE = 0.9
"""Share of a GPU's free memory that may be filled: the rest is for averaged weights, other processes and gaps."""


def find_batch_size(config: DictConfig, data: SegmentationDataModule, task: Task) -> None:
    """Choose ``data.batch_size``, in `data` and in `config`: checkpoints have it, and a resumed run keeps it.

    Every process tries its own device, and all take the least that one has found. (Lightning's own finder refuses
    several processes, keeps no margin, and stays in an adversarial task's warm-up, which needs less memory.)

    Raises:
        OutOfMemoryError: if not even the smallest batch fits.
    """
    trainer = build_trainer(config)
    strategy, least = trainer.strategy, getattr(task.network, "min_train_batch", 1)
    most = max(len(data.samples("train")) // trainer.world_size, least)  # of more, training would use no more

    def search() -> int:
        strategy.setup_environment()
        size, device = 0, strategy.root_device
        with _margin(device), isolate_rng():
            while (larger := 2 * size or least) <= most:
                fits = _fits(config, data, task, device, larger)
                garbage_collection_cuda()  # here, where no error holds tensors any more
                if not fits:
                    break
                size = larger
        return int(strategy.reduce(torch.tensor(size, device=device), reduce_op="min"))

    launcher = strategy.launcher  # starts the other processes, as it will for training
    size = search() if launcher is None else launcher.launch(search, trainer=trainer)
    data.batch_size = config.data.batch_size = size or least
    if size == 0:
        with explained(config, data):
            raise torch.OutOfMemoryError("data.batch_size=auto: not even this fits")
    height, width = data.crop_size()
    reason = f"{2 * size} do not fit" if 2 * size <= most else f"there are {most} for each device"
    log.info("data.batch_size=auto: %d crops of %dx%d; %s", size, width, height, reason)


def _fits(config: DictConfig, data: SegmentationDataModule, task: Task, device: torch.device, size: int) -> bool:
    """Whether memory holds a copy of the task for two steps of the run's last epoch, when no warm-up is on.

    The copy of a compiled network is not compiled, and takes a little more.
    """
    epochs, steps = max(config.trainer.max_epochs or 1, 1), 2 * config.trainer.accumulate_grad_batches
    trainer = build_trainer(
        config, devices=1 if device.index is None else [device.index], strategy="auto", num_nodes=1, max_epochs=epochs,
        max_steps=-1, limit_train_batches=steps, limit_val_batches=0, fast_dev_run=False, **own_steps(task),
    )  # fmt: skip
    trainer.fit_loop.epoch_progress.current.processed = epochs - 1  # type: ignore[attr-defined]
    shape, classes = (size, *data.crop_size()), data.label_space.num_classes
    photo = torch.randint(0, 256, (size, 3, *shape[1:]), dtype=torch.uint8)
    target = torch.randint(0, classes, shape, dtype=torch.uint8)
    batch = {"photo": photo, "target": target, "index": torch.arange(size)}
    loader = DataLoader([batch] * steps, batch_size=None)  # type: ignore[var-annotated,arg-type]
    try:
        trainer.fit(copy.deepcopy(task), loader, loader)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or is_oom_error(error):
            return False
        raise
    return True


@contextmanager
def _margin(device: torch.device) -> Iterator[None]:
    """Let a GPU be out of memory before it is."""
    if device.type != "cuda":
        yield
        return
    garbage_collection_cuda()
    free, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(USABLE * free / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
