"""Reading pictures: photos as RGB, labels as raw values, and a clear refusal of anything else.

Pillow reads both: it raises on truncated files where OpenCV fills in, and it keeps the indices of palette PNGs.
Only whole RGB PNGs are left to OpenCV.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from cityseg.errors import FileProblem
from cityseg.labels import ByteArray

PHOTO_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P", "1"})
LABEL_MODES = frozenset({"L", "P"})
MAX_PIXELS = 178_956_970
"""A larger picture is refused before it is decoded, unless a key says otherwise; Pillow's own limit is the same."""

Image.MAX_IMAGE_PIXELS = None  # it names no file, and would stand in the way of a higher limit

_REPLACE = "copy or download the file again"
_END_MARKERS = {"PNG": (b"IEND", 12), "JPEG": (b"\xff\xd9", 64)}


class Header(NamedTuple):
    """What the first bytes of a picture say, read without decoding it."""

    height: int
    width: int
    mode: str


def read_header(path: Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Size and mode of a picture, checking cheaply that the file is whole.

    Raises:
        FileProblem: if the file is empty, no picture, too large to decode, or ends before its end marker.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            width, height = image.size
            mode, kind = image.mode, image.format
    except FileNotFoundError as error:
        raise FileProblem(path, "no such file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path) from error
    check_pixels(path, width, height, max_pixels, "data.max_pixels")
    if kind in _END_MARKERS:
        marker, length = _END_MARKERS[kind]
        with path.open("rb") as handle:
            handle.seek(-min(length, path.stat().st_size), 2)
            if marker not in handle.read():
                raise FileProblem(
                    path,
                    "truncated or damaged picture",
                    f"the end marker of a {kind} file is missing",
                    _REPLACE,
                )
    return Header(height, width, mode)


def check_pixels(path: Path, width: int, height: int, most: int, key: str) -> None:
    """Refuse a picture whose header promises more pixels than `most`.

    Raises:
        FileProblem: with the config key that allows more.
    """
    if width * height > most:
        found = f"found {width}x{height}, expected at most {most} pixels"
        raise FileProblem(path, "too large, refused before decoding", found, f"scale it down, or raise {key}")


def read_photo(path: Path) -> ByteArray:
    """Decode a photo whose header was checked.

    Grey and palette pictures become RGB; an alpha channel is dropped.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        FileProblem: if the file is no whole picture, or of a mode that would lose information (16 bits, CMYK, ...).
    """
    if path.suffix.lower() == ".png" and (photo := _read_rgb_png(path)) is not None:
        return photo
    image = _decode(path)
    if image.mode not in PHOTO_MODES:
        raise FileProblem(
            path,
            "photo of a mode that cannot be read without loss",
            f"found mode {image.mode!r}, expected one of {_list(PHOTO_MODES)}",
            "convert the photo to 8-bit RGB",
        )
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_label(path: Path) -> ByteArray:
    """Decode a label picture whose header was checked to the raw values it stores; palette PNGs give their indices.

    Returns:
        ``(H, W)`` uint8.

    Raises:
        FileProblem: if the file is no whole picture, or has colours or 16 bits instead of one byte a pixel.
    """
    image = _decode(path)
    if image.mode not in LABEL_MODES:
        raise FileProblem(
            path,
            "label of the wrong mode",
            f"found mode {image.mode!r}, expected one byte a pixel ({_list(LABEL_MODES)})",
            "give files of ids, not of colours; colours are read by data=pairs and by data=folders data.labels=palette",
        )
    return np.asarray(image)


def _read_rgb_png(path: Path) -> ByteArray | None:
    """Decode an RGB PNG faster than Pillow; None for all else, damaged files included: Pillow tells why."""
    try:
        data = path.read_bytes()
        with Image.open(BytesIO(data)) as image:
            if (image.format, image.mode) != ("PNG", "RGB"):
                return None
            image.verify()  # every checksum, whatever OpenCV makes of a wrong one
        photo = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except (OSError, SyntaxError, ValueError, cv2.error):
        return None
    return None if photo is None else np.asarray(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB, dst=photo), np.uint8)


def _decode(path: Path) -> Image.Image:
    try:
        with path.open("rb") as file, Image.open(file) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise FileProblem(path, "no such file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> FileProblem:
    if path.stat().st_size == 0:
        return FileProblem(path, "empty file", "0 bytes", _REPLACE)
    with path.open("rb") as handle:
        head = handle.read(16)
    if head.startswith((b"\x89PNG", b"\xff\xd8")):
        return FileProblem(path, "truncated or damaged picture", f"{path.stat().st_size} bytes", _REPLACE)
    return FileProblem(path, "not a picture", f"it starts with {head!r}", _REPLACE)


def _list(modes: frozenset[str]) -> str:
    return ", ".join(sorted(modes))
