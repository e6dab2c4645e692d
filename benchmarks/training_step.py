"""Time a training step under the Trainer against a bare loop, and our defaults against a bare loop in float32.

    python benchmarks/training_step.py [--blocks 8] [--steps 3] [--photos ROOT] [--curve 60]

U-Net with EfficientNet-B0, 8 crops of 256x256 in memory, AdamW. The bare loop of the first two tables has the same
network, precision and memory format; that of the third is float32 in torch's default format, as people write it. With
`--photos`, a gtfine set, the third also prints the losses of both over its training photos.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from interleaved import Turns, arguments, random_batch, run_config, show
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cityseg.data.loading import Batch
from cityseg.runs.objects import build_callbacks, build_data, build_loggers, build_network, build_task, build_trainer

SIDE = 256
CHOSEN = ("model=unet", "model.encoder=efficientnet-b0", "model.pretrained=false", "scheduler=none", "data.workers=0")


def bare_loop(network: nn.Module, lr: float, *, bf16: bool) -> Callable[[Tensor, Tensor], float]:
    """One step of a training loop as it is written without a framework."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)

    def step(photo: Tensor, target: Tensor) -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(photo), target, ignore_index=255)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


class Float32(nn.Module):
    """The same network and weights in float32 and torch's default memory format; photos normalised before it."""

    def __init__(self, network: nn.Module) -> None:
        """Copy the network's body."""
        super().__init__()
        self.body = copy.deepcopy(network.body).to(memory_format=torch.contiguous_format)
        self.scale, self.shift = network.scale, network.shift

    def forward(self, photo: Tensor) -> Tensor:
        """Logits of photos."""
        return self.body(photo.float() * self.scale + self.shift)


def compare(config: DictConfig, *, default: bool, bf16: bool, blocks: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of ours and of the bare loop."""
    batch = random_batch(config.data.batch_size, SIDE, SIDE)
    data = build_data(config)
    network = build_network(config, data.label_space)
    bare = copy.deepcopy(network) if bf16 else Float32(network)
    step, target = bare_loop(bare.train(), config.optimizer.lr, bf16=bf16), batch["target"].long()
    turns = Turns(batch, {"bare": lambda: step(batch["photo"], target)}, blocks=blocks, steps=steps)
    callbacks = build_callbacks(config, validated=False) if default else []
    trainer = build_trainer(config, callbacks, build_loggers(config) if default else [], limit_val_batches=0)
    trainer.fit(build_task(config, data, network), turns)
    return turns.found


class Losses(pl.Callback):
    """Collects the loss of every step."""

    def __init__(self) -> None:
        """Start with none."""
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Keep one."""
        self.found.append(float(outputs["loss"]))


def curves(config: DictConfig, steps: int) -> tuple[list[float], list[float]]:
    """Losses of ours and of the bare float32 loop over the same crops of photos."""
    data = build_data(config)
    data.keep_splits()
    network = build_network(config, data.label_space)
    step = bare_loop(Float32(network).train(), config.optimizer.lr, bf16=False)
    ours = Losses()
    trainer = build_trainer(config, [ours], [], limit_val_batches=0)
    data.trainer = trainer
    data.setup("fit")
    batches = collected(data.train_dataloader(), steps)
    trainer.fit(build_task(config, data, network), DataLoader(batches, batch_size=None))
    return ours.found, [step(batch["photo"], batch["target"].long()) for batch in batches]


def collected(loader: Iterable[Batch], count: int) -> list[Batch]:
    """The first batches, from the beginning again where an epoch has fewer."""
    return [batch for batch, _ in zip(cycle(loader), range(count), strict=False)]


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, blocks=8, steps=3)
    parser.add_argument("--photos", type=Path, help="a gtfine set")
    parser.add_argument("--curve", type=int, default=60, help="steps of the losses that are printed")
    parser.add_argument("--batch", type=int, default=8, help="crops of 256x256")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    turns = {"blocks": args.blocks, "steps": args.steps}
    with tempfile.TemporaryDirectory() as folder:
        config = run_config(folder, *CHOSEN, "trainer.max_epochs=1", "trainer.precision=bf16-mixed")
        config.data.batch_size, config.data.crop = args.batch, SIDE
        for default in (False, True):
            print(f"bf16, channels_last, callbacks and logger {'by default' if default else 'off'}")
            show(compare(config, default=default, bf16=True, **turns), "ours", "bare", "<= 1.03")
        print("our defaults (bf16, channels_last) against float32")
        show(compare(config, default=True, bf16=False, **turns), "bare", "ours", ">= 1.4")
        if args.photos:
            config.data.root = str(args.photos)
            ours, bare = (np.array(losses) for losses in curves(config, args.curve))
            print("step  ours  float32 (means of 5 steps)")
            for start in range(0, args.curve, 5):
                end = min(start + 5, args.curve)
                print(f"{end:4d}  {ours[start:end].mean():.3f}  {bare[start:end].mean():.3f}")


if __name__ == "__main__":
    main()
