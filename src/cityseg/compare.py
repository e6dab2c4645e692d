"""``python -m cityseg.compare RUN RUN``: scores, classes, images, curves and configs of runs side by side."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cityseg.errors import CitysegError


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``compare.json`` and ``report.html``, and print the scores; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cityseg.compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of runs, outputs/NAME/TIMESTAMP; the first is compared with"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="where to write, also as output=DIR (outputs/compare/TIMESTAMP)"
    )
    parsed = parser.parse_args(arguments)
    typed = [text.removeprefix("output=") for text in parsed.runs if text.startswith("output=")]
    named = parsed.output or (typed[-1] if typed else time.strftime("outputs/compare/%Y-%m-%d_%H-%M-%S"))
    try:
        lines = write_comparison([Path(text) for text in parsed.runs if not text.startswith("output=")], Path(named))
    except CitysegError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join([*lines, f"report  {Path(named) / 'report.html'}"]))
    return 0


def write_comparison(folders: Sequence[Path], output: Path) -> list[str]:
    """Compare runs with the first one, and write ``compare.json`` and ``report.html``; returns what to print.

    Raises:
        DataError: if a folder has no figures, or the runs cannot be compared.
    """
    from cityseg.files import write_json, write_text  # heavy: not needed to answer --help
    from cityseg.reports.html.comparison import compare_runs, comparison_page
    from cityseg.reports.html.page import points
    from cityseg.reports.run_files import read_run
    from cityseg.reports.summary import percent

    runs = [read_run(folder) for folder in folders]
    comparison = compare_runs(runs)
    write_json(output / "compare.json", comparison)
    write_text(output / "report.html", comparison_page(comparison, runs))
    lines = [f"warning: {text}" for text in comparison["warnings"]]
    for entry, difference in zip(comparison["runs"], [None, *comparison["differences"]], strict=True):
        change = "" if difference is None else f" ({points(difference['scores']['miou'])})"
        lines.append(f"{entry['letter']}  mIoU {percent(entry['scores']['miou'])} %{change}  {entry['name']}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
