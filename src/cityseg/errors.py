"""What a user can get wrong: error types that say file, found, expected and fix, collected and raised once."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

SHOWN = 10  # offenders listed before the rest is only counted
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that a terminal, a log or a CSV file takes for more than text, and bytes that are not UTF-8."""


class CitysegError(ValueError):
    """A mistake in the input or the config, with a message that says how to mend it."""


class DataError(CitysegError):
    """A file or folder is not what the dataset layout says it should be."""


class FileProblem(DataError):
    """One file that is not what it should be; files with the same kind of problem are reported together.

    A path alone is the whole message, as when a loader worker's error is raised anew. `found` also says what was
    expected.
    """

    def __init__(self, path: object, kind: str = "", found: str = "", fix: str = "") -> None:
        parts = [printable(str(part)) for part in (path, kind, found) if part]
        super().__init__(": ".join(parts) + (f". Fix: {fix}" if fix else ""))
        self.path, self.kind, self.found, self.fix = path, kind, found, fix


class ConfigError(CitysegError):
    """A config value, or a combination of values, that cannot work."""


class TrainingError(CitysegError):
    """Training cannot go on: its numbers, its memory or its helpers have failed."""


class WriteError(CitysegError):
    """A file that the system did not let be written."""


class CheckpointError(CitysegError):
    """A checkpoint that cannot be read, or does not fit what it is loaded into."""


class Problems:
    """Collects problems of several kinds and raises them as one error, so that none hides another.

    The first line of the message says what was checked, as ``"data.root=/data (data=gtfine)"``.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._counts: Counter[str] = Counter()
        self._shown: defaultdict[str, list[str]] = defaultdict(list)
        self._fixes: dict[str, str] = {}

    def add(self, title: str, offender: str = "", *, fix: str = "") -> None:
        """Add an offender (file or key, found and expected) under a title, the same text for every one of its kind.

        The first ten of a kind are shown, and the first fix (what the user can do).
        """
        self._counts[title] += 1
        self._fixes.setdefault(title, fix)
        if offender and len(self._shown[title]) < SHOWN:
            self._shown[title].append(printable(offender))

    def add_file(self, problem: FileProblem, root: Path) -> None:
        """Add what is wrong with one file, shown relative to the root."""
        file = Path(str(problem.path))
        shown = file.relative_to(root) if file.is_relative_to(root) else file
        self.add(problem.kind, f"{shown}: {problem.found}" if problem.found else str(shown), fix=problem.fix)

    def __bool__(self) -> bool:
        """True if anything was added."""
        return bool(self._counts)

    def __str__(self) -> str:
        """The whole message: one block for each kind of problem."""
        lines = [f"{len(self._counts)} problem{'s' if len(self._counts) > 1 else ''} with {self._where}:"]
        for number, (title, count) in enumerate(self._counts.items(), start=1):
            lines.append(f"  {number}. {title}" + (f" ({count})" if count > 1 else ""))
            lines += [f"       {offender}" for offender in self._shown[title]]
            if count > len(self._shown[title]) > 0:
                lines.append(f"       ... and {count - len(self._shown[title])} more")
            if self._fixes[title]:
                lines.append(f"     Fix: {self._fixes[title]}")
        return "\n".join(lines)

    def raise_if_any(self, error: type[CitysegError]) -> None:
        """Raise everything collected.

        Raises:
            CitysegError: of the given type.
        """
        if self:
            raise error(str(self))


def printable(text: str) -> str:
    r"""A name from a file, with escapes for what is no text.

    >>> print(printable(chr(27) + "[31m"))
    \x1b[31m
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Name the known words nearest to a wrong one, three at most; empty where none is near.

    >>> did_you_mean("unett", ["unet", "manet", "pspnet"])
    " Did you mean 'unet' or 'manet'?"
    """
    known = list(known)
    near = dict.fromkeys(n for w in (word, word.lower()) for n in difflib.get_close_matches(w, known))
    return f" Did you mean {' or '.join(map(repr, list(near)[:3]))}?" if near else ""
