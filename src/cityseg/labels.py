"""What a class is: its name, colour, label id and train id, and the look-up tables between them.

Two numberings are never both called "label": a *label id* is what Cityscapes writes in ``*_labelIds.png``
(0 to 33), a *train id* is what a network is trained on (0 to ``num_classes - 1``, and 255 for void).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from cityseg.errors import UNPRINTABLE, ConfigError, did_you_mean

VOID = 255
"""The value of pixels that belong to no class, which losses and scores leave out."""

Color = tuple[int, int, int]
ByteArray = npt.NDArray[np.uint8]


class Label(NamedTuple):
    """One row of the Cityscapes label table."""

    name: str
    id: int
    train_id: int
    category: str
    category_id: int
    has_instances: bool
    ignored: bool
    color: Color


# Source: the class definitions of the Cityscapes dataset (Cordts et al., CVPR 2016), 35 rows.
CITYSCAPES_LABELS: tuple[Label, ...] = (
    Label("unlabeled", 0, 255, "void", 0, False, True, (0, 0, 0)),
    Label("ego vehicle", 1, 255, "void", 0, False, True, (0, 0, 0)),
    Label("rectification border", 2, 255, "void", 0, False, True, (0, 0, 0)),
    Label("out of roi", 3, 255, "void", 0, False, True, (0, 0, 0)),
    Label("static", 4, 255, "void", 0, False, True, (0, 0, 0)),
    Label("dynamic", 5, 255, "void", 0, False, True, (111, 74, 0)),
    Label("ground", 6, 255, "void", 0, False, True, (81, 0, 81)),
    Label("road", 7, 0, "flat", 1, False, False, (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", 1, False, False, (244, 35, 232)),
    Label("parking", 9, 255, "flat", 1, False, True, (250, 170, 160)),
    Label("rail track", 10, 255, "flat", 1, False, True, (230, 150, 140)),
    Label("building", 11, 2, "construction", 2, False, False, (70, 70, 70)),
    Label("wall", 12, 3, "construction", 2, False, False, (102, 102, 156)),
    Label("fence", 13, 4, "construction", 2, False, False, (190, 153, 153)),
    Label("guard rail", 14, 255, "construction", 2, False, True, (180, 165, 180)),
    Label("bridge", 15, 255, "construction", 2, False, True, (150, 100, 100)),
    Label("tunnel", 16, 255, "construction", 2, False, True, (150, 120, 90)),
    Label("pole", 17, 5, "object", 3, False, False, (153, 153, 153)),
    Label("polegroup", 18, 255, "object", 3, False, True, (153, 153, 153)),
    Label("traffic light", 19, 6, "object", 3, False, False, (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", 3, False, False, (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", 4, False, False, (107, 142, 35)),
    Label("terrain", 22, 9, "nature", 4, False, False, (152, 251, 152)),
    Label("sky", 23, 10, "sky", 5, False, False, (70, 130, 180)),
    Label("person", 24, 11, "human", 6, True, False, (220, 20, 60)),
    Label("rider", 25, 12, "human", 6, True, False, (255, 0, 0)),
    Label("car", 26, 13, "vehicle", 7, True, False, (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", 7, True, False, (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", 7, True, False, (0, 60, 100)),
    Label("caravan", 29, 255, "vehicle", 7, True, True, (0, 0, 90)),
    Label("trailer", 30, 255, "vehicle", 7, True, True, (0, 0, 110)),
    Label("train", 31, 16, "vehicle", 7, True, False, (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", 7, True, False, (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", 7, True, False, (119, 11, 32)),
    Label("license plate", -1, -1, "vehicle", 7, False, True, (0, 0, 142)),
)
_ROWS = [label for label in CITYSCAPES_LABELS if label.id >= 0]
_SCORED = [label for label in _ROWS if not label.ignored]


@dataclass(frozen=True)
class LabelSpace:
    """The classes a network is trained and scored on.

    Attributes:
        name: how results name this space.
        class_names: one name for each train id, in order.
        colors: one RGB colour for each train id.
        aliases: further RGB colours, each with the train id it stands for (255 for the void colours).
        ids: raw value in a label-id file -> train id; values that are not listed are an error when read.
        label_ids: train id -> label id to write for the benchmark server; empty where there is none.
        categories: the coarse category of each class for category IoU; empty where there is none.
        ignore_index: the void train id.
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[Color, ...]
    aliases: tuple[tuple[Color, int], ...] = ()
    ids: Mapping[int, int] | None = None
    label_ids: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()
    ignore_index: int = VOID

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        names, colors = self.class_names, self.colors
        lengths = [len(part) for part in (colors, self.label_ids or names, self.categories or names)]
        strange = [name for name in names if UNPRINTABLE.search(name)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        doubled = sorted({color for color in colors if colors.count(color) > 1})
        beyond = [value for value in (*chain(*colors), *self.label_ids) if not 0 <= value <= VOID]
        for wrong, found in (
            (not 1 <= len(names) <= VOID, f"found {len(names)} classes, expected 1 to {VOID}"),
            (strange, f"class names with control characters: {', '.join(map(ascii, strange))}"),
            (beyond, f"found {beyond[:1]} as a colour or label id, expected 0 to {VOID}"),
            (repeated, f"class names occur twice: {', '.join(repeated)}"),
            (doubled, f"colours stand for two classes: {doubled}"),
            (lengths != [len(names)] * 3, f"found {lengths} colours, label ids, categories for {len(names)} classes"),
        ):
            if wrong:
                raise ConfigError(f"label space {self.name!r}: {found}")

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.class_names)

    @cached_property
    def palette(self) -> ByteArray:
        """Colour of every possible train id, ``(256, 3)`` uint8 RGB; void and unused ids are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.colors
        return table

    @cached_property
    def encode_table(self) -> npt.NDArray[np.int16]:
        """Raw label id -> train id, ``(256,)`` int16; -1 where the raw value has no meaning."""
        ids = {i: i for i in (*range(self.num_classes), VOID)} if self.ids is None else self.ids
        table = np.full(256, -1, np.int16)
        table[list(ids)] = list(ids.values())
        return table

    @cached_property
    def decode_table(self) -> ByteArray:
        """Train id -> label id as the benchmark server wants it, ``(256,)`` uint8; void becomes 0."""
        table = np.zeros(256, np.uint8)
        table[: self.num_classes] = self.label_ids or range(self.num_classes)
        return table

    def colorize(self, train_ids: ByteArray) -> ByteArray:
        """Paint train ids ``(..., )`` uint8 with the class colours, ``(..., 3)`` uint8 RGB."""
        return self.palette[train_ids]

    def to_label_ids(self, train_ids: ByteArray) -> ByteArray:
        """Turn train ids into label ids, both uint8 of the same shape."""
        return self.decode_table[train_ids]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain containers, for a checkpoint or JSON."""
        return asdict(self) | {"ids": None if self.ids is None else list(self.ids.items())}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a space from what :meth:`to_dict` gave."""
        return cls(
            name=str(data["name"]),
            class_names=tuple(map(str, data["class_names"])),
            colors=tuple(map(_as_color, data["colors"])),
            aliases=tuple((_as_color(color), int(train_id)) for color, train_id in data["aliases"]),
            ids=None if data["ids"] is None else {int(k): int(v) for k, v in data["ids"]},
            label_ids=tuple(map(int, data["label_ids"])),
            categories=tuple(map(str, data["categories"])),
            ignore_index=int(data["ignore_index"]),
        )


def _as_color(values: Sequence[int]) -> Color:
    r, g, b = values
    return int(r), int(g), int(b)


def _cityscapes(name: str, classes: Sequence[Label], ids: Mapping[int, int], **changed: Any) -> LabelSpace:
    """A space of Cityscapes' own colours, of which those of no class stand for the train id of their label."""
    parts: dict[str, Any] = {
        "class_names": tuple(label.name for label in classes),
        "colors": tuple(label.color for label in classes),
        "label_ids": tuple(label.id for label in classes),
        "categories": tuple(label.category for label in classes),
    } | changed
    others = {label.color: ids[label.id] for label in _ROWS if label.color not in parts["colors"]}
    return LabelSpace(name, aliases=tuple(others.items()), ids=ids, **parts)


def _cityscapes20(name: str) -> LabelSpace:
    ids = {label.id: min(label.train_id, len(_SCORED)) for label in _ROWS}
    return _cityscapes(name, [*_SCORED, _ROWS[0]._replace(name="void")], ids)


def _categories(name: str) -> LabelSpace:
    first = {label.category: label for label in reversed(_SCORED)}
    names = tuple(dict.fromkeys(label.category for label in _SCORED))
    # As in the official evaluation, labels that it ignores are void for the categories too.
    ids = {label.id: VOID if label.ignored else names.index(label.category) for label in _ROWS}
    return _cityscapes(name, [first[category] for category in names], ids, class_names=names, categories=())


def _all_ids(name: str) -> LabelSpace:
    colors: dict[Color, None] = {}
    for r, g, b in (label.color for label in _ROWS):  # several labels share one: the later get the nearest free shade
        while (r, g, b) in colors:
            b = b + 8 if b < 248 else b - 101
        colors[r, g, b] = None
    return _cityscapes(name, _ROWS, {label.id: label.id for label in _ROWS}, colors=tuple(colors))


_NAMED: dict[str, Callable[[str], LabelSpace]] = {
    "cityscapes19": lambda name: _cityscapes(name, _SCORED, {label.id: label.train_id for label in _ROWS}),
    "cityscapes20": _cityscapes20,
    "cityscapes_categories": _categories,
    "cityscapes_ids": _all_ids,
}


def label_space(name: str) -> LabelSpace:
    """A built-in label space by name.

    ``cityscapes19`` (void is 255), ``cityscapes20`` (void is class 19), ``cityscapes_categories`` (7) or
    ``cityscapes_ids`` (all 34 label ids).

    Raises:
        ConfigError: if there is none.
    """
    if name not in _NAMED:
        raise ConfigError(f"no label space {name!r}: expected one of {', '.join(_NAMED)}.{did_you_mean(name, _NAMED)}")
    return _NAMED[name](name)


def custom_label_space(classes: Mapping[str, Sequence[int]], name: str = "custom") -> LabelSpace:
    """A label space of the user's own, with train ids in the order given.

    Args:
        classes: name -> ``[R, G, B]``, each 0 to 255; ``void`` is not a class: its colour means void.
        name: how results name this space.

    Raises:
        ConfigError: if a colour is not three numbers from 0 to 255, or two classes share one.
    """
    colors = {}
    for class_name, color in classes.items():
        if len(color) != 3 or any(not 0 <= int(value) <= 255 for value in color):
            raise ConfigError(f"class {class_name!r}: found colour {list(color)}, expected [R, G, B], each 0 to 255")
        colors[str(class_name)] = _as_color(color)
    aliases = ((colors.pop("void"), VOID),) if "void" in colors else ()
    return LabelSpace(name, tuple(colors), tuple(colors.values()), aliases)
