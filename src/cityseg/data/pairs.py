"""The paired layout: one picture holds the photo (left half) and its colour-coded label (right half)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from cityseg.data.blends import BlendDecoder
from cityseg.data.cities import numbered_cities
from cityseg.data.clusters import cluster_space, cluster_warnings, find_centers, numbered_space, sample_colors
from cityseg.data.color_labels import MAX_DISTANCE, MAX_MEAN_DISTANCE, PaletteDecoder
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.images import Header, read_photo
from cityseg.data.samples import Pair, Samples, describe_folder, list_files
from cityseg.data.splits import Strategy, Stratified
from cityseg.errors import ConfigError, FileProblem, Problems
from cityseg.labels import VOID, ByteArray
from cityseg.labels import label_space as named_label_space

log = logging.getLogger(__name__)

COLOR_CHECK = 16  # composites whose colours are looked at before training
ENDINGS = frozenset({".jpg", ".jpeg", ".png"})
NESTED = "cityscapes_data"  # the public archive holds cityscapes_data/cityscapes_data/{train,val}

ColorLabels = Literal["palette", "palette_blend", "kmeans"]
CLUSTERS, KMEANS_SEED = 10, 42
_KEYS: dict[str, dict[str, Any]] = {  # keys that one choice of labels alone has, and their defaults
    "palette": {"max_distance": MAX_DISTANCE},
    "palette_blend": {"reject_ambiguous": True},
    "kmeans": {"clusters": CLUSTERS, "kmeans_seed": KMEANS_SEED, "centers": None},
}


class ColorDecoder(Protocol):
    """How label colours become train ids. Must be picklable for loader workers."""

    def __call__(self, colors: ByteArray) -> ByteArray:
        """Label colours ``(H, W, 3)`` uint8 -> train ids ``(H, W)`` uint8."""
        ...

    def mean_distance(self, colors: ByteArray) -> float:
        """Mean RGB distance of the pixels ``(H, W, 3)`` uint8 to the nearest class colour."""
        ...


@dataclass(frozen=True)
class PairsReader:
    """Splits a composite and decodes the colours of its right half.

    Attributes:
        decode: label colours ``(H, W, 3)`` uint8 -> train ids ``(H, W)`` uint8; None while the classes are still to
            be found: then there is no target.
    """

    decode: ColorDecoder | None

    def __call__(self, photo: Path, label: Path | None) -> Pair:
        """Decode one sample, see :class:`cityseg.data.samples.Reader`."""
        photo_half, colors = self.halves(photo)
        return Pair(photo_half, None if self.decode is None else self.decode(colors))

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
        label_space: ``cityscapes19``, ``cityscapes20`` or ``cityscapes_categories``; not used with ``kmeans``, whose
            classes are the clusters.
        labels: how colours become train ids. ``palette`` takes the nearest class colour. ``palette_blend`` explains
            a pixel as a blend of two colours nearby and takes the larger share. ``kmeans`` takes the nearest of the
            colours that :meth:`fit_labels` finds.
        max_distance: with ``palette``, RGB distance (0 to 441) beyond which a colour is void; None keeps every pixel.
        reject_ambiguous: with ``palette_blend``, make blends void that two classes explain about equally well.
        clusters: with ``kmeans``, number of classes.
        kmeans_seed: with ``kmeans``, its ``random_state``; also draws the pixels.
        centers: with ``kmeans``, RGB colours found before; None to find them in the training labels.
        options: see :class:`SegmentationDataModule`.
    """

    layout = "pairs"
    splits = ("train", "val", "test")

    def __init__(
        self,
        root: str | None,
        *,
        label_space: str = "cityscapes19",
        labels: ColorLabels = "palette",
        max_distance: float | None = MAX_DISTANCE,
        reject_ambiguous: bool = True,
        clusters: int = CLUSTERS,
        kmeans_seed: int = KMEANS_SEED,
        centers: Sequence[Sequence[int]] | None = None,
        **options: Any,
    ) -> None:
        if label_space == "cityscapes_ids":
            raise ConfigError(
                "data.label_space=cityscapes_ids: colours do not tell all label ids apart; use data=gtfine"
            )
        _check_keys(
            labels,
            max_distance=max_distance,
            reject_ambiguous=reject_ambiguous,
            clusters=clusters,
            kmeans_seed=kmeans_seed,
            centers=centers,
        )
        self._clusters, self._kmeans_seed = clusters, kmeans_seed
        self._decode: ColorDecoder | None
        if labels == "kmeans":
            space = numbered_space(clusters) if centers is None else cluster_space(centers)
            self._decode = None if centers is None else PaletteDecoder(space, None)
        else:
            space = named_label_space(label_space)
            blend = labels == "palette_blend"
            self._decode = BlendDecoder(space, reject_ambiguous) if blend else PaletteDecoder(space, max_distance)
        super().__init__(root, space, **options)
        self._any_colors = labels == "kmeans"
        self.reader = self._pairs_reader = PairsReader(self._decode)

    def fit_labels(self) -> dict[str, Any]:
        """Find the clusters in the labels of the training split; from now on they are the classes.

        Warns, by name, of classes that share out several clusters and of classes that none is left for.

        Returns:
            Their RGB colours in the order of the classes, as the `centers` that make the same classes; nothing where
            the classes are known.

        Raises:
            DataError: if a file is unsound, or there are fewer colours than clusters.
        """
        if self._decode is not None:
            return {}
        samples = self.samples("train")
        colors = sample_colors(
            lambda index: self._pairs_reader.halves(samples.photo(index))[1], len(samples), self._kmeans_seed
        )
        self.label_space = cluster_space(find_centers(colors, self._clusters, self._kmeans_seed))
        log.info(
            "data.labels=kmeans: %d clusters of %d pixels from %d training labels: %s",
            self._clusters, len(colors), len(samples), ", ".join(self.label_space.class_names),
        )  # fmt: skip
        for warning in cluster_warnings(self.label_space, colors):
            log.warning("data.labels=kmeans: %s", warning)
        self._decode = PaletteDecoder(self.label_space, None)
        self.reader = self._pairs_reader = PairsReader(self._decode)
        return {"centers": [list(color) for color in self.label_space.colors]}

    def cities(self, names: Sequence[str]) -> Sequence[str]:
        """By number, where the files are as many as the public set has."""
        return numbered_cities(names)

    def divide(self, strategy: Strategy, fold: int) -> None:
        """See the base; classes that are found in a fold's training part cannot balance its folds.

        Raises:
            ConfigError: with ``cv=stratified`` before clusters are found.
        """
        if self._decode is None and isinstance(strategy, Stratified):
            raise ConfigError(
                "cv=stratified balances the pixels of classes, data.labels=kmeans finds its classes in each fold. "
                "Fix: cv=kfold or cv=grouped, or data.labels=palette_blend"
            )
        super().divide(strategy, fold)

    def find(self, root: Path, split: str, problems: Problems) -> Samples:
        """List the composites of a split in numeric order (2.jpg before 10.jpg)."""
        candidates = [root, root / NESTED, root / NESTED / NESTED]
        base = next((folder for folder in candidates if (folder / split).is_dir()), root)
        folder = base / split
        files = list_files(root, folder, ENDINGS)
        if not files:
            problems.add(
                f"no composites for split {split!r}",
                f"searched {folder}/*.jpg, *.jpeg, *.png; {describe_folder(base, split)}",
                fix=f"point data.root at the folder that holds {split}/, or choose another layout (data=gtfine, "
                "data=folders)",
            )
        return Samples.from_paths(root, files, files)

    def check_split(self, samples: Samples, problems: Problems) -> None:
        """Refuse composites whose label half is painted in other colours than the classes have; clusters have any."""
        if self._any_colors or self._decode is None:
            return
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
                    fix="the label belongs on the right, in Cityscapes colours; for your own colours use data=folders, "
                    "or data.labels=kmeans, which finds the colours",
                )


def _check_keys(labels: str, **values: Any) -> None:
    """Check the keys that only some choices of labels have.

    Raises:
        ConfigError: with every problem.
    """
    problems = Problems("the data config")
    if labels not in _KEYS:
        problems.add(f"data.labels: found {labels!r}, expected {', '.join(map(repr, _KEYS))}")
    for choice, defaults in _KEYS.items():
        for key, default in defaults.items():
            if labels in _KEYS and labels != choice and values[key] != default:
                problems.add(
                    f"data.{key}: found {values[key]!r}, but data.labels={labels} does not use it",
                    fix=f"data.labels={choice}, or leave out data.{key}",
                )
    clusters, seed = values["clusters"], values["kmeans_seed"]
    if not isinstance(clusters, int) or not 2 <= clusters <= VOID:
        problems.add(f"data.clusters: found {clusters!r}, expected a whole number from 2 to {VOID}")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        problems.add(f"data.kmeans_seed: found {seed!r}, expected a whole number from 0 to {2**32 - 1}")
    if values["centers"] is not None and not _are_colors(values["centers"], clusters):
        problems.add(
            f"data.centers: found {values['centers']}, expected {clusters} colours (data.clusters), each [R, G, B]",
            fix="data.centers=null finds them",
        )
    problems.raise_if_any(ConfigError)


def _are_colors(values: Sequence[Sequence[int]], count: int) -> bool:
    colors = np.array(values)
    return colors.shape == (count, 3) and colors.dtype.kind == "i" and colors.min() >= 0 and colors.max() <= 255
