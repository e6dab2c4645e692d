"""The paired layout: one picture holds the photo (left half) and its colour-coded label (right half)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cityseg.data.color_labels import MAX_DISTANCE, MAX_MEAN_DISTANCE, PaletteDecoder
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.images import Header, read_photo
from cityseg.data.samples import Pair, Samples, describe_folder
from cityseg.errors import ConfigError, FileProblem, Problems
from cityseg.labels import ByteArray
from cityseg.labels import label_space as named_label_space

COLOR_CHECK = 16  # composites whose colours are looked at before training
ENDINGS = frozenset({".jpg", ".jpeg", ".png"})
NESTED = "cityscapes_data"  # the public archive holds cityscapes_data/cityscapes_data/{train,val}


@dataclass(frozen=True)
class PairsReader:
    """Splits a composite and decodes the colours of its right half.

    Attributes:
        decode: label colours ``(H, W, 3)`` uint8 -> train ids ``(H, W)`` uint8.
    """

    decode: PaletteDecoder

    def __call__(self, photo: Path, label: Path | None) -> Pair:
        """Decode one sample, see :class:`cityseg.data.samples.Reader`."""
        photo_half, colors = self.halves(photo)
        return Pair(photo_half, self.decode(colors))

    def halves(self, path: Path) -> tuple[ByteArray, ByteArray]:
        """Photo and label colours of a composite, both ``(H, W, 3)`` uint8 RGB."""
        composite = read_photo(path)
        _, width = self._half(path, *composite.shape[:2])
        return composite[:, :width], composite[:, width:]

    def photo_size(self, path: Path, header: Header) -> tuple[int, int]:
        """Height and width of the left half."""
        return self._half(path, header.height, header.width)

    @staticmethod
    def _half(path: Path, height: int, width: int) -> tuple[int, int]:
        if width % 2 or width < 2 * height:
            raise FileProblem(
                path,
                "not a composite of two halves",
                f"found {width}x{height}, expected an even width of at least twice the height",
                "for separate photo and label files use data=gtfine or data=folders",
            )
        return height, width // 2


class PairsDataModule(SegmentationDataModule):
    """Photo | colour label composites, as the public Cityscapes image pairs (Isola et al., CVPR 2017) are.

    JPEG and resizing blur the colours, so a label pixel rarely has an exact palette colour.

    Args:
        root: folder with ``train`` and ``val``; the doubled folder of the public archive is found too. None for the
            built-in scenes.
        label_space: ``cityscapes19``, ``cityscapes20`` or ``cityscapes_categories``.
        labels: how colours become train ids; ``palette`` is the nearest class colour.
        max_distance: RGB distance (0 to 441) beyond which a colour is void; None keeps every pixel.
        options: see :class:`SegmentationDataModule`.
    """

    layout = "pairs"
    splits = ("train", "val", "test")

    def __init__(
        self,
        root: str | None,
        *,
        label_space: str = "cityscapes19",
        labels: Literal["palette"] = "palette",
        max_distance: float | None = MAX_DISTANCE,
        **options: Any,
    ) -> None:
        """See the class."""
        if labels != "palette":
            raise ConfigError(f"data.labels: found {labels!r}, expected 'palette'")
        if label_space == "cityscapes_ids":
            raise ConfigError(
                "data.label_space=cityscapes_ids: colours do not tell all label ids apart; use data=gtfine"
            )
        space = named_label_space(label_space)
        super().__init__(root, space, **options)
        self._decode = PaletteDecoder(space, max_distance)
        self.reader = self._pairs_reader = PairsReader(self._decode)

    def find(self, root: Path, split: str, problems: Problems) -> Samples:
        """List the composites of a split in numeric order (2.jpg before 10.jpg)."""
        candidates = [root, root / NESTED, root / NESTED / NESTED]
        base = next((folder for folder in candidates if (folder / split).is_dir()), root)
        folder = base / split
        entries = folder.iterdir() if folder.is_dir() else ()
        files = sorted((p for p in entries if p.suffix.lower() in ENDINGS), key=lambda path: numeric_key(path.name))
        if not files:
            problems.add(
                f"no composites for split {split!r}",
                f"searched {folder}/*.jpg, *.jpeg, *.png; {describe_folder(base, split)}",
                fix=f"point data.root at the folder that holds {split}/, or choose another layout (data=gtfine, "
                "data=folders)",
            )
        return Samples.from_paths(root, files, files)

    def check_split(self, samples: Samples, problems: Problems) -> None:
        """Refuse composites whose label half is painted in other colours than the classes have."""
        checked = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), COLOR_CHECK)).astype(int))
        distances = {}
        for index in checked:
            path = samples.photo(int(index))
            distances[path.name] = self._decode.mean_distance(self._pairs_reader.halves(path)[1])
        mean = float(np.mean(list(distances.values()))) if distances else 0.0
        if mean > MAX_MEAN_DISTANCE:
            for name, distance in sorted(distances.items(), key=lambda item: -item[1]):
                problems.add(
                    f"label halves painted in other colours than the classes have: mean RGB distance to the nearest "
                    f"colour {mean:.0f}, expected at most {MAX_MEAN_DISTANCE:.0f}",
                    f"{name}: {distance:.0f}",
                    fix="the label belongs on the right, in Cityscapes colours; for your own colours use data=folders",
                )


def numeric_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that orders the numbers inside names by value.

    >>> sorted(["10.jpg", "9.jpg", "img_2.png"], key=numeric_key)
    ['9.jpg', '10.jpg', 'img_2.png']
    """
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)
