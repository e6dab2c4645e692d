"""What the benchmarks of speed share: both sides measured in turns, so that a busy machine slows both."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cityseg.data.loading import Batch
from cityseg.runs.config import settle

CONF = Path(__file__).parent.parent / "conf"


def arguments(doc: str | None, *, blocks: int, steps: int) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=blocks, help="how often both sides take their turn")
    parser.add_argument("--steps", type=int, default=steps, help="of each side in a block")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def run_config(folder: str, *overrides: str) -> DictConfig:
    """What ``train.py`` would use, with untrained networks."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"run_dir={folder}", "trainer.accelerator=cpu", *overrides])
    config = OmegaConf.create(config)
    settle(config)
    return config


def random_batch(size: int, height: int, width: int, classes: int = 19) -> Batch:
    """Noise with labels of blocks, one in ten void."""
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8, generator=generator)
    coarse = torch.randint(0, classes, (size, height // 32, width // 32), generator=generator)
    coarse[torch.rand(coarse.shape, generator=generator) < 0.1] = 255
    target = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2).to(torch.uint8)
    return {"photo": photo, "target": target, "index": torch.arange(size)}


def seconds(work: Callable[[], object], times: int) -> float:
    """How long `times` calls take, without garbage of before."""
    gc.collect()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - start


def in_turns(sides: Mapping[str, Callable[[], object]], *, blocks: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each side in each block, in turns; a first block is not counted."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for block in range(blocks + 1):
        for name in list(sides)[:: 1 if block % 2 else -1]:
            spent = seconds(sides[name], steps) / steps
            if block:
                found[name].append(spent)
    return found


class Turns:
    """A loader of one batch in memory that lets the other sides have their turn between blocks of a trainer's steps.

    What happens between the first and the last batch of a block is the trainer's: step, callbacks, logging.

    Args:
        batch: handed out again and again.
        others: name -> one step of another side.
        blocks: that count; one more goes before them.
        steps: in a block.
    """

    def __init__(self, batch: Batch, others: Mapping[str, Callable[[], object]], *, blocks: int, steps: int) -> None:
        """See the class."""
        self._batch, self._others, self._blocks, self._steps = batch, others, blocks, steps
        self.found: dict[str, list[float]] = {name: [] for name in ("ours", *others)}

    def __len__(self) -> int:
        """Batches of all blocks, and one more: asking for it ends the last block."""
        return (self._blocks + 1) * self._steps + 1

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of a block, then let the others step."""
        for block in range(self._blocks + 1):
            gc.collect()
            start = time.perf_counter()
            for _ in range(self._steps):
                yield self._batch
            spent = {"ours": time.perf_counter() - start}
            spent |= {name: seconds(step, self._steps) for name, step in self._others.items()}
            for name, value in spent.items() if block else ():
                self.found[name].append(value / self._steps)
        yield self._batch


def show(found: Mapping[str, Sequence[float]], ours: str, theirs: str, goal: str) -> float:
    """Print both sides and the ratio of their times, block by block: median and quartiles."""
    for name in (ours, theirs):
        low, middle, high = (1000 * np.quantile(found[name], [0.25, 0.5, 0.75])).tolist()
        print(f"  {name:<34} {middle:9.1f} ms  ({low:.1f} to {high:.1f})")
    ratios = np.array(found[ours]) / np.array(found[theirs])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    print(
        f"  {ours} / {theirs}: {middle:.3f} ({low:.3f} to {high:.3f}), {len(ratios)} blocks; goal {goal}\n", flush=True
    )
    return float(middle)
