"""Instance-weighted IoU of the Cityscapes benchmark: a far pedestrian counts as much as a near one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from PIL import Image

from cityseg.errors import FileProblem
from cityseg.labels import CITYSCAPES_LABELS, ByteArray, LabelSpace
from cityseg.scores import mean

IntArray = npt.NDArray[np.int64]

MEAN_PIXELS: Mapping[str, float] = {
    "bicycle": 4672.3249222261,
    "bus": 35732.1511111111,
    "car": 12794.0202738185,
    "motorcycle": 6298.7200839748,
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "train": 67583.7075812274,
    "truck": 27855.1264367816,
}
"""Mean size of an instance, from ``cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling``."""

_LABELS = {label.id: label for label in CITYSCAPES_LABELS if label.id >= 0}
_SIZES = np.array([MEAN_PIXELS.get(_LABELS[i].name, 0.0) if i in _LABELS else 0.0 for i in range(256)])
_CATEGORY = np.array([_LABELS[i].category_id if i in _LABELS else 0 for i in range(256)])


class InstanceScores(TypedDict):
    """What :meth:`Instances.scores` gives; fractions, ``None`` where a class does not occur."""

    iiou: dict[str, float | None]
    miiou: float | None
    category_iiou: dict[str, float | None]
    category_miiou: float | None


class Instances:
    """Weighted hits and misses of the instances of a split.

    iIoU = iTP / (iTP + FP + iFN), where each true pixel weighs as much as the mean size of its class's instances over
    the size of its own instance, and FP are plain pixels (Cordts et al., CVPR 2016, section 4.1). As in the official
    script pixels of groups are neither hits nor misses, and a category is scored if all of its classes have instances.

    Args:
        space: a space of Cityscapes classes, see :attr:`classes`.
    """

    def __init__(self, space: LabelSpace) -> None:
        self._space = space
        self._hits, self._category_hits, self._weights = (np.zeros(256) for _ in range(3))
        self.classes = {
            name: label_id
            for name, label_id in zip(space.class_names, space.label_ids, strict=False)
            if _LABELS[label_id].name == name and name in MEAN_PIXELS
        }
        """Name -> label id of the classes that are scored; empty where the space is not one of Cityscapes classes."""

    def update(self, prediction: ByteArray, instance_ids: npt.NDArray[np.int32]) -> None:
        """Count one image: predicted train ids ``(H, W)`` uint8, and what its instanceIds file holds.

        That is label id times 1000 plus number; label ids alone for groups and for classes without instances.
        """
        chosen = instance_ids > 1000
        ids, predicted = instance_ids[chosen], self._space.to_label_ids(prediction[chosen])
        labels = ids // 1000
        hits = predicted == labels, _CATEGORY[predicted] == _CATEGORY[labels]
        pixels, *hit = (np.bincount(x, minlength=256_000).reshape(256, 1000) for x in (ids, ids[hits[0]], ids[hits[1]]))
        weight = _SIZES[:, None] / np.maximum(pixels, 1)
        for sums, count in zip((self._weights, self._hits, self._category_hits), (pixels, *hit), strict=True):
            sums += (weight * count).sum(axis=1)

    def scores(self, confusion: IntArray) -> InstanceScores:
        """The scores of all images so far, with their pixel counts ``(C, C)`` int64: rows truth, columns prediction."""
        ids = np.array(self._space.label_ids)
        scored = np.array([not _LABELS[i].ignored for i in ids])
        classes = {
            name: _iiou(self._hits[i], self._weights[i], confusion[scored & (ids != i)][:, ids == i])
            for name, i in self.classes.items()
        }
        categories = {}
        for name in dict.fromkeys(_LABELS[i].category for i in self.classes.values()):
            members = np.array([i for i, label in _LABELS.items() if label.category == name])
            inside = np.isin(ids, members)
            hits, weights = self._category_hits[members].sum(), self._weights[members].sum()
            categories[name] = _iiou(hits, weights, confusion[scored & ~inside][:, inside])
        miiou, category_miiou = (mean(np.array([*x.values()], np.float64)) for x in (classes, categories))
        return {"iiou": classes, "miiou": miiou, "category_iiou": categories, "category_miiou": category_miiou}


def instance_file(label: Path) -> Path | None:
    """The instanceIds file that belongs beside a label file of the Cityscapes folders; None for other files.

    >>> instance_file(Path("ulm_000000_000019_gtFine_labelIds.png")).name
    'ulm_000000_000019_gtFine_instanceIds.png'
    """
    name, found = re.subn(r"_label(Train)?Ids\.png$", "_instanceIds.png", label.name)
    return label.with_name(name) if found else None


def read_instance_ids(path: Path) -> npt.NDArray[np.int32]:
    """Decode an instanceIds file, ``(H, W)``.

    Raises:
        FileProblem: if it cannot be decoded, or does not hold 16-bit values.
    """
    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise FileProblem(path, "instance ids that cannot be read", str(error), "copy the file again") from error
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or ids.max(initial=0) >= 256_000:
        raise FileProblem(path, "no instance ids", f"mode {image.mode!r}, expected 16-bit grey", "copy the file again")
    return ids.astype(np.int32)


def _iiou(hits: float, weights: float, false: IntArray) -> float | None:
    whole = weights + float(false.sum())
    return float(hits / whole) if whole else None
