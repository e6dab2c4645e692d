"""Training samples a second of the loader, against a plain Dataset as public projects write it.

    python benchmarks/loader.py GTFINE PAIRS [--rows a b c d] [--repeats 5] [--workers 2] [--images 24] [--normalise]

GTFINE and PAIRS are data sets of street photos in those layouts; of the first, photos are enlarged to 2048x1024 in a
temporary folder (with noise, so that PNG files are as large as those of Cityscapes). Each row loads epochs of both
sides in turn, and prints the time a sample of each and their ratio: median and quartiles.

a: gtfine, 640x640 crops with flip, shift, scale, rotation, colour and blur; decoded samples cached.
b: the same without a cache, as in the first epoch.
c: 512x256 composites with palette labels, flip and colour, cached; against the distance to all colours per item.
d: the same with K-means labels, against ``KMeans.predict`` per item.

For c and d ours is also timed without loader processes, as crops are then made faster than handed over.

The plain side decodes with Pillow, augments with albumentations and collates float32. It is timed with the geometry on
the whole photo (*crop last*, which leaves no border, as segmentation_models_pytorch's example has it) and with
RandomCrop first. Ours ends with uint8, which the network normalises on its device; with ``--normalise`` that is done
here too, in the main process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from itertools import count, product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked workers hang in scikit-learn's threads

import numpy as np
import torch
from interleaved import in_turns, show
from PIL import Image
from sklearn.cluster import KMeans
from torch.utils.data import DataLoader, Dataset

from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.pairs import PairsDataModule
from cityseg.data.transforms import Augment, Color, strict_pixel_transform
from cityseg.labels import VOID, ByteArray, label_space

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations
from albumentations.pytorch import ToTensorV2

LINKS = 8  # names of each enlarged photo: an epoch is long enough to time, the files are not many
COLOR = {**dict.fromkeys(("brightness", "contrast", "saturation"), (0.75, 1.25)), "hue": (-0.02, 0.02), "p": 0.8}
BLUR = {"blur_limit": [3, 7], "p": 0.5}
SPACE = label_space("cityscapes19")
MEAN, STD = (torch.tensor(values).view(3, 1, 1) * 255 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class Plain(Dataset):
    """Decode one sample, transform it as a whole, give float32 and int64."""

    def __init__(self, files: list[Path], read: Callable[[Path], tuple[ByteArray, Any]], steps: list[Any]) -> None:
        """Files of the photos, what reads a photo and its train ids, and albumentations' transforms."""
        self.files, self.read = files, read
        self.transform = albumentations.Compose([*steps, albumentations.Normalize(), ToTensorV2()])

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One sample."""
        photo, target = self.read(self.files[index])
        result = self.transform(image=photo, mask=target)
        return result["image"], result["mask"].long()


def read_gtfine(path: Path) -> tuple[ByteArray, Any]:
    """Photo and train ids of a Cityscapes photo."""
    label = str(path).replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_labelIds")
    table = np.array([SPACE.ids.get(value, VOID) for value in range(256)], np.uint8)
    return np.array(Image.open(path).convert("RGB")), table[np.array(Image.open(label))]


def read_nearest(path: Path) -> tuple[ByteArray, Any]:
    """Photo and class of the nearest colour of a composite."""
    both = np.array(Image.open(path).convert("RGB"))
    photo, colors = np.split(both, 2, axis=1)
    distances = np.square(colors[:, :, None].astype(np.int32) - np.array(SPACE.colors, np.int32)).sum(axis=-1)
    return photo, distances.argmin(axis=-1).astype(np.uint8)


class ReadClusters:
    """Photo and cluster of a composite."""

    def __init__(self, files: list[Path]) -> None:
        """Fit the clusters to some of the labels."""
        colors = [np.array(Image.open(path).convert("RGB"))[::8, -256::8].reshape(-1, 3) for path in files]
        self.clusters = KMeans(10, random_state=42, n_init=1).fit(np.concatenate(colors).astype(np.float32))

    def __call__(self, path: Path) -> tuple[ByteArray, Any]:
        """One sample."""
        photo, colors = np.split(np.array(Image.open(path).convert("RGB")), 2, axis=1)
        found = self.clusters.predict(colors.reshape(-1, 3).astype(np.float32))
        return photo, found.reshape(photo.shape[:2]).astype(np.uint8)


def enlarge(source: Path, root: Path, images: int) -> None:
    """Write photos and labels of a gtfine set at 2048x1024, each under several names."""
    files = sorted(source.glob("leftImg8bit/train/*/*_leftImg8bit.png"))[: images + 1]
    if len(files) < images + 1:
        raise SystemExit(f"{source}: found {len(files)} training photos, expected {images + 1} (--images, and one)")
    for number, path in enumerate(files):
        noise = np.random.default_rng(number).normal(0, 3, (1024, 2048, 1))
        photo = np.asarray(Image.open(path).convert("RGB").resize((2048, 1024), Image.Resampling.BICUBIC))
        label = str(path).replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_labelIds")
        ids = Image.open(label).resize((2048, 1024), Image.Resampling.NEAREST)
        split = "train" if number < images else "val"
        for link in range(LINKS if split == "train" else 1):
            for kind, ending, picture in (
                ("leftImg8bit", "leftImg8bit", Image.fromarray(np.clip(photo + noise, 0, 255).astype(np.uint8))),
                ("gtFine", "gtFine_labelIds", ids),
            ):
                file = root / kind / split / "city" / f"city_{number:06d}_{link:06d}_{ending}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                if link:
                    file.hardlink_to(file.with_name(f"city_{number:06d}_000000_{ending}.png"))
                else:
                    picture.save(file)


def plain_loader(dataset: Plain, batch: int, workers: int) -> DataLoader[Any]:
    """As written most often."""
    return DataLoader(
        dataset, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def our_loader(data: SegmentationDataModule) -> DataLoader[Any]:
    """The training loader, with its cache filled where one is wanted."""
    data.setup("fit")
    return data.train_dataloader()


def epoch(loader: DataLoader[Any], normalise: bool) -> Callable[[], None]:
    """What loads one epoch."""
    numbers, buffer = count(), torch.empty(0)

    def load() -> None:
        if isinstance(loader.dataset, Plain):
            for _ in loader:
                pass
            return
        loader.batch_sampler.set_epoch(next(numbers))
        for batch in loader:
            if normalise:
                buffer.resize_(batch["photo"].shape).copy_(batch["photo"]).sub_(MEAN).div_(STD)

    return load


def compare(
    row: str,
    goal: str,
    ours: dict[str, DataLoader[Any]],
    others: dict[str, DataLoader[Any]],
    repeats: int,
    normalise: bool,
) -> None:
    """Time epochs of each in turn; print milliseconds a sample and how many times faster ours are."""
    sides = {name: epoch(loader, normalise) for name, loader in (ours | others).items()}
    samples = sum(map(len, ours["ours"].batch_sampler))
    found = {name: np.array(times) / samples for name, times in in_turns(sides, blocks=repeats, steps=1).items()}
    print(f"row {row}, {samples} samples an epoch, a sample:")
    for name, own in product(others, ours):
        show(found, name, own, goal)


def gtfine_rows(rows: list[str], root: Path, repeats: int, workers: int, normalise: bool) -> None:
    """Rows a and b."""
    blur = {"blur": strict_pixel_transform("GaussianBlur", **BLUR)}
    augment = Augment((0.5, 1.5), rotate=(-10, 10), shift=0.0625, flip=0.5, color=Color(**COLOR), pixel=blur)
    warp = albumentations.ShiftScaleRotate(
        shift_limit=0.0625, scale_limit=0.5, rotate_limit=10, border_mode=0, fill_mask=VOID, p=1
    )
    flip, crop = albumentations.HorizontalFlip(p=0.5), albumentations.RandomCrop(640, 640)
    change = [albumentations.ColorJitter(**COLOR), albumentations.GaussianBlur(**BLUR)]
    orders = {"crop last": [flip, warp, crop, *change], "crop first": [crop, flip, warp, *change]}
    files = sorted(root.glob("leftImg8bit/train/*/*.png"))
    for row, cache in (("a", "ram"), ("b", "none")):
        if row in rows:
            data = GtFineDataModule(
                str(root), augment=augment, crop=640, batch_size=8, eval_batch_size=1, workers=workers, cache=cache
            )
            others = {
                name: plain_loader(Plain(files, read_gtfine, steps), 8, workers) for name, steps in orders.items()
            }
            compare(row, ">= 12" if row == "a" else ">= 1.5", {"ours": our_loader(data)}, others, repeats, normalise)


def pairs_rows(rows: list[str], root: Path, repeats: int, workers: int, normalise: bool) -> None:
    """Rows c and d."""
    augment = Augment(flip=0.5, color=Color(**COLOR))
    steps = [albumentations.HorizontalFlip(p=0.5), albumentations.ColorJitter(**COLOR)]
    for row, labels in (("c", "palette"), ("d", "kmeans")):
        if row in rows:
            ours = {}
            for name, processes in (("ours", workers), ("ours, data.workers=0", 0)):
                data = PairsDataModule(
                    str(root), labels=labels, augment=augment, crop=256, batch_size=16, eval_batch_size=1,
                    workers=processes, cache="ram",
                )  # fmt: skip
                files = [data.samples("train").photo(index) for index in range(len(data.samples("train")))]
                data.fit_labels()
                ours[name] = our_loader(data)
            read = read_nearest if row == "c" else ReadClusters(files[:50])
            name = "nearest colour" if row == "c" else "KMeans.predict"
            others = {name: plain_loader(Plain(files, read, steps), 16, workers)}
            compare(row, ">= 5" if row == "c" else ">= 8", ours, others, repeats, normalise)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gtfine", type=Path, metavar="GTFINE", help="a gtfine set of small street photos")
    parser.add_argument("pairs", type=Path, metavar="PAIRS", help="a pairs set")
    parser.add_argument("--rows", nargs="+", choices=list("abcd"), default=list("abcd"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=24, help="photos that are enlarged")
    parser.add_argument("--normalise", action="store_true", help="time the normalisation of ours too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="ShiftScaleRotate")  # superseded, and still what most projects use
    with tempfile.TemporaryDirectory() as folder:
        if {"a", "b"} & set(args.rows):
            enlarge(args.gtfine, Path(folder), args.images)
            gtfine_rows(args.rows, Path(folder), args.repeats, args.workers, args.normalise)
    pairs_rows(args.rows, args.pairs, args.repeats, args.workers, args.normalise)


if __name__ == "__main__":
    main()
