"""Classes from the colours of the training labels: K-means finds them, the nearest Cityscapes colour names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cityseg.data.color_labels import MAX_DISTANCE, PaletteDecoder
from cityseg.data.samples import in_threads
from cityseg.errors import DataError
from cityseg.labels import ByteArray, Color, LabelSpace, label_space

# Most pixels that K-means is given, as many of every training label; it stops after 12 to 31 batches of 1,024. On 367
# composites, pixels lie 7.2 from the nearest centre found in 2,048 pixels of each, 7.1 with all 65,536.
SAMPLED_PIXELS = 1_000_000
# Shares of the label pixels from which a class is said to occur, and below which that may be blends along edges: there,
# classes that do not occur have 0.05 % and less within MAX_DISTANCE of their colours, the rarest that does 0.17 %.
OCCURS, BLENDS = 0.0001, 0.001


def sample_colors(read: Callable[[int], ByteArray], images: int, seed: int) -> ByteArray:
    """Draw label colours ``(N, 3)`` uint8 RGB, equally many of each image and at most :data:`SAMPLED_PIXELS`.

    `read`, which threads call, makes of an image's index its label colours ``(H, W, 3)`` uint8 RGB.
    """
    share = max(SAMPLED_PIXELS // images, 1)

    def draw(index: int) -> ByteArray:
        colors = read(index).reshape(-1, 3)
        if len(colors) <= share:
            return colors
        rng = np.random.default_rng((seed, index))
        return colors[rng.choice(len(colors), share, replace=False, shuffle=False)]

    return np.concatenate(list(in_threads(draw, range(images))))


def find_centers(colors: ByteArray, clusters: int, seed: int) -> list[Color]:
    """Cluster colours ``(N, 3)`` uint8 RGB with ``MiniBatchKMeans(clusters, random_state=seed)``; its centres, rounded.

    Raises:
        DataError: if there are fewer colours than clusters.
    """
    different = len(np.unique(colors, axis=0))
    if different < clusters:
        raise DataError(
            f"data.clusters={clusters}: the training labels have only {different} different colours. Fix: "
            f"data.clusters={different} or fewer, or data.labels=palette"
        )
    # In several threads sums are rounded differently, and the clusters would depend on the number of cores.
    with threadpool_limits(limits=1):
        fitted = MiniBatchKMeans(n_clusters=clusters, random_state=seed).fit(colors)
    return distinct_colors(fitted.cluster_centers_)


def distinct_colors(centers: npt.NDArray[np.floating[Any]]) -> list[Color]:
    """Round centres ``(K, 3)`` to bytes; of those that round to one colour, the later ones take the nearest free one.

    It happens: 20 clusters of street labels had two centres 0.1 apart, both in the one colour of the road.
    """
    steps = np.arange(-6, 7)  # at a corner of the colour cube these reach 343 colours, more than there are clusters
    around = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    colors: dict[Color, None] = {}
    for center in centers:
        near = np.rint(center) + around
        near = near[((near >= 0) & (near <= 255)).all(axis=1)]
        by_distance = near[np.square(near - center).sum(axis=1).argsort(kind="stable")].astype(int).tolist()
        colors[next(color for r, g, b in by_distance if (color := (r, g, b)) not in colors)] = None
    return list(colors)


def cluster_space(centers: Sequence[Sequence[int]]) -> LabelSpace:
    """The label space of clusters: each has the name and label id of the Cityscapes class with the nearest colour.

    Black is the one void colour that counts. The others are so near to classes' (trailer to car) that the average of
    a class's blends would be named after them. A second cluster of a class is ``road 2``. Clusters are in the
    order of the classes, the nearest first, whatever that of their distinct RGB colours is.
    """
    classes = label_space("cityscapes20")
    squares = np.square(np.array(centers, np.int64)[:, None] - np.array(classes.colors, np.int64)).sum(-1)
    order = sorted(
        (int(row.argmin()), int(row.min()), (r, g, b)) for row, (r, g, b) in zip(squares, centers, strict=True)
    )
    seen: Counter[int] = Counter()
    names = []
    for nearest, _, _ in order:
        seen[nearest] += 1
        names.append(classes.class_names[nearest] + (f" {seen[nearest]}" if seen[nearest] > 1 else ""))
    return LabelSpace(
        name=f"kmeans{len(order)}",
        class_names=tuple(names),
        colors=tuple(color for _, _, color in order),
        label_ids=tuple(classes.label_ids[nearest] for nearest, _, _ in order),
    )


def numbered_space(clusters: int) -> LabelSpace:
    """The label space of clusters that are still to be found: numbers for names, greys for colours."""
    names = tuple(f"cluster {number}" for number in range(1, clusters + 1))
    return LabelSpace(f"kmeans{clusters}", names, tuple((grey, grey, grey) for grey in range(clusters)))


def cluster_warnings(space: LabelSpace, colors: ByteArray) -> list[str]:
    """Say which classes share out several clusters, and which of the label pixels ``(N, 3)`` uint8 RGB have none."""
    classes = label_space("cityscapes20")
    names, count = classes.class_names, classes.num_classes
    clusters = Counter(classes.label_ids.index(label_id) for label_id in space.label_ids)
    near = PaletteDecoder(classes, MAX_DISTANCE)(colors[None])
    shares = np.bincount(near.ravel(), minlength=count)[:count] / len(colors)
    warnings = []
    if doubled := [f"{number} are nearest to {names[i]}" for i, number in sorted(clusters.items()) if number > 1]:
        warnings.append(f"of the clusters {', '.join(doubled)}: each is a class of its own")
    if lost := [i for i in np.argsort(-shares, kind="stable") if shares[i] >= OCCURS and i not in clusters]:
        listed = ", ".join(f"{names[i]} ({100 * shares[i]:.2f} %)" for i in lost)
        doubt = f"; below {100 * BLENDS} % it may be blends along edges" if shares[lost[-1]] < BLENDS else ""
        warnings.append(
            f"no cluster is nearest to {listed}: these shares of the label pixels count as other classes{doubt}"
        )
    return warnings
