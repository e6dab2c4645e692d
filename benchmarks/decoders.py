"""Compare the decoders of colour labels on composites whose true labels are known, and on harder ones made here.

    python benchmarks/decoders.py ROOT [--split val] [--label-maps GTFINE] [--images 10]

ROOT is a pairs set with true train ids, as for ``palette_distance.py``, which also explains the columns. The
harder composites are shrunk here from label maps: two built-in scenes side by side (2048x1024, the size of
Cityscapes) and, with ``--label-maps``, four of the files ``GTFINE/*/*/*_labelIds.png`` in a square. In half of
their objects a class gives way to a related one or to a void label, so that all classes and the colours of void
occur. Each map becomes 256x256 pixels in several ways: resampling, JPEG quality, chroma shared by 2x2 pixels
(4:2:0) or not (4:4:4). The truth is the class with the largest share of a pixel. K-means is fitted on the labels of
ROOT/train and compared on ROOT alone, since its classes are those that ROOT has.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from palette_distance import Decoder, print_header, read_pairs, score_row
from PIL import Image

from cityseg.data.blends import BlendDecoder
from cityseg.data.clusters import cluster_space, find_centers, sample_colors
from cityseg.data.color_labels import PaletteDecoder
from cityseg.data.scenes import render_scene
from cityseg.labels import CITYSCAPES_LABELS, VOID, ByteArray, LabelSpace, label_space

SIZE = 256
CLUSTER_SEED = 42
LABELS = {label.name: label for label in CITYSCAPES_LABELS if label.id >= 0}
RELATED = {
    "building": ("wall", "fence", "bridge"),
    "fence": ("wall", "guard rail"),
    "sidewalk": ("terrain", "parking", "rail track", "ground"),
    "vegetation": ("terrain",),
    "traffic sign": ("traffic light",),
    "person": ("rider", "bicycle"),
    "rider": ("motorcycle",),
    "bicycle": ("motorcycle",),
    "car": ("truck", "bus", "train", "motorcycle", "caravan", "trailer"),
    "bus": ("train", "truck"),
    "unlabeled": ("dynamic", "ground"),
}


class Shrinking(NamedTuple):
    """How a label map is made a composite."""

    resample: Image.Resampling
    quality: int
    subsampling: str


SHRINKINGS = (
    Shrinking(Image.Resampling.BICUBIC, 85, "4:2:0"),
    Shrinking(Image.Resampling.BOX, 75, "4:2:0"),
    Shrinking(Image.Resampling.BILINEAR, 95, "4:2:0"),
    Shrinking(Image.Resampling.LANCZOS, 90, "4:4:4"),
)


def decoders(space: LabelSpace) -> dict[str, Decoder]:
    """The decoders to compare, by the name they have in the tables."""
    return {
        "nearest": PaletteDecoder(space, None),
        "nearest, at most 20 away": PaletteDecoder(space, 20.0),
        "blends": BlendDecoder(space, reject_ambiguous=False),
        "blends, ambiguous rejected": BlendDecoder(space),
    }


def cluster_decoder(label_colors: Sequence[ByteArray], clusters: int, space: LabelSpace) -> Decoder:
    """K-means fitted on training labels; a cluster counts as the class it is named by."""
    sample = sample_colors(lambda index: label_colors[index], len(label_colors), CLUSTER_SEED)
    own = cluster_space(find_centers(sample, clusters, CLUSTER_SEED))
    table, nearest = to_train_ids(own, space), PaletteDecoder(own, None)
    return lambda colors: table[nearest(colors)]


def to_train_ids(own: LabelSpace, space: LabelSpace) -> ByteArray:
    """Train id in a space of each class of another, by name without its number; VOID without one: ``(256,)``."""
    table = np.full(256, VOID, np.uint8)
    for index, name in enumerate(own.class_names):
        plain = re.sub(r" \d+$", "", name)
        if plain in space.class_names:
            table[index] = space.class_names.index(plain)
    return table


def scene_maps(images: int) -> Iterator[ByteArray]:
    """Label ids ``(1024, 2048)`` of built-in scenes."""
    for index in range(images):
        yield np.concatenate([render_scene(1, 2 * index + side, 1024)[1] for side in (0, 1)], axis=1)


def street_maps(root: Path, images: int) -> Iterator[ByteArray]:
    """Label ids of four label files each, in a square.

    Raises:
        SystemExit: if there are too few files.
    """
    files = sorted(root.glob("*/*/*_labelIds.png"))
    if len(files) < 4 * images:
        raise SystemExit(f"{root}: found {len(files)} */*/*_labelIds.png, expected at least {4 * images}")
    order = np.random.default_rng(0).permutation(len(files))[: 4 * images].reshape(images, 2, 2)
    for square in order:
        yield np.concatenate(
            [np.concatenate([np.asarray(Image.open(files[index])) for index in row], axis=1) for row in square]
        )


def vary(label_ids: ByteArray, rng: np.random.Generator) -> ByteArray:
    """Give half of the connected regions of some classes a related class."""
    varied = label_ids.copy()
    for name, others in RELATED.items():
        count, regions = cv2.connectedComponents((label_ids == LABELS[name].id).astype(np.uint8))
        names = [name, *(str(rng.choice(others)) if rng.random() < 0.5 else name for _ in range(1, count))]
        inside = regions > 0
        varied[inside] = np.array([LABELS[other].id for other in names], np.uint8)[regions[inside]]
    return varied


def shrink(label_ids: ByteArray, shrinking: Shrinking, space: LabelSpace) -> tuple[ByteArray, ByteArray]:
    """Make a label map a small JPEG: its colours ``(SIZE, SIZE, 3)`` and the true train ids ``(SIZE, SIZE)``."""
    colors = np.zeros((256, 3), np.uint8)
    for label in LABELS.values():
        colors[label.id] = label.color
    buffer = io.BytesIO()
    small = Image.fromarray(colors[label_ids]).resize((SIZE, SIZE), shrinking.resample)
    small.save(buffer, "JPEG", quality=shrinking.quality, subsampling=shrinking.subsampling)
    train_ids = space.encode_table[label_ids].astype(np.uint8)
    present = np.unique(train_ids)
    shares = [cv2.resize(np.float32(train_ids == value), (SIZE, SIZE), None, 0, 0, cv2.INTER_AREA) for value in present]
    return np.asarray(Image.open(buffer)), present[np.argmax(shares, axis=0)]


def print_table(
    title: str, pairs: Sequence[tuple[ByteArray, ByteArray]], space: LabelSpace, compared: Mapping[str, Decoder]
) -> None:
    """Print the scores of decoders on a set."""
    print(f"\n{title}: {len(pairs)} images of {pairs[0][1].shape[1]}x{pairs[0][1].shape[0]}\n")
    print_header("decoder")
    for name, decoder in compared.items():
        print(score_row(name, decoder, pairs, space), flush=True)


def main() -> None:
    """Read or make the composites and print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="a pairs set")
    parser.add_argument("--split", default="val", help="folder of ROOT to read (default: %(default)s)")
    parser.add_argument("--label-maps", type=Path, metavar="GTFINE", help="folder of a gtFine set to shrink too")
    parser.add_argument("--images", type=int, default=10, help="harder composites of a kind (default: %(default)s)")
    args = parser.parse_args()
    space = label_space("cityscapes19")
    cv2.setNumThreads(1)
    compared = decoders(space)
    train_colors = [colors for colors, _ in read_pairs(args.root, "train", None)]
    clusters = {f"K-means {count}": cluster_decoder(train_colors, count, space) for count in (10, 20)}
    print_table(f"{args.root / args.split}", read_pairs(args.root, args.split, None), space, {**compared, **clusters})
    sources = {"scenes": list(scene_maps(args.images))}
    if args.label_maps is not None:
        sources["streets"] = list(street_maps(args.label_maps, args.images))
    for source, maps in sources.items():
        rng = np.random.default_rng(0)
        varied = [vary(label_ids, rng) for label_ids in maps]
        for shrinking in SHRINKINGS:
            title = f"{source}, {shrinking.resample.name.lower()}, quality {shrinking.quality}, {shrinking.subsampling}"
            print_table(title, [shrink(label_ids, shrinking, space) for label_ids in varied], space, compared)


if __name__ == "__main__":
    main()
