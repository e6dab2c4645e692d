"""Writing files so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a text file by way of a temporary one beside it.

    Raises:
        OSError: if the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON that every parser reads: indented, and NaN refused.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if a number is not finite.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
