"""Reading pictures: photos as RGB, labels as raw values, and a clear refusal of anything else.

Pillow reads both: it raises on truncated files where OpenCV fills in, and it keeps the indices of palette PNGs.
Only whole RGB PNGs are left to OpenCV. The checksums of a PNG are checked; a JPEG has none.
"""

from __future__ import annotations

import stat
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from cityseg.errors import FileProblem
from cityseg.labels import ByteArray

PHOTO_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P", "1"})
LABEL_MODES = frozenset({"L", "P"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a picture may be, whatever its name: Pillow would start other programs for some others."""
MAX_PIXELS = 178_956_970
"""A larger picture is refused before it is decoded, unless a key says otherwise; Pillow's own limit is the same."""
Image.MAX_IMAGE_PIXELS = None  # it names no file, and would stand in the way of a higher limit

REPLACE = "copy or download the file again"
_END_MARKERS = {"PNG": (b"IEND", 12), "JPEG": (b"\xff\xd9", 64)}


def read_header(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture.

    Raises:
        FileProblem: if it is empty, none, too large, or ends before its end marker.
    """
    check_file(path)
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            (width, height), kind = image.size, image.format
    except Exception as error:  # decoders raise whatever comes first in damaged data
        raise unreadable(path, error) from error
    check_pixels(path, width, height, max_pixels, "data.max_pixels")
    marker, length = _END_MARKERS.get(str(kind), (b"", 0))
    if length:
        with path.open("rb") as handle:
            handle.seek(-min(length, path.stat().st_size), 2)
            if marker not in handle.read():
                found = f"the end marker of a {kind} file is missing"
                raise FileProblem(path, "truncated or damaged picture", found, REPLACE)
    return height, width


def check_file(path: Path) -> None:
    """Refuse what is no file with something in it: opening a pipe would wait for its other end.

    Raises:
        FileProblem: if it is not.
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
        raise FileProblem(path, "empty file", "0 bytes", REPLACE)


def check_pixels(path: Path, width: int, height: int, most: int, key: str) -> None:
    """Refuse a picture whose header promises more pixels than `most`, which a config key says.

    Raises:
        FileProblem: if it does.
    """
    if width * height > most:
        found = f"found {width}x{height}, expected at most {most} pixels"
        raise FileProblem(path, "too large, refused before decoding", found, f"scale it down, or raise {key}")


def read_photo(path: Path) -> ByteArray:
    """Decode a photo to ``(H, W, 3)`` uint8 RGB.

    Raises:
        FileProblem: if damaged, or of a mode that would lose information.
    """
    if path.suffix.lower() == ".png" and (photo := _read_rgb_png(path)) is not None:
        return photo
    image = _decode(path, PHOTO_MODES, "photo of a mode that cannot be read without loss", "convert it to 8-bit RGB")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_label(path: Path) -> ByteArray:
    """Decode a label picture to the bytes ``(H, W)`` that it stores.

    Raises:
        FileProblem: if damaged, or not a byte a pixel.
    """
    fix = "give files of ids, not of colours; colours are read by data=pairs and by data=folders data.labels=palette"
    return np.asarray(_decode(path, LABEL_MODES, "label of the wrong mode, not one byte a pixel", fix))


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


def _decode(path: Path, modes: frozenset[str], otherwise: str, fix: str) -> Image.Image:
    try:
        data = BytesIO(path.read_bytes())
        with Image.open(data, formats=FORMATS) as image:
            if image.format == "PNG":
                image.verify()  # every checksum: decoding alone overlooks some
        with Image.open(data, formats=FORMATS) as image:
            image.load()
    except Exception as error:  # decoders raise whatever comes first in damaged data
        raise unreadable(path, error) from error
    if image.mode not in modes:
        found = f"found mode {image.mode!r}, expected one of {', '.join(sorted(modes))}"
        raise FileProblem(path, otherwise, found, fix)
    return image


def unreadable(path: Path, error: Exception) -> FileProblem:
    """What is wrong with a file that no decoder takes."""
    check_file(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(16)
    except OSError as refused:
        return FileProblem(path, "cannot be read", str(refused.strerror), "permissions that let it be read")
    if head.startswith((b"\x89PNG", b"\xff\xd8")) or not isinstance(error, UnidentifiedImageError):
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return FileProblem(path, "truncated or damaged picture", f"{path.stat().st_size} bytes ({reason})", REPLACE)
    return FileProblem(path, "not a picture", f"it starts with {head!r}", REPLACE)
