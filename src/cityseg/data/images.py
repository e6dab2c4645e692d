"""Reading pictures: photos as RGB, labels as raw values, and a clear refusal of anything else.

Pillow reads both: it raises on truncated files where OpenCV fills in, and it keeps the indices of palette PNGs.
Only whole RGB PNGs are left to OpenCV. The checksums of a PNG are checked; a JPEG has none.
"""

from __future__ import annotations

import stat
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from cityseg.errors import FileProblem
from cityseg.labels import ByteArray

PHOTO_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P", "1"})
LABEL_MODES = frozenset({"L", "P"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a picture may be, whatever its name: Pillow would start other programs for some others."""
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
        check_file(path)
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            mode, kind = image.mode, image.format
    except FileProblem:
        raise
    except Exception as error:  # decoders raise whatever comes first in damaged data
        raise _unreadable(path, error) from error
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


def check_file(path: Path) -> None:
    """See that there is something in a file, and that it ends: opening a pipe would wait for its other end.

    Raises:
        FileProblem: if there is not.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise FileProblem(path, "no such file") from error
    except OSError as error:
        raise FileProblem(path, "cannot be read", str(error.strerror), "mend or remove it") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise FileProblem(path, "not a file", f"found {what}", "remove it")
    if not found.st_size:
        raise FileProblem(path, "empty file", "0 bytes", _REPLACE)


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
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            if image.mode != "RGB":
                return None
            image.verify()  # every checksum, whatever OpenCV makes of a wrong one
        photo = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except Exception:  # decoders raise whatever comes first in damaged data
        return None
    return None if photo is None else np.asarray(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB, dst=photo), np.uint8)


def _decode(path: Path) -> Image.Image:
    try:
        data = BytesIO(path.read_bytes())
        with Image.open(data, formats=FORMATS) as image:
            if image.format == "PNG":
                image.verify()  # every checksum: decoding alone overlooks some
        with Image.open(data, formats=FORMATS) as image:
            image.load()
            return image
    except Exception as error:  # decoders raise whatever comes first in damaged data
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FileProblem:
    check_file(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(16)
    except OSError as refused:
        return FileProblem(path, "cannot be read", str(refused.strerror), "permissions that let it be read")
    if head.startswith((b"\x89PNG", b"\xff\xd8")):
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return FileProblem(path, "truncated or damaged picture", f"{path.stat().st_size} bytes ({reason})", _REPLACE)
    return FileProblem(path, "not a picture", f"it starts with {head!r}", _REPLACE)


def _list(modes: frozenset[str]) -> str:
    return ", ".join(sorted(modes))
