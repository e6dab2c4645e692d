from __future__ import annotations

import functools

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cityseg.data.loading import SameSizeBatches, TrainBatches
from cityseg.labels import custom_label_space
from cityseg.losses import CrossEntropyLoss
from cityseg.schedulers import constant
from cityseg.tasks.segmentation import SegmentationTask

SPACE = custom_label_space({"a": (0, 0, 0), "b": (9, 9, 9), "c": (200, 0, 0)})
FIGURES = ("val/miou", "val/mpa", "val/pixel_accuracy", "val/dice")


class Network(nn.Conv2d):
    """Without normalisation over a batch, which sees more images in one process."""

    def forward(self, photo):
        return super().forward(photo.float() / 255 - 0.5)


class Images(Dataset):
    """Noise in which a class is a little brighter than the one before."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(count)
        self.targets = torch.randint(0, 3, (count, 16, 16), generator=generator, dtype=torch.uint8)
        noise = torch.randint(0, 128, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
        self.photos = noise + 50 * self.targets[:, None]

    def __getitem__(self, key):
        index = getattr(key, "sample", key)
        return {"photo": self.photos[index], "target": self.targets[index], "index": index}


class Data(pl.LightningDataModule):
    """As much in a step, whatever the number of processes."""

    def train_dataloader(self):
        world, rank = self.trainer.world_size, self.trainer.global_rank
        return DataLoader(Images(12), batch_sampler=TrainBatches(12, 4 // world, 0, rank, world))

    def val_dataloader(self):
        share = {"rank": self.trainer.global_rank, "world": self.trainer.world_size}
        return DataLoader(Images(5), batch_sampler=SameSizeBatches(np.full((5, 2), 16), 2, **share))


def figures(processes):
    torch.manual_seed(0)
    task = SegmentationTask(
        Network(3, 3, 3, padding=1), CrossEntropyLoss(num_classes=3), functools.partial(torch.optim.AdamW, lr=0.05),
        constant, SPACE,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp_spawn" if processes > 1 else "auto", max_epochs=4,
        use_distributed_sampler=False, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=Data())
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.slow
def test_two_processes_train_and_score_as_one_with_the_same_batches():
    one, two = figures(1), figures(2)
    for name in ("train/loss", "val/loss"):
        assert two[name] == pytest.approx(one[name], abs=1e-5), name
    assert one["val/miou"] > 0.5  # it has learned something
    assert {name: two[name] for name in FIGURES} == {name: one[name] for name in FIGURES}
