"""The three parts of a run's samples: kept in CSV files, and checked for leaks between them."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cityseg.data.samples import in_threads
from cityseg.errors import DataError, Problems, did_you_mean
from cityseg.files import write_text

Indices = npt.NDArray[np.int64]


class Split(NamedTuple):
    """Indices ``(N,)`` int64 of three disjoint parts of a list of samples, each in ascending order."""

    train: Indices
    val: Indices  # choose the checkpoint; empty where the last weights are taken
    test: Indices  # held out

    def items(self) -> list[tuple[str, Indices]]:
        """Name and indices of each part."""
        return list(zip(PARTS, self, strict=True))


PARTS = Split._fields


def write_split(path: Path, names: Sequence[str], split: Split) -> None:
    """Write the part of each sample, by its path from the root on, in their order as CSV with ``file,part``."""
    part_of = np.full(len(names), -1, np.int8)
    for number, indices in enumerate(split):
        part_of[indices] = number
    text = io.StringIO()
    # Before Python 3.13 a carriage return is left without quotes.
    quoted = any("\r" in name for name in names)
    rows = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    rows.writerow(("file", "part"))
    rows.writerows((name, PARTS[number]) for name, number in zip(names, part_of, strict=True) if number >= 0)
    write_text(path, text.getvalue())


def read_split(path: Path, names: Sequence[str]) -> Split:
    """Read what :func:`write_split` writes, for the same samples in any order.

    Raises:
        DataError: naming what is amiss.
    """
    parts = np.array(_read_column(path, "part", names, known=PARTS))
    return Split(*(np.flatnonzero(parts == part) for part in PARTS))


def read_groups(path: Path, names: Sequence[str]) -> list[str]:
    """Read the group of each sample, likewise, from CSV with the columns ``file,group``."""
    return _read_column(path, "group", names)


def _read_column(path: Path, column: str, names: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """The value of a column for each file."""
    wanted = f"expected CSV in UTF-8 with the columns file,{column}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a byte order mark
            table = csv.DictReader(file)
            header = list(table.fieldnames or [])
            if not {"file", column} <= set(header):
                raise DataError(f"{path}: found the columns {','.join(header) or '(none)'}, {wanted}")
            rows = [(row["file"] or "", row[column] or "") for row in table]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', error)}, {wanted}") from error
    values: dict[str, str] = {}
    expected = set(names)
    problems = Problems(str(path))
    for name, value in rows:
        if name in values:
            problems.add("file listed twice", f"{name}: {values[name]}, then {value}", fix="leave one line of each")
        elif name not in expected:
            problems.add("unknown file", name, fix=f"write paths from data.root on, as {names[0]}")
        elif known and value not in known:
            found = f"{name}: found {value!r}.{did_you_mean(value, known)}"
            problems.add(f"unknown {column}", found, fix=f"a {column} is one of {', '.join(known)}")
        elif not value:
            problems.add(f"file without a {column}", name)
        values[name] = value
    for name in names:
        if name not in values:
            problems.add("file not listed", name, fix="list every training file once")
    problems.raise_if_any(DataError)
    return [values[name] for name in names]


def check_leaks(root: Path, names: Sequence[str], split: Split, groups: Sequence[str] | None = None) -> None:
    """See that nothing which is learnt from one part of the files below a root is met again in another.

    Files of one size in two parts are compared through SHA-256. Groups, one of each file, may not be in two parts.

    Raises:
        DataError: naming files that are in two places, equal files in two parts, and groups in two parts.
    """
    problems = Problems("the split: its parts are not independent")
    part_of: dict[str, str] = {}
    for part, indices in split.items():
        for name in (names[index] for index in indices):
            if name in part_of:
                found = f"{name}: {part_of[name]} and {part}"
                problems.add("same file twice", found, fix="list each file in one part")
            part_of.setdefault(name, part)
    for twins in _equal_files(root, part_of):
        problems.add(
            "same content in two parts",
            " = ".join(f"{name} ({part_of[name]})" for name in twins),
            fix="remove the copies, or keep them in one part (cv=files; cv=grouped with a group file)",
        )
    if groups is not None:
        counts = Counter((groups[index], part) for part, indices in split.items() for index in indices)
        for group in sorted({group for group, _ in counts}):
            shown = [f"{counts[group, part]} {part}" for part in PARTS if counts[group, part]]
            if len(shown) > 1:
                problems.add("group in two parts", f"{group}: {', '.join(shown)}", fix="keep each group in one part")
    problems.raise_if_any(DataError)


def _equal_files(root: Path, part_of: dict[str, str]) -> list[list[str]]:
    """Files of the same content that lie in more than one part; of a size that others have, they are read."""
    names = [*part_of]
    for key in (_size, _digest):
        files: dict[object, list[str]] = defaultdict(list)
        for value, name in zip(in_threads(partial(key, root), names), names, strict=True):
            files[value].append(name)
        groups = [group for group in files.values() if len({part_of[name] for name in group}) > 1]
        names = [name for group in groups for name in group]
    return groups


def _size(root: Path, name: str) -> int:
    return (root / name).stat().st_size


def _digest(root: Path, name: str) -> bytes:
    with (root / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
