"""Hold an exported network against PyTorch: the labels of photos and the time, the file in a Python without torch.

    python -m venv plain && plain/bin/pip install onnxruntime numpy pillow
    python benchmarks/onnx_labels.py CKPT PHOTOS --python plain/bin/python [--threads 1 2]

The first ten PNG or JPEG files of PHOTOS, at any depth, are resized to three sizes. PyTorch's labels are those of
``predict.py`` in float32. Both sides run on the CPU one after the other, in processes of their own, and get one photo
at a time; a time is the median over the photos, from the decoded photo to its labels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).absolute().parent.parent
SIZES = ((480, 360), (641, 479), (1024, 768))  # width, height


def pytorch(ckpt: str, threads: int) -> tuple[str, Callable[[Any], Any]]:
    """What ``predict.py`` does with a photo ``(H, W, 3)``."""
    import torch
    from hydra import compose, initialize_config_dir

    from cityseg.checkpoints import load_checkpoint
    from cityseg.runs.prediction import Predictor

    torch.set_num_threads(threads)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        keys = [f"ckpt='{ckpt}'", "input=.", "output=.", "trainer.accelerator=cpu", "trainer.precision=32-true"]
        predictor = Predictor([load_checkpoint(Path(ckpt))], compose("predict", keys), ("train_ids",))
    return f"PyTorch {torch.__version__}", lambda photo: predictor(photo).train_ids


def onnx(file: str, threads: int) -> tuple[str, Callable[[Any], Any]]:
    """What ``examples/onnx_predict.py`` does with a photo ``(H, W, 3)``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = f"onnxruntime {onnxruntime.__version__} {'beside' if find_spec('torch') else 'without'} torch"
    return name, lambda photo: session.run(["train_ids"], {"photos": photo.transpose(2, 0, 1)[None]})[0][0]


def measure(side: str, network: str, threads: str, work: str) -> None:
    """Save the labels of each ``SIZE.photos.npy`` as ``SIZE.SIDE.npy``; print the side's name and its milliseconds."""
    name, predict = {"pytorch": pytorch, "onnx": onnx}[side](network, int(threads))
    times = {}
    for file in Path(work).glob("*.photos.npy"):
        labels, taken, photos = [], [], np.load(file)
        predict(photos[0])  # a warm-up
        for photo in photos:
            start = time.perf_counter()
            labels.append(predict(photo))
            taken.append(1000 * (time.perf_counter() - start))
        np.save(str(file).replace("photos.npy", side), labels)
        times[file.name.split(".")[0]] = np.median(taken)
    print(json.dumps([name, times]))


def main() -> None:
    """Export, run both sides, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path, metavar="CKPT")
    parser.add_argument("photos", type=Path, metavar="PHOTOS")
    parser.add_argument("--python", default=sys.executable, help="one that has onnxruntime (default: this one)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    paths = sorted(args.photos.rglob("*.[jp][np]g"))[:10] or parser.error(f"{args.photos}: no PNG or JPEG files")
    with tempfile.TemporaryDirectory() as folder:
        network = f"{folder}/network.onnx"
        subprocess.run([sys.executable, ROOT / "export.py", f"ckpt='{args.ckpt}'", f"output={network}"], check=True)
        for width, height in SIZES:
            resized = [np.asarray(Image.open(path).convert("RGB").resize((width, height))) for path in paths]
            np.save(f"{folder}/{width}x{height}.photos", resized)
        for threads in args.threads:
            sides = (sys.executable, "pytorch", str(args.ckpt)), (args.python, "onnx", network)
            commands = [[python, __file__, "measure", side, file, str(threads), folder] for python, side, file in sides]
            done = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True) for command in commands]
            (ours, before), (theirs, after) = (json.loads(each.stdout.splitlines()[-1]) for each in done)
            print(f"\n| threads | size | equal pixels | {ours}, ms | {theirs}, ms |\n{'| --- ' * 5}|")
            for size in (f"{width}x{height}" for width, height in SIZES):
                equal = np.mean(np.load(f"{folder}/{size}.pytorch.npy") == np.load(f"{folder}/{size}.onnx.npy"))
                print(f"| {threads} | {size} | {equal:.4%} | {before[size]:.0f} | {after[size]:.0f} |")


if __name__ == "__main__":
    measure(*sys.argv[2:6]) if sys.argv[1:2] == ["measure"] else main()
