"""Score the palette decoder at several values of ``max_distance`` on composites whose true labels are known.

    python benchmarks/palette_distance.py ROOT [--split val] [--jpeg-quality 75]

``ROOT/SPLIT/*.jpg`` are pairs composites (photo left, colour-coded label right); a ``trainids`` folder beside
ROOT (or inside it) holds ``SPLIT/NAME.png`` with each pixel's true train id. Prints two Markdown tables:

- how much each ``max_distance`` keeps and how right it is. *kept* is the share of the truth's valid pixels
  that get a class, *least kept* the class that loses most; *accuracy* and *mIoU* (mean over the classes that
  the truth has) score the kept pixels only; *mIoU, rejected wrong* counts a rejected pixel as missed;
  *phantom* is how many classes the decoder found that the truth never has, and on how many pixels: in a score
  each of them is one more class with an IoU near 0; *ms* is the time to decode one image, table built.
- the mean distance to the nearest colour, for the composites' own colours and for the same labels painted in
  other colours, which a threshold for "this is another palette" has to tell apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from cityseg.data.color_labels import PaletteDecoder
from cityseg.labels import VOID, ByteArray, LabelSpace, label_space

DISTANCES = (None, 60.0, 45.0, 30.0, 25.0, 20.0, 15.0, 12.0, 8.0)
Counts = npt.NDArray[np.int64]
Decoder = Callable[[ByteArray], ByteArray]


def parse_distance(text: str) -> float | None:
    """A distance, or None for the word "none"."""
    return None if text.lower() == "none" else float(text)


def read_pairs(root: Path, split: str, jpeg_quality: int | None) -> list[tuple[ByteArray, ByteArray]]:
    """Label halves ``(H, W, 3)`` and true train ids ``(H, W)`` of every composite of a split.

    Raises:
        SystemExit: if there is no composite, or no ``trainids`` folder.
    """
    files = sorted([*(root / split).glob("*.jpg"), *(root / split).glob("*.png")])
    truths = next((path for path in (root.parent / "trainids", root / "trainids") if path.is_dir()), None)
    if not files or truths is None:
        raise SystemExit(f"{root}: expected {split}/*.jpg composites and a 'trainids' folder beside or inside it")
    pairs = []
    for file in files:
        composite = np.asarray(Image.open(file).convert("RGB"))
        if jpeg_quality is not None:
            composite = recompress(composite, jpeg_quality)
        truth = np.asarray(Image.open(truths / split / f"{file.stem}.png"))
        pairs.append((np.ascontiguousarray(composite[:, composite.shape[1] // 2 :]), truth))
    return pairs


def recompress(image: ByteArray, quality: int) -> ByteArray:
    """The image ``(H, W, 3)`` after one more JPEG compression."""
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


def count(decoded: ByteArray, truth: ByteArray, classes: int) -> Counts:
    """Confusion counts ``(classes, classes + 1)``: rows are the truth, the last column is void."""
    valid = truth != VOID
    columns = np.minimum(decoded[valid], classes).astype(np.int64)
    cells = truth[valid].astype(np.int64) * (classes + 1) + columns
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def mean_iou(confusion: Counts, rejected: Counts | int = 0) -> float:
    """Mean IoU of the classes that the truth has; `rejected` are further misses of each class."""
    hits, truth = confusion.diagonal(), confusion.sum(1) + rejected
    union = confusion.sum(0) + truth - hits
    return float(np.mean(hits[truth > 0] / union[truth > 0]))


def score_row(name: str, decoder: Decoder, pairs: Sequence[tuple[ByteArray, ByteArray]], space: LabelSpace) -> str:
    """One line of the first table."""
    decoder(pairs[0][0])  # builds the table
    start = time.perf_counter()
    decoded = [decoder(colors) for colors, _ in pairs]
    milliseconds = (time.perf_counter() - start) / len(pairs) * 1000
    counts = np.zeros((space.num_classes, space.num_classes + 1), np.int64)
    for train_ids, (_, truth) in zip(decoded, pairs, strict=True):
        counts += count(train_ids, truth, space.num_classes)
    confusion, rejected, total = counts[:, :-1], counts[:, -1], counts.sum(1)
    kept = np.divide(confusion.sum(1), total, out=np.ones(len(total)), where=total > 0)
    least = int(kept.argmin())
    phantom = confusion.sum(0)[total == 0]
    cells = (
        name,
        f"{100 * confusion.sum() / total.sum():.1f} %",
        f"{space.class_names[least]} {100 * kept[least]:.1f} %",
        f"{100 * confusion.trace() / confusion.sum():.2f} %",
        f"{100 * mean_iou(confusion):.1f}",
        f"{100 * mean_iou(confusion, rejected):.1f}",
        f"{np.count_nonzero(phantom)} ({phantom.sum()} px)",
        f"{milliseconds:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def print_header(first: str) -> None:
    """Print the head of a table of :func:`score_row` lines."""
    print(f"| {first} | kept | least kept | accuracy | mIoU | mIoU, rejected wrong | phantom | ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")


def distance_row(name: str, values: Sequence[float]) -> str:
    """One line of the second table."""
    return f"| {name} | {min(values):.1f} | {np.mean(values):.1f} | {max(values):.1f} |"


def print_distances(pairs: Sequence[tuple[ByteArray, ByteArray]], space: LabelSpace) -> None:
    """Print mean distances of the composites, and of their labels in other colours."""
    decoder = PaletteDecoder(space)
    random = np.random.default_rng(0).integers(0, 256, (100, 256, 3)).astype(np.uint8)
    repainted = [random[index % 100][truth] for index, (_, truth) in enumerate(pairs)]
    grey = np.repeat(space.decode_table[:, None], 3, axis=1)
    rows = {
        "the palette, blurred": [colors for colors, _ in pairs],
        "100 random palettes": repainted,
        "channels in BGR order": [colors[..., ::-1] for colors, _ in pairs],
        "label ids as grey": [grey[truth] for _, truth in pairs],
    }
    print("\n| painted in | least mean distance | average | largest |\n| --- | --- | --- | --- |")
    for name, images in rows.items():
        print(distance_row(name, [decoder.mean_distance(image) for image in images]))


def main() -> None:
    """Read the composites and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="a pairs set")
    parser.add_argument("--split", default="val", help="folder of ROOT to read (default: %(default)s)")
    parser.add_argument("--space", default="cityscapes19", help="label space (default: %(default)s)")
    parser.add_argument("--jpeg-quality", type=int, help="compress the composites once more first (1 to 100)")
    parser.add_argument(
        "--distances", type=parse_distance, nargs="+", default=DISTANCES, help='"none" keeps every pixel'
    )
    args = parser.parse_args()
    space = label_space(args.space)
    pairs = read_pairs(args.root, args.split, args.jpeg_quality)
    print(f"{len(pairs)} composites of {args.root / args.split}, label space {space.name}\n")
    print_header("max_distance")
    for max_distance in args.distances:
        name = "none" if max_distance is None else f"{max_distance:g}"
        print(score_row(name, PaletteDecoder(space, max_distance), pairs, space), flush=True)
    print_distances(pairs, space)


if __name__ == "__main__":
    main()
