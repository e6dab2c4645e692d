"""The Cityscapes folders: ``leftImg8bit/SPLIT/CITY/*.png`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.images import read_label
from cityseg.data.samples import Reader, Samples, describe_folder, match_labels
from cityseg.errors import SHOWN, ConfigError, FileProblem, Problems
from cityseg.labels import CITYSCAPES_LABELS, ByteArray
from cityseg.labels import label_space as named_label_space

PHOTO = "_leftImg8bit.png"


@dataclass(frozen=True)
class TableReader(Reader):
    """Turns the values of label files into train ids by table look-up."""

    table: npt.NDArray[np.int16]  # (256,), raw value -> train id, or -1 for values without a meaning
    hint: str  # the way out shown with those

    def target(self, label: Path) -> ByteArray:
        """Train ids of a label file, see :class:`Reader`."""
        raw = read_label(label)
        train_ids = cv2.LUT(raw, self.table)
        if train_ids.min() < 0:
            values = np.unique(raw[train_ids < 0])
            shown = ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")
            raise FileProblem(label, "label values without a class", f"found {shown}", self.hint)
        return train_ids.astype(np.uint8)


def table_reader(ids: Mapping[int, int], hint: str) -> TableReader:
    """A reader for label files whose raw values have these train ids."""
    table = np.full(256, -1, np.int16)
    table[list(ids)] = list(ids.values())
    return TableReader(table, hint)


class GtFineDataModule(SegmentationDataModule):
    """Cityscapes as it is downloaded (Cordts et al., CVPR 2016), or data arranged like it.

    Label ids become train ids while loading. The test split has no public labels: it can be predicted, not scored.

    Args:
        root: folder with ``leftImg8bit`` and ``gtFine``.
        label_space: see :func:`cityseg.labels.label_space`.
        labels: which label files to read.
        options: see :class:`SegmentationDataModule`.
    """

    layout = "gtfine"
    splits = ("train", "val", "test")

    def __init__(
        self,
        root: str | None,
        *,
        label_space: str = "cityscapes19",
        labels: Literal["label_ids", "train_ids"] = "label_ids",
        **options: Any,
    ) -> None:
        space = named_label_space(label_space)
        super().__init__(root, space, **options)
        assert space.ids is not None
        if labels == "label_ids":
            self._ending = "_gtFine_labelIds.png"
            hint = "expected are label ids 0 to 33; for files of train ids set data.labels=train_ids"
            self.reader = table_reader(space.ids, hint)
        elif labels == "train_ids":
            self._ending = "_gtFine_labelTrainIds.png"
            hint = "expected are train ids 0 to 18 and 255; label ids instead of train ids? set data.labels=label_ids"
            # By way of the table's first label of each train id.
            first = {label.train_id: label.id for label in reversed(CITYSCAPES_LABELS) if label.id >= 0}
            self.reader = table_reader({raw: space.ids[label_id] for raw, label_id in first.items()}, hint)
        else:
            raise ConfigError(f"data.labels: found {labels!r}, expected one of label_ids, train_ids")

    def find(self, root: Path, split: str, problems: Problems) -> Samples:
        """List the photos and labels of a split, sorted by city and frame."""
        pattern = f"leftImg8bit/{split}/*/*{PHOTO}"
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
        photos, labels = match_labels(
            photos,
            labels,
            lambda photo: "gtFine" + photo.removeprefix("leftImg8bit").removesuffix(PHOTO) + self._ending,
            lambda label: "leftImg8bit" + label.removeprefix("gtFine").removesuffix(self._ending) + PHOTO,
            problems,
        )
        return Samples.from_paths(root, photos, labels)

    def cities(self, names: Sequence[str]) -> Sequence[str]:
        """The folder of each photo."""
        return [PurePosixPath(name).parent.name for name in names]


def _sorted_files(root: Path, pattern: str) -> list[str]:
    """Files by folder and name, relative to the root."""
    return sorted(glob.iglob(pattern, root_dir=root, include_hidden=True), key=lambda path: path.replace("/", "\0"))
