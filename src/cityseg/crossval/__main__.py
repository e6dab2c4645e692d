"""``python -m cityseg.crossval DIR``: summarise a sweep over folds from its run folders, finished or not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cityseg.errors import CitysegError


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``DIR/cv`` and print the closing lines; returns the exit code, 1 if a fold failed or is unfinished."""
    parser = argparse.ArgumentParser(prog="python -m cityseg.crossval", description=__doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="a sweep's folder: outputs/NAME/multirun/TIMESTAMP")
    folder: Path = parser.parse_args(arguments).dir

    from cityseg.crossval.output import close_sweep  # heavy: not needed to answer --help

    try:
        return close_sweep(folder)
    except CitysegError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
