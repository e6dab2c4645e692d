"""The paired layout: one picture holds the photo (left half) and its colour-coded label (right half)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from cityseg.data.blends import BlendDecoder
from cityseg.data.clusters import cluster_space, cluster_warnings, find_centers, numbered_space, sample_colors
from cityseg.data.color_labels import MAX_DISTANCE, MAX_MEAN_DISTANCE, PaletteDecoder
from cityseg.data.datamodule import SegmentationDataModule
from cityseg.data.images import read_photo
from cityseg.data.samples import Pair, Reader, Samples, describe_folder, list_files
from cityseg.data.splits import GROUP_FILE
from cityseg.errors import ConfigError, DataError, FileProblem, Problems
from cityseg.labels import VOID, ByteArray
from cityseg.labels import label_space as named_label_space

log = logging.getLogger(__name__)

COLOR_CHECK = 16  # composites whose colours are looked at before training
ENDINGS = frozenset({".jpg", ".jpeg", ".png"})
NESTED = "cityscapes_data"  # the public archive holds cityscapes_data/cityscapes_data/{train,val}
CLUSTERS, KMEANS_SEED = 10, 42
_KEYS: dict[str, dict[str, Any]] = {  # keys that one choice of labels alone has, and their defaults
    "palette": {"max_distance": MAX_DISTANCE},
    "palette_blend": {"reject_ambiguous": True},
    "kmeans": {"clusters": CLUSTERS, "kmeans_seed": KMEANS_SEED, "centers": None},
}

CITIES: dict[str, dict[str, int]] = {
    "train": {
        "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85, "dusseldorf": 221, "erfurt": 109,
        "hamburg": 248, "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94, "strasbourg": 365,
        "stuttgart": 196, "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122,
    },
    "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
}  # fmt: skip
"""Photos with fine labels of each city of Cityscapes (Cordts et al., CVPR 2016), in the order of their file names."""


@dataclass(frozen=True)
class PairsReader(Reader):
    """Splits a composite and decodes the colours of its right half."""

    decode: PaletteDecoder | None  # None while the classes are still to be found: then there is no target

    def __call__(self, photo: Path, label: Path | None) -> Pair:
        """Decode one sample, see :class:`Reader`."""
        left, colors = self.halves(photo)
        return Pair(left, None if self.decode is None else self.decode(colors))

    def target(self, label: Path) -> ByteArray:
        """Train ids of the right half, see :class:`Reader`."""
        if self.decode is None:
            raise ConfigError(
                "cv=stratified balances the pixels of classes, data.labels=kmeans finds its classes in each fold. "
                "Fix: cv=kfold or cv=grouped, or data.labels=palette_blend"
            )
        return self.decode(self.halves(label)[1])

    def halves(self, path: Path) -> tuple[ByteArray, ByteArray]:
        """Photo and label colours of a composite, both ``(H, W, 3)`` uint8 RGB."""
        composite = read_photo(path)
        height, width, _ = composite.shape
        _, width = self.photo_size(path, (height, width))
        return composite[:, :width], composite[:, width:]

    def photo_size(self, path: Path, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the left half."""
        height, width = size
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
        root: folder with ``train`` and ``val``, also inside the doubled folder of the public archive.
        label_space: whose colours the labels have; not used with ``kmeans``, whose classes are the clusters.
        labels: ``palette`` takes the nearest class colour, ``palette_blend`` the larger share of a blend of two colours
            nearby, ``kmeans`` the nearest of the colours that :meth:`fit_labels` finds.
        max_distance: of ``palette``, in RGB (0 to 441), beyond which a colour is void; None keeps every pixel.
        reject_ambiguous: of ``palette_blend``, make blends void that two classes explain about equally well.
        clusters: of ``kmeans``, number of classes.
        kmeans_seed: of ``kmeans``, its ``random_state``; also draws the pixels.
        centers: of ``kmeans``, RGB colours found before; None to find them in the training labels.
        options: see :class:`SegmentationDataModule`.
    """

    layout = "pairs"
    splits = ("train", "val", "test")
    reader: PairsReader

    def __init__(
        self,
        root: str | None,
        *,
        label_space: str = "cityscapes19",
        labels: Literal["palette", "palette_blend", "kmeans"] = "palette",
        max_distance: float | None = MAX_DISTANCE,
        reject_ambiguous: bool = True,
        clusters: int = CLUSTERS,
        kmeans_seed: int = KMEANS_SEED,
        centers: Sequence[tuple[int, int, int]] | None = None,
        **options: Any,
    ) -> None:
        if label_space == "cityscapes_ids":
            raise ConfigError(
                "data.label_space=cityscapes_ids: colours do not tell all label ids apart; use data=gtfine"
            )
        given = {"max_distance": max_distance, "reject_ambiguous": reject_ambiguous}
        _check_keys(labels, given | {"clusters": clusters, "kmeans_seed": kmeans_seed, "centers": centers})
        self._labels, self._clusters, self._kmeans_seed = labels, clusters, kmeans_seed
        decode: PaletteDecoder | None = None
        if labels != "kmeans":
            space = named_label_space(label_space)
            blend = labels == "palette_blend"
            decode = BlendDecoder(space, reject_ambiguous) if blend else PaletteDecoder(space, max_distance)
        elif centers is None:
            space = numbered_space(clusters)
        else:
            space = cluster_space(centers)
            decode = PaletteDecoder(space, None)
        super().__init__(root, space, **options)
        self.reader = PairsReader(decode)

    def fit_labels(self) -> dict[str, Any]:
        """Find the clusters in the labels of the training split; from now on they are the classes.

        Warns, by name, of classes that share out several clusters and of classes that none is left for.

        Returns:
            The `centers` that make the same classes; nothing where the classes are known.
        """
        if self.reader.decode is not None:
            return {}
        samples, halves = self.samples("train"), self.reader.halves
        colors = sample_colors(lambda index: halves(samples.photo(index))[1], len(samples), self._kmeans_seed)
        self.label_space = cluster_space(find_centers(colors, self._clusters, self._kmeans_seed))
        log.info(
            "data.labels=kmeans: %d clusters of %d pixels from %d training labels: %s",
            self._clusters, len(colors), len(samples), ", ".join(self.label_space.class_names),
        )  # fmt: skip
        for warning in cluster_warnings(self.label_space, colors):
            log.warning("data.labels=kmeans: %s", warning)
        self.reader = PairsReader(PaletteDecoder(self.label_space, None))
        return {"centers": [list(color) for color in self.label_space.colors]}

    def cities(self, names: Sequence[str]) -> Sequence[str]:
        """By number: the public image pairs, ``1.jpg, 2.jpg, ...``, follow the sorted Cityscapes file names."""
        counts = {sum(cities.values()): cities for cities in CITIES.values()}
        count, stems = len(names), [PurePosixPath(name).stem for name in names]
        if count not in counts:
            known = " or ".join(f"{number} ({split})" for number, split in zip(counts, CITIES, strict=True))
            found = f"found {count} composites, expected exactly {known}"
        elif odd := [name for name, stem in zip(names, stems, strict=True) if not stem.isdecimal()]:
            found = f"found {odd[0]}, expected the numbers 1 to {count}"
        elif gaps := set(range(1, count + 1)) - set(map(int, stems)):
            found = f"found no number {min(gaps)}, expected the numbers 1 to {count}"
        else:
            ordered = [city for city, photos in counts[count].items() for _ in range(photos)]
            return [ordered[int(stem) - 1] for stem in stems]
        raise DataError(
            "the cities of composites are known only where they are numbered as the public image pairs: "
            f"{found}. Fix: {GROUP_FILE}; or cv=kfold, which ignores cities"
        )

    def find(self, root: Path, split: str, problems: Problems) -> Samples:
        """List the composites of a split in numeric order (2.jpg before 10.jpg)."""
        candidates = [root, root / NESTED, root / NESTED / NESTED]
        base = next((folder for folder in candidates if (folder / split).is_dir()), root)
        files = list_files(root, base / split, ENDINGS)
        if not files:
            problems.add(
                f"no composites for split {split!r}",
                f"searched {base / split}/*.jpg, *.jpeg, *.png; {describe_folder(base, split)}",
                fix=f"point data.root at the folder that holds {split}/, or choose another layout (data=gtfine, "
                "data=folders)",
            )
        return Samples.from_paths(root, files, files)

    def check_split(self, samples: Samples, problems: Problems) -> None:
        """Refuse composites whose label half is painted in other colours than the classes have; clusters have any."""
        if self._labels == "kmeans" or self.reader.decode is None:
            return
        checked = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), COLOR_CHECK)).astype(int))
        paths = [samples.photo(int(index)) for index in checked]
        distances = {path.name: self.reader.decode.mean_distance(self.reader.halves(path)[1]) for path in paths}
        mean = sum(distances.values()) / max(len(distances), 1)
        if mean > MAX_MEAN_DISTANCE:
            for name, distance in sorted(distances.items(), key=lambda item: -item[1]):
                problems.add(
                    f"label halves painted in other colours than the classes have: mean RGB distance to the nearest "
                    f"colour {mean:.0f}, expected at most {MAX_MEAN_DISTANCE:.0f}",
                    f"{name}: {distance:.0f}",
                    fix="the label belongs on the right, in Cityscapes colours; for your own colours use data=folders, "
                    "or data.labels=kmeans, which finds the colours",
                )


def _check_keys(labels: str, given: dict[str, Any]) -> None:
    """Check the keys that only some choices of labels have."""
    if labels not in _KEYS:
        raise ConfigError(f"data.labels: found {labels!r}, expected {', '.join(map(repr, _KEYS))}")
    problems = Problems("the data config")
    for choice, defaults in _KEYS.items():
        for key, default in defaults.items():
            if labels != choice and given[key] != default:
                problems.add(
                    f"data.{key}: found {given[key]!r}, but data.labels={labels} does not use it",
                    fix=f"data.labels={choice}, or leave out data.{key}",
                )
    for key, least, most in (("clusters", 2, VOID), ("kmeans_seed", 0, 2**32 - 1)):
        if not least <= given[key] <= most:
            problems.add(f"data.{key}: found {given[key]}, expected a whole number from {least} to {most}")
    centers, clusters = given["centers"], given["clusters"]
    if centers is not None and len(centers) != clusters:
        problems.add(
            f"data.centers: found {len(centers)} colours, expected {clusters} (data.clusters)",
            fix="data.centers=null finds them",
        )
    problems.raise_if_any(ConfigError)
