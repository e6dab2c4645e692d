"""The three parts of a run's samples: kept in CSV files, and checked for leaks between them."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cityseg.data.samples import in_threads
from cityseg.errors import DataError, Problems, did_you_mean
from cityseg.files import write_text

Indices = npt.NDArray[np.int64]

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint parts of a list of samples, each in ascending order.

    Attributes:
        train: ``(N,)`` int64, indices of the samples that are trained on.
        val: ``(N,)`` int64, of those that choose the checkpoint; empty where the last weights are taken.
        test: ``(N,)`` int64, of those that are held out.
    """

    train: Indices
    val: Indices
    test: Indices

    def items(self) -> list[tuple[str, Indices]]:
        """Name and indices of each part."""
        return list(zip(PARTS, (self.train, self.val, self.test), strict=True))


def write_split(path: Path, names: Sequence[str], split: Split) -> None:
    """Write which part each sample is in, as CSV with the columns ``file,part``, in the order of the samples.

    Args:
        path: the file.
        names: paths of the samples relative to the root.
        split: the parts.
    """
    part_of = np.full(len(names), -1, np.int8)
    for number, (_, indices) in enumerate(split.items()):
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
        DataError: naming the files that are unknown, missing or listed twice, and parts that do not exist.
    """
    parts = np.array(_read_column(path, "part", names, known=PARTS))
    return Split(*(np.flatnonzero(parts == part) for part in PARTS))


def read_groups(path: Path, names: Sequence[str]) -> list[str]:
    """Read the group, such as a city or a drive, of each sample from CSV with the columns ``file,group``.

    Raises:
        DataError: naming the files that are unknown, missing, listed twice or without a group.
    """
    return _read_column(path, "group", names)


def _read_column(path: Path, column: str, names: Sequence[str], known: Sequence[str] | None = None) -> list[str]:
    """The value of a column for each file."""
    values: dict[str, str] = {}
    expected = set(names)
    problems = Problems(str(path))
    for name, value in _read_rows(path, column):
        if name in values:
            problems.add("file listed twice", f"{name}: {values[name]}, then {value}", fix="leave one line of each")
        elif name not in expected:
            problems.add("unknown file", name, fix=f"write paths from data.root on, as {names[0]}")
        elif known is not None and value not in known:
            problems.add(
                f"unknown {column}",
                f"{name}: found {value!r}.{did_you_mean(value, known)}",
                fix=f"a {column} is one of {', '.join(known)}",
            )
        elif not value:
            problems.add(f"file without a {column}", name)
        values[name] = value
    for name in names:
        if name not in values:
            problems.add("file not listed", name, fix="list every training file once")
    problems.raise_if_any(DataError)
    return [values[name] for name in names]


def _read_rows(path: Path, column: str) -> list[tuple[str, str]]:
    """File and value of each line."""
    expected = f"expected CSV in UTF-8 with the columns file,{column}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets write a byte order mark
            table = csv.DictReader(file)
            header = list(table.fieldnames or [])
            if not {"file", column} <= set(header):
                raise DataError(f"{path}: found the columns {','.join(header) or '(none)'}, {expected}")
            return [(row["file"] or "", row[column] or "") for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {error}, {expected}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, {expected}") from error


def check_leaks(root: Path, names: Sequence[str], split: Split, groups: Sequence[str] | None = None) -> None:
    """See that nothing which is learnt from one part is met again in another.

    Files are compared byte by byte through SHA-256, where files of two parts are of one size.

    Args:
        root: folder that the names are relative to.
        names: files of the samples: photos, or composites.
        split: the parts.
        groups: group of each sample, where no group may be in two parts.

    Raises:
        DataError: naming files that are in two places, equal files in two parts, and groups in two parts.
    """
    problems = Problems("the split: its parts are not independent")
    part_of: dict[str, str] = {}
    places: dict[str, list[str]] = {}  # of files that are in several
    for part, indices in split.items():
        for index in indices:
            if (name := names[index]) in part_of:
                places.setdefault(name, [part_of[name]]).append(part)
            else:
                part_of[name] = part
    for name, parts in places.items():
        problems.add("same file twice", f"{name}: {' and '.join(parts)}", fix="list each file in one part")
    for twins in _equal_files(root, part_of):
        problems.add(
            "same content in two parts",
            " = ".join(f"{name} ({part_of[name]})" for name in twins),
            fix="remove the copies, or keep them in one part (cv=files; cv=grouped with a group file)",
        )
    if groups is not None:
        members: dict[str, dict[str, int]] = defaultdict(dict)
        for part, indices in split.items():
            for index in indices:
                members[groups[index]][part] = members[groups[index]].get(part, 0) + 1
        for group, counts in sorted(members.items()):
            if len(counts) > 1:
                shown = ", ".join(f"{count} {part}" for part, count in counts.items())
                problems.add("group in two parts", f"{group}: {shown}", fix="keep each group in one part")
    problems.raise_if_any(DataError)


def _equal_files(root: Path, part_of: dict[str, str]) -> list[list[str]]:
    """Files of the same content that lie in more than one part."""
    sizes = in_threads(lambda name: (root / name).stat().st_size, list(part_of))
    names = [name for group in _in_two_parts(zip(sizes, part_of, strict=True), part_of) for name in group]
    digests = in_threads(lambda name: _digest(root / name), names)
    return _in_two_parts(zip(digests, names, strict=True), part_of)


def _in_two_parts(keyed: Iterable[tuple[object, str]], part_of: dict[str, str]) -> list[list[str]]:
    """Files of the same key, where they are not all of one part."""
    files: dict[object, list[str]] = defaultdict(list)
    for key, name in keyed:
        files[key].append(name)
    return [group for group in files.values() if len({part_of[name] for name in group}) > 1]


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
