"""What a user can get wrong: error types that say file, found, expected and fix, collected and raised once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
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

    Attributes:
        path: the file.
        kind: what is wrong, the same words for every file it is wrong with.
        found: what was found in this file and what was expected.
        fix: what the user can do.
    """

    def __init__(self, path: object, kind: str = "", found: str = "", fix: str = "") -> None:
        """See the class. A path alone is the whole message, as when a loader worker's error is raised anew."""
        super().__init__(
            ": ".join(printable(str(part)) for part in (path, kind, found) if part) + (f". Fix: {fix}" if fix else "")
        )
        self.path, self.kind, self.found, self.fix = path, kind, found, fix


class ConfigError(CitysegError):
    """A config value, or a combination of values, that cannot work."""


class TrainingError(CitysegError):
    """Training cannot go on: its numbers, its memory or its helpers have failed."""


class WriteError(CitysegError):
    """A file that the system did not let be written."""


class CheckpointError(CitysegError):
    """A checkpoint that cannot be read, or does not fit what it is loaded into."""


@dataclass
class _Problem:
    title: str
    fix: str
    offenders: list[str] = field(default_factory=list)
    count: int = 0


class Problems:
    """Collects problems of several kinds and raises them as one error, so that none hides another.

    Each kind lists its first ten offenders and the count of all.
    """

    def __init__(self, where: str) -> None:
        """Start an empty collection.

        Args:
            where: what was checked, for the first line of the message (``"data.root=/data (data=gtfine)"``).
        """
        self._where = where
        self._problems: dict[str, _Problem] = {}

    def add(self, title: str, offender: str = "", *, fix: str = "") -> None:
        """Add one offender under a kind of problem.

        Args:
            title: the kind, the same text for every offender of this kind.
            offender: the file or key, with what was found and what was expected.
            fix: what the user can do; the first one given for a kind is shown.
        """
        problem = self._problems.setdefault(title, _Problem(title, fix))
        problem.count += 1
        if offender and len(problem.offenders) < SHOWN:
            problem.offenders.append(printable(offender))

    def add_file(self, problem: FileProblem, root: Path) -> None:
        """Add what is wrong with one file, shown relative to the root."""
        file = Path(str(problem.path))
        shown = file.relative_to(root) if file.is_relative_to(root) else file
        self.add(problem.kind, f"{shown}: {problem.found}" if problem.found else str(shown), fix=problem.fix)

    def __bool__(self) -> bool:
        """True if anything was added."""
        return bool(self._problems)

    def __str__(self) -> str:
        """The whole message: one block for each kind of problem."""
        kinds = len(self._problems)
        lines = [f"{kinds} problem{'s' if kinds > 1 else ''} with {self._where}:"]
        for number, problem in enumerate(self._problems.values(), start=1):
            count = f" ({problem.count})" if problem.count > 1 else ""
            lines.append(f"  {number}. {problem.title}{count}")
            lines += [f"       {offender}" for offender in problem.offenders]
            if problem.count > len(problem.offenders) > 0:
                lines.append(f"       ... and {problem.count - len(problem.offenders)} more")
            if problem.fix:
                lines.append(f"     Fix: {problem.fix}")
        return "\n".join(lines)

    def raise_if_any(self, error: type[CitysegError]) -> None:
        """Raise everything collected.

        Raises:
            CitysegError: of the given type, if anything was added.
        """
        if self:
            raise error(str(self))


def printable(text: str) -> str:
    r"""A name from a file, with escapes for what is no text.

    >>> print(printable(chr(27) + "[31m"))
    \x1b[31m
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """Name the known words nearest to a wrong one.

    Returns:
        ``" Did you mean 'a' or 'b'?"``, or an empty string where nothing is near.

    >>> did_you_mean("unett", ["unet", "manet", "pspnet"])
    " Did you mean 'unet' or 'manet'?"
    """
    known = list(known)
    near = [n for w in (word, word.lower()) for n in difflib.get_close_matches(w, known, n=count, cutoff=0.6)]
    near = list(dict.fromkeys(near))[:count]
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
