"""Train on a GPU from photos on disk, against a bare loop over the same network with its batch on the GPU.

    python benchmarks/gpu.py ROOT [--size 512 1024] [--batch 8] [--steps 32] [--blocks 6] [--enlarge N]
        [--models unet deeplabv3plus gan] [--keys data.cache=disk data.workers=12 ...] [--device cpu]

ROOT is a gtfine set with photos of at least `--size`; with `--enlarge`, N of its training photos are first written at
2048x1024 into a temporary folder. Ours is what ``train.py`` runs: datamodule, loader processes, augmentation, task,
callbacks and logger by default; `--keys` are keys of its. Both sides are bf16, channels_last, compiled (of the GAN the
generator) and have fused optimizers. With ``--device cpu`` nothing is compiled unless ``--keys compile=true``.

The sides take turns. In its turn ours starts a new pass of the loader, so that no batch was fetched while the bare loop
ran, and is timed from when the loader's queue may be full. Times are the GPU's own: CUDA events in its stream. It waits
for data from when it has done all that the trainer gave it before asking for a batch, until that batch was copied to
it. Peak memory is that of our first turn, when there is no bare loop yet.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from gan_step import bare_loop
from interleaved import arguments, run_config, show
from torch import nn

from cityseg.callbacks.state import StepSeed
from cityseg.data.loading import Batch, TrainLoader
from cityseg.runs.objects import build_callbacks, build_data, build_loggers, build_network, build_task, build_trainer

MODELS = {
    "unet": ("model=unet", "model.encoder=resnet34", "model.pretrained=false"),
    "deeplabv3plus": ("model=deeplabv3plus", "model.encoder=resnet50", "model.pretrained=false"),
    "gan": ("model=gan_fpn_aspp", "model.generator.pretrained=false", "task.warmup_epochs=0"),
}
WARM = 2  # steps of the bare loop in its turn that are not timed


def mark(device: torch.device) -> Any:
    """This moment: of a GPU, when it has done all that it was given so far."""
    if device.type != "cuda":
        return time.perf_counter()
    return torch.cuda.current_stream().record_event(torch.cuda.Event(enable_timing=True))


def between(start: Any, end: Any) -> float:
    """Seconds from one mark to a later one."""
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


class Turns(pl.Callback):
    """Hands out a block of batches of a run's own loader, notes when they arrive, and gives the bare loop its turn."""

    def __init__(self, loader: TrainLoader, bare: Any, device: torch.device, *, blocks: int, steps: int) -> None:
        """`bare` makes the bare loop's step after the first block, which does not count; `steps` of a turn do."""
        self._loader, self._bare, self._device, self._blocks, self._steps = loader, bare, device, blocks, steps
        self._first = 1 + loader.num_workers * (loader.prefetch_factor or 0)  # step when the queue may be full
        self._asked: list[Any] = []
        self._arrived: list[Any] = []
        self._timed: dict[str, list[tuple[Any, Any]]] = {"ours": [], "bare": []}
        self._passes = self.images = self.peak = 0  # images of a batch, peak in bytes

    def __len__(self) -> int:
        """Batches of all blocks, and one more: asking for it ends the last block."""
        return (self._blocks + 1) * (self._first + self._steps) + 1

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of a block, then let the bare loop step."""
        bare, gpu = None, self._device.type == "cuda"
        for _ in range(self._blocks + 1):
            batches = self._batches()
            for number in range(self._first + self._steps):
                if gpu and bare is None and number == self._first:
                    torch.cuda.reset_peak_memory_stats(self._device)
                self._asked.append(mark(self._device))
                batch = next(batches)
                yield batch
            self._timed["ours"].append((self._asked[-self._steps], mark(self._device)))
            if bare is None:
                self.images, self.peak = len(batch["photo"]), torch.cuda.max_memory_allocated() if gpu else 0
                resident = {key: value.to(self._device) for key, value in batch.items()}
                bare = self._bare()
            marks = []
            for _ in range(WARM + self._steps):
                marks.append(mark(self._device))
                bare(resident)
            self._timed["bare"].append((marks[WARM], mark(self._device)))
        yield batch

    def _batches(self) -> Iterator[Batch]:
        while True:
            self._loader.batch_sampler.set_epoch(self._passes)
            self._passes += 1
            yield from self._loader

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The batch has been copied to the device, or will be before anything else."""
        self._arrived.append(mark(self._device))

    def figures(self) -> tuple[dict[str, list[float]], Any]:
        """Seconds a step of each side in each block that counts, and the share of ours that the device waited."""
        found = {name: [between(*ends) / self._steps for ends in timed[1:]] for name, timed in self._timed.items()}
        waits = [between(*pair) for pair in zip(self._asked, self._arrived, strict=False)]
        blocks = np.reshape(waits, (self._blocks + 1, -1))[1:, self._first :]
        return found, blocks.mean(axis=1) / found["ours"]


def bare_network(network: nn.Module, loss: nn.Module) -> Any:
    """A training loop's step as it is written without a framework."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(batch["photo"].device.type, torch.bfloat16):
            value = loss(network(batch["photo"]), batch["target"])
        value.backward()
        optimizer.step()

    return step


def measure(config: Any, device: torch.device, *, blocks: int, steps: int) -> Turns:
    """Train, and let the bare loop of the same networks take its turns."""
    data = build_data(config)
    data.keep_splits()
    data.setup("fit")
    if data.crop_size() != tuple(config.data.crop):
        print(f"  PHOTOS ARE TOO SMALL: crops of {data.crop_size()}, not {config.data.crop}. Fix: --enlarge 24")
    network = build_network(config, data.label_space)
    task = build_task(config, data, network)
    parts = copy.deepcopy([network, task.loss, *([task.discriminator] if task.manual else [])])
    if config.compile:
        network.compile()

    def bare() -> Any:
        generator, loss, *judge = (part.to(device).train() for part in parts)
        if config.compile:
            generator.compile()
        if not judge:
            return bare_network(generator, loss)
        return bare_loop(generator, *judge, config.task.adversarial_weight, shared=True, loss=loss, fused=True)

    turns = Turns(data.train_dataloader(), bare, device, blocks=blocks, steps=steps)
    callbacks = [turns, *build_callbacks(config, validated=False), StepSeed(config.seed)]
    build_trainer(config, callbacks, build_loggers(config), limit_val_batches=0, benchmark=True).fit(task, turns)
    return turns


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, blocks=6, steps=32)
    parser.add_argument("root", type=Path, help="a gtfine set")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("HEIGHT", "WIDTH"), help="of crops")
    parser.add_argument("--batch", type=int, default=8, help="crops")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--enlarge", type=int, metavar="N", help="photos to write at 2048x1024 first")
    parser.add_argument("--keys", nargs="+", default=[], help="of train.py")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU at hand. To try the script: --device cpu --size 64 128 --batch 2 --steps 3")
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        if args.enlarge:
            from loader import enlarge

            enlarge(args.root, Path(folder), args.enlarge)
            args.root = Path(folder)
        for model in args.models:
            config = run_config(
                folder, *MODELS[model], f"data.root={args.root}", f"data.crop=[{args.size[0]},{args.size[1]}]",
                f"data.batch_size={args.batch}", f"compile={args.device == 'cuda'}", "trainer.max_epochs=1",
                "trainer.precision=bf16-mixed", f"trainer.accelerator={args.device}", *args.keys,
            )  # fmt: skip
            where = torch.cuda.get_device_name() if args.device == "cuda" else "the processor, not a GPU"
            print(f"{model}, {args.batch} crops of {args.size[1]}x{args.size[0]} on {where}, compile={config.compile}")
            turns = measure(config, torch.device(args.device), blocks=args.blocks, steps=args.steps)
            found, waiting = turns.figures()
            low, share, high = (100 * np.quantile(waiting, [0.25, 0.5, 0.75])).tolist()
            print(f"  from disk {turns.images / np.median(found['ours']):.1f} images/s, peak {turns.peak / 1e9:.2f} GB")
            print(f"  waiting for data {share:.1f} % ({low:.1f} to {high:.1f}) of the time; goal < 3 %")
            show(found, "bare", "ours", ">= 0.95")


if __name__ == "__main__":
    main()
