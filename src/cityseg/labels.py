"""What a class is: its name, colour, label id and train id, and the look-up tables between them.

Two numberings are never both called "label": a *label id* is what Cityscapes writes in ``*_labelIds.png``
(0 to 33), a *train id* is what a network is trained on (0 to ``num_classes - 1``, and 255 for void).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
        """Check that the parts fit together.

        Raises:
            ConfigError: if names repeat or hold control characters, names, colours, ids and categories differ in
                number, or a colour or id is not from 0 to 255.
        """
        names, where = self.class_names, f"label space {self.name!r}"
        if not 1 <= len(names) <= VOID:
            raise ConfigError(f"{where}: found {len(names)} classes, expected 1 to {VOID}")
        if strange := [name for name in names if UNPRINTABLE.search(name)]:
            raise ConfigError(f"{where}: class names with control characters: {', '.join(map(ascii, strange))}")
        numbers = [*(value for color in self.colors for value in color), *self.label_ids]
        if wrong := [number for number in numbers if not 0 <= number <= VOID]:
            raise ConfigError(f"{where}: found {wrong[0]} as a colour or label id, expected 0 to {VOID}")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{where}: class names occur twice: {', '.join(repeated)}")
        if repeated_colors := sorted({c for c in self.colors if self.colors.count(c) > 1}):
            raise ConfigError(f"{where}: colours stand for two classes: {repeated_colors}")
        for what, values in (
            ("colours", self.colors),
            ("label ids", self.label_ids),
            ("categories", self.categories),
        ):
            if (values or what == "colours") and len(values) != len(names):
                raise ConfigError(f"{where}: found {len(values)} {what} for {len(names)} class names")

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.class_names)

    @cached_property
    def palette(self) -> ByteArray:
        """Colour of every possible train id, ``(256, 3)`` uint8 RGB; void and unused ids are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = np.array(self.colors, np.uint8)
        return table

    @cached_property
    def encode_table(self) -> npt.NDArray[np.int16]:
        """Raw label id -> train id, ``(256,)`` int16; -1 where the raw value has no meaning."""
        table = np.full(256, -1, np.int16)
        pairs = self.ids if self.ids is not None else {i: i for i in (*range(self.num_classes), VOID)}
        for raw, train_id in pairs.items():
            table[raw] = train_id
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
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            "colors": [list(color) for color in self.colors],
            "aliases": [[list(color), train_id] for color, train_id in self.aliases],
            "ids": None if self.ids is None else [[int(k), int(v)] for k, v in self.ids.items()],
            "label_ids": list(self.label_ids),
            "categories": list(self.categories),
            "ignore_index": self.ignore_index,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a space from what :meth:`to_dict` gave."""
        return cls(
            name=str(data["name"]),
            class_names=tuple(map(str, data["class_names"])),
            colors=tuple(_as_color(color) for color in data["colors"]),
            aliases=tuple((_as_color(color), int(train_id)) for color, train_id in data["aliases"]),
            ids=None if data["ids"] is None else {int(k): int(v) for k, v in data["ids"]},
            label_ids=tuple(map(int, data["label_ids"])),
            categories=tuple(map(str, data["categories"])),
            ignore_index=int(data["ignore_index"]),
        )


def _as_color(values: Sequence[int]) -> Color:
    r, g, b = values
    return int(r), int(g), int(b)


def _aliases(train_id: Mapping[int, int], taken: Sequence[Color]) -> tuple[tuple[Color, int], ...]:
    """Colours of the Cityscapes table that are not a class's own, each with the train id it stands for.

    Some void labels share a class's colour (polegroup is painted as pole): the class keeps it.
    """
    colors = {label.color: train_id[label.id] for label in CITYSCAPES_LABELS if label.id >= 0}
    return tuple((color, target) for color, target in colors.items() if color not in taken)


def _cityscapes19() -> LabelSpace:
    scored = [label for label in CITYSCAPES_LABELS if not label.ignored]
    ids = {label.id: label.train_id for label in CITYSCAPES_LABELS if label.id >= 0}
    colors = tuple(label.color for label in scored)
    return LabelSpace(
        name="cityscapes19",
        class_names=tuple(label.name for label in scored),
        colors=colors,
        aliases=_aliases(ids, colors),
        ids=ids,
        label_ids=tuple(label.id for label in scored),
        categories=tuple(label.category for label in scored),
    )


def _cityscapes20() -> LabelSpace:
    base = _cityscapes19()
    void = base.num_classes
    assert base.ids is not None
    ids = {raw: void if train_id == VOID else train_id for raw, train_id in base.ids.items()}
    colors = (*base.colors, (0, 0, 0))
    return LabelSpace(
        name="cityscapes20",
        class_names=(*base.class_names, "void"),
        colors=colors,
        aliases=_aliases(ids, colors),
        ids=ids,
        label_ids=(*base.label_ids, 0),
        categories=(*base.categories, "void"),
    )


def _cityscapes_categories() -> LabelSpace:
    rows = [label for label in CITYSCAPES_LABELS if label.id >= 0]
    names = list(dict.fromkeys(label.category for label in rows if label.category != "void"))
    first = {name: next(label for label in rows if label.category == name and not label.ignored) for name in names}
    # As in the official evaluation, labels that it ignores are void for the categories too.
    ids = {label.id: VOID if label.ignored else names.index(label.category) for label in rows}
    colors = tuple(first[name].color for name in names)
    return LabelSpace(
        name="cityscapes_categories",
        class_names=tuple(names),
        colors=colors,
        aliases=_aliases(ids, colors),
        ids=ids,
        label_ids=tuple(first[name].id for name in names),
    )


def _cityscapes_ids() -> LabelSpace:
    rows = [label for label in CITYSCAPES_LABELS if label.id >= 0]
    taken: set[Color] = set()
    colors = []
    for label in rows:  # several labels share a colour: the later ones get the nearest free shade
        r, g, b = label.color
        while (r, g, b) in taken:
            b = b + 8 if b < 248 else b - 101
        taken.add((r, g, b))
        colors.append((r, g, b))
    return LabelSpace(
        name="cityscapes_ids",
        class_names=tuple(label.name for label in rows),
        colors=tuple(colors),
        ids={label.id: label.id for label in rows},
        label_ids=tuple(label.id for label in rows),
        categories=tuple(label.category for label in rows),
    )


_NAMED = {
    "cityscapes19": _cityscapes19,
    "cityscapes20": _cityscapes20,
    "cityscapes_categories": _cityscapes_categories,
    "cityscapes_ids": _cityscapes_ids,
}


def label_space(name: str) -> LabelSpace:
    """A built-in label space by name.

    Args:
        name: ``cityscapes19`` (void is 255), ``cityscapes20`` (void is class 19), ``cityscapes_categories`` (7) or
            ``cityscapes_ids`` (all 34 label ids).

    Raises:
        ConfigError: if there is no space of that name.
    """
    if name not in _NAMED:
        raise ConfigError(f"no label space {name!r}: expected one of {', '.join(_NAMED)}.{did_you_mean(name, _NAMED)}")
    return _NAMED[name]()


def custom_label_space(classes: Mapping[str, Sequence[int]], name: str = "custom") -> LabelSpace:
    """A label space of the user's own: class name -> RGB colour, train ids in the order given.

    A class called ``void`` is not a class: its colour means void.

    Args:
        classes: name -> ``[R, G, B]``, each 0 to 255.
        name: how results name this space.

    Raises:
        ConfigError: if a colour is not three numbers from 0 to 255, or two classes share one.
    """
    colors = {}
    for class_name, color in classes.items():
        if len(color) != 3 or any(not 0 <= int(value) <= 255 for value in color):
            raise ConfigError(f"class {class_name!r}: found colour {list(color)}, expected [R, G, B], each 0 to 255")
        colors[str(class_name)] = _as_color(color)
    void = colors.pop("void", None)
    return LabelSpace(
        name=name,
        class_names=tuple(colors),
        colors=tuple(colors.values()),
        aliases=((void, VOID),) if void is not None else (),
    )
