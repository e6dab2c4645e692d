"""The Cityscapes folders: ``leftImg8bit/SPLIT/CITY/*.png`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from cityseg.data.cities import folder_cities
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.images import Header, read_label, read_photo
from cityseg.data.samples import Pair, Samples, describe_folder, match_labels
from cityseg.errors import ConfigError, FileProblem, Problems
from cityseg.labels import CITYSCAPES_LABELS, VOID, ByteArray, LabelSpace
from cityseg.labels import label_space as named_label_space

LabelFiles = Literal["label_ids", "train_ids"]
SUFFIX: dict[LabelFiles, str] = {"label_ids": "labelIds", "train_ids": "labelTrainIds"}


def train_id_files_to_space(space: LabelSpace) -> dict[int, int]:
    """Raw value of a ``labelTrainIds`` file -> train id of a space, by way of the Cityscapes table."""
    assert space.ids is not None
    first: dict[int, int] = {}
    for label in CITYSCAPES_LABELS:
        if label.id >= 0:
            first.setdefault(label.train_id, space.ids[label.id])
    return first


@dataclass(frozen=True)
class GtFineReader:
    """Reads a photo and turns the values of its label file into train ids by table look-up.

    Attributes:
        table: raw value -> train id, ``(256,)`` uint8.
        known: which raw values have a meaning, ``(256,)`` bool.
        hint: the way out shown with values without a meaning.
    """

    table: ByteArray
    known: np.ndarray[Any, np.dtype[np.bool_]]
    hint: str

    def __call__(self, photo: Path, label: Path | None) -> Pair:
        """Decode one sample, see :class:`cityseg.data.samples.Reader`."""
        return Pair(read_photo(photo), None if label is None else self.read_target(label))

    def read_target(self, path: Path) -> ByteArray:
        """Train ids of a label file, ``(H, W)`` uint8.

        Raises:
            FileProblem: if the file holds values that stand for nothing.
        """
        raw = read_label(path)
        if not cv2.LUT(raw, self.known.view(np.uint8)).min():
            values = np.unique(raw[~self.known[raw]])
            shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
            raise FileProblem(path, "label values without a class", f"found {shown}", self.hint)
        return np.asarray(cv2.LUT(raw, self.table), np.uint8)

    def photo_size(self, path: Path, header: Header) -> tuple[int, int]:
        """Height and width of the photo."""
        return header.height, header.width


def table_reader(ids: dict[int, int], hint: str) -> GtFineReader:
    """A reader for label files whose raw values have these train ids."""
    table = np.full(256, VOID, np.uint8)
    known = np.zeros(256, bool)
    for raw, train_id in ids.items():
        table[raw], known[raw] = train_id, True
    return GtFineReader(table, known, hint)


class GtFineDataModule(SegmentationDataModule):
    """Cityscapes as it is downloaded (Cordts et al., CVPR 2016), or data arranged like it.

    Label ids become train ids while loading. The test split has no public labels: it can be predicted, not scored.

    Args:
        root: folder with ``leftImg8bit`` and ``gtFine``; None for the built-in scenes.
        label_space: ``cityscapes19``, ``cityscapes20``, ``cityscapes_categories`` or ``cityscapes_ids``.
        labels: which label files to read, ``label_ids`` or ``train_ids``.
        options: see :class:`SegmentationDataModule`.
    """

    layout = "gtfine"
    splits = ("train", "val", "test")

    def __init__(
        self,
        root: str | None,
        *,
        label_space: str = "cityscapes19",
        labels: LabelFiles = "label_ids",
        **options: Any,
    ) -> None:
        if labels not in SUFFIX:
            raise ConfigError(f"data.labels: found {labels!r}, expected one of {', '.join(SUFFIX)}")
        space = named_label_space(label_space)
        super().__init__(root, space, **options)
        assert space.ids is not None
        if labels == "label_ids":
            hint = "expected are label ids 0 to 33; for files of train ids set data.labels=train_ids"
            self.reader = table_reader(dict(space.ids), hint)
        else:
            hint = "expected are train ids 0 to 18 and 255; label ids instead of train ids? set data.labels=label_ids"
            self.reader = table_reader(train_id_files_to_space(space), hint)
        self._ending = f"_gtFine_{SUFFIX[labels]}.png"

    def find(self, root: Path, split: str, problems: Problems) -> Samples:
        """List the photos and labels of a split, sorted by city and frame."""
        pattern = f"leftImg8bit/{split}/*/*_leftImg8bit.png"
        photos = _sorted_files(root, pattern)
        if not photos:
            problems.add(
                f"no photos for split {split!r}",
                f"searched {root / pattern}; {describe_folder(root, 'leftImg8bit', split)}",
                fix="point data.root at the folder that holds leftImg8bit and gtFine, "
                "or choose another layout (data=pairs, data=folders)",
            )
            return Samples.from_paths(root, [], None)
        labels = _sorted_files(root, f"gtFine/{split}/*/*{self._ending}")
        if split == "test" and not labels:
            return Samples.from_paths(root, photos, None)
        photos, labels = match_labels(photos, labels, self._label_of, self._photo_of, problems)
        return Samples.from_paths(root, photos, labels)

    def cities(self, names: Sequence[str]) -> Sequence[str]:
        """The folder of each photo."""
        return folder_cities(names)

    def _label_of(self, photo: str) -> str:
        return "gtFine" + photo.removeprefix("leftImg8bit").removesuffix("_leftImg8bit.png") + self._ending

    def _photo_of(self, label: str) -> str:
        return "leftImg8bit" + label.removeprefix("gtFine").removesuffix(self._ending) + "_leftImg8bit.png"


def _sorted_files(root: Path, pattern: str) -> list[str]:
    """Files by folder and name, relative to the root."""
    return sorted(glob.iglob(pattern, root_dir=root, include_hidden=True), key=lambda path: path.replace("/", "\0"))
