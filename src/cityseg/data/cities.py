"""Which city a photo is from, by its folder or by its number: photos of one city resemble each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import PurePosixPath

from cityseg.errors import DataError

GROUP_FILE = "cv.groups=FILE.csv with the columns file,group names the city or drive of every photo"
"""The way out where the files do not say it."""

CITIES: dict[str, dict[str, int]] = {
    "train": {
        "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85, "dusseldorf": 221, "erfurt": 109,
        "hamburg": 248, "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94, "strasbourg": 365,
        "stuttgart": 196, "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122,
    },
    "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
}  # fmt: skip
"""Photos with fine labels of each city of Cityscapes (Cordts et al., CVPR 2016), in the order of their file names."""


def folder_cities(names: Sequence[str]) -> list[str]:
    """Cities of files that lie in a folder for each, as in ``leftImg8bit/train/aachen/*.png``.

    >>> folder_cities(["leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png"])
    ['ulm']
    """
    return [PurePosixPath(name).parent.name for name in names]


def numbered_cities(names: Sequence[str]) -> list[str]:
    """Cities of the public image pairs, whose numbers ``1.jpg, 2.jpg, ...`` follow the sorted Cityscapes file names.

    Args:
        names: files of one whole split.

    Returns:
        City of each file, in the order of the names.

    Raises:
        DataError: if the files are not as many as Cityscapes has, or not numbered from 1 without gaps.
    """
    counts = {sum(cities.values()): cities for cities in CITIES.values()}
    stems = [PurePosixPath(name).stem for name in names]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    if len(names) not in counts:
        known = " or ".join(f"{count} ({split})" for count, split in zip(counts, CITIES, strict=True))
        found, expected = f"found {len(names)} composites", f"expected exactly {known}"
    elif sorted(numbers) != list(range(1, len(names) + 1)):
        odd = next((stem for stem in stems if not stem.isdecimal()), None)
        gaps = sorted(set(range(1, len(names) + 1)) - set(numbers))
        found = f"found {names[stems.index(odd)]}" if odd is not None else f"found no number {gaps[0]}"
        expected = f"expected the numbers 1 to {len(names)}"
    else:
        cities = counts[len(names)]
        ordered = list(chain.from_iterable(repeat(city, count) for city, count in cities.items()))
        return [ordered[number - 1] for number in numbers]
    raise DataError(
        f"the cities of composites are known only where they are numbered as the public image pairs: {found}, "
        f"{expected}. Fix: {GROUP_FILE}; or cv=kfold, which ignores cities"
    )
