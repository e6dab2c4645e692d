"""Your own data: ``SPLIT/images/NAME.*`` and ``SPLIT/masks/NAME.png``, with class names and colours in the config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cityseg.data.color_labels import PaletteDecoder
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.gtfine import table_reader
from cityseg.data.images import read_photo
from cityseg.data.samples import Reader, Samples, describe_folder, list_files, match_labels
from cityseg.data.scenes import SCENE_CLASSES
from cityseg.errors import ConfigError, DataError, FileProblem, Problems
from cityseg.labels import CITYSCAPES_LABELS, VOID, ByteArray, custom_label_space

PHOTO_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class ColorMaskReader(Reader):
    """Reads masks painted in the class colours, every pixel exactly one of them."""

    decode: PaletteDecoder

    def target(self, label: Path) -> ByteArray:
        """Train ids of a mask, see :class:`Reader`."""
        colors = read_photo(label)
        try:
            return self.decode.decode_exact(colors)
        except DataError as error:
            raise FileProblem(label, "mask colours that belong to no class", str(error)) from error


class FoldersDataModule(SegmentationDataModule):
    """Photos and masks in two folders a split.

    Args:
        root: folder with ``train/images``, ``train/masks``, ``val/images``, ``val/masks``.
        classes: class name -> ``[R, G, B]``, train ids in this order; the name ``void`` marks what is ignored.
        labels: ``ids`` for masks that hold train ids (255 is void), ``palette`` for masks painted in class colours.
        options: see :class:`SegmentationDataModule`.
    """

    layout = "folders"
    splits = ("train", "val", "test")

    def __init__(
        self,
        root: str | None,
        *,
        classes: Mapping[str, Sequence[int]] | None,
        labels: Literal["ids", "palette"] = "ids",
        **options: Any,
    ) -> None:
        if root is None:
            colors = {label.name: label.color for label in CITYSCAPES_LABELS}
            classes, labels = {name: colors[name] for name in SCENE_CLASSES}, "ids"
        if not classes:
            raise ConfigError(
                "data.classes: found none, expected the names and colours of your classes; put them in a YAML, or type "
                "'data.classes={road: [128, 64, 128], car: [0, 0, 142]}'"
            )
        space = custom_label_space(classes)
        super().__init__(root, space, **options)
        if labels == "palette":
            self.reader = ColorMaskReader(PaletteDecoder(space, None))
        elif labels == "ids":
            count = space.num_classes
            hint = (
                f"expected are train ids 0 to {count - 1} and {VOID} (data.classes names {count} classes); label ids "
                "instead of train ids? for masks of colours set data.labels=palette"
            )
            self.reader = table_reader({i: i for i in (*range(count), VOID)}, hint)
        else:
            raise ConfigError(f"data.labels: found {labels!r}, expected 'ids' or 'palette'")

    def find(self, root: Path, split: str, problems: Problems) -> Samples:
        """List the photos of a split, in numeric order, with the masks of the same name."""
        images, masks = root / split / "images", root / split / "masks"
        photos = list_files(root, images, PHOTO_ENDINGS)
        if not photos:
            problems.add(
                f"no photos for split {split!r}",
                f"searched {images}/*; {describe_folder(root, split, 'images')}",
                fix="arrange the files as SPLIT/images/NAME.jpg and SPLIT/masks/NAME.png"
                + (", or hold out folds of train: fold=0" if split == "val" else ""),
            )
            return Samples.from_paths(root, [], None)
        labels = list_files(root, masks, frozenset({".png"}))
        if not labels and split == "test":
            return Samples.from_paths(root, photos, None)
        photo_of = {_stem(photo): photo for photo in photos}
        photos, labels = match_labels(
            photos,
            labels,
            lambda photo: f"{split}/masks/{_stem(photo)}.png",
            lambda mask: photo_of.get(_stem(mask), f"{split}/images/{_stem(mask)}.jpg"),
            problems,
        )
        return Samples.from_paths(root, photos, labels)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
