"""The GPU benchmark runs without one, and its shares and ratios are those of a clock that is set by hand."""

import importlib
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.data.layouts import write_gtfine

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
TINY = ("data.workers=0", "model.encoder=tu-test_resnet", "+model.decoder_channels=[32, 16, 16, 8, 8]")


@pytest.fixture(autouse=True)
def as_script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_the_waiting_share_is_what_passes_between_asking_for_a_batch_and_having_it(monkeypatch):
    gpu = importlib.import_module("gpu")
    clock = [0.0]

    def spend(seconds):
        clock[0] += seconds

    monkeypatch.setattr(gpu, "mark", lambda _: clock[0])

    class Loader:
        num_workers, prefetch_factor = 1, 2
        batch_sampler = SimpleNamespace(set_epoch=lambda _: None)

        def __iter__(self):
            spend(50)  # a pass starts slowly: not of the steps that count
            while True:
                spend(1)
                yield {"photo": torch.zeros(4, 3, 2, 2)}

    turns = gpu.Turns(Loader(), lambda: lambda _: spend(2), torch.device("cpu"), blocks=3, steps=5)
    for batch in turns:
        spend(0.5)  # the copy
        turns.on_train_batch_start(None, None, batch, 0)
        spend(3)
    found, waiting = turns.figures()
    assert found == {"ours": [4.5] * 3, "bare": [2.0] * 3}
    assert waiting.tolist() == pytest.approx([1.5 / 4.5] * 3)
    assert turns.images == 4
    assert len(turns._arrived) == len(turns)


@pytest.mark.slow
def test_it_prints_its_figures_without_a_gpu(tmp_path, monkeypatch, capsys):
    root = write_gtfine(tmp_path / "data", (("train", 4), ("val", 1)), size=(64, 96))
    typed = ["gpu.py", root, "--device", "cpu", "--size", "64", "128", "--batch", "2", "--steps", "2", "--blocks", "2",
             "--models", "unet", "--keys", *TINY]  # fmt: skip
    monkeypatch.setattr("sys.argv", list(map(str, typed)))
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "PHOTOS ARE TOO SMALL: crops of (64, 96), not [64, 128]" in printed
    speed, share, ours = (
        float(re.search(pattern, printed)[1])
        for pattern in (r"from disk ([\d.]+) images/s", r"waiting for data ([\d.]+) %", r"ours +([\d.]+) ms")
    )
    assert speed * ours / 1000 == pytest.approx(2, rel=0.02)
    assert 0 < share < 100
    assert re.search(r"bare / ours: [\d.]+ \([\d.]+ to [\d.]+\), 2 blocks; goal >= 0.95", printed)
