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

    from cityseg.crossval.markdown import closing_lines  # heavy: not needed to answer --help
    from cityseg.crossval.output import write_summary
    from cityseg.crossval.summary import exit_code

    try:
        summary = write_summary(folder)
    except CitysegError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join([*closing_lines(summary), f"summary  {folder / 'cv' / 'report.html'}"]))
    return exit_code(summary)


if __name__ == "__main__":
    sys.exit(main())
