"""Pictures and videos as people have them: any size and common mode, in the orientation that a viewer shows."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from cityseg.data.images import FORMATS, MAX_PIXELS, PHOTO_MODES, REPLACE, check_file, check_pixels, unreadable
from cityseg.data.samples import describe_folder
from cityseg.errors import ConfigError, FileProblem, Problems
from cityseg.labels import ByteArray

log = logging.getLogger(__name__)

PICTURES = frozenset([".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
VIDEOS = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"])

_FORMATS = [*FORMATS, *(["AVIF"] if ".avif" in Image.registered_extensions() else [])]


class Source(NamedTuple):
    """A picture or video, and what its results are called: a relative path without an ending."""

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        """Whether it is read as a video: by its ending."""
        return self.path.suffix.lower() in VIDEOS


class Frame(NamedTuple):
    """A picture ``(H, W, 3)`` uint8 RGB, and frames a second if it is of a video."""

    photo: ByteArray
    rate: float | None = None


def find_sources(wanted: str, leave_out: Sequence[Path] = ()) -> tuple[Path, list[Source]]:
    """List what is to be predicted, sorted, and the folder that its names are relative to.

    Results are called after the path below the folder, without its ending unless two files differ in nothing else.
    In folders and for patterns, hidden files, files with other endings and folders of results are passed over.

    Raises:
        ConfigError: if there is nothing, or results would overwrite each other.
    """
    path = Path(wanted).expanduser()
    if path.is_dir():
        base, found = path, [Path(top, name) for top, _, names in os.walk(path) for name in names]
    elif path.exists():
        base, found = path.parent, [path]
    else:
        base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        # Unlike glob.glob, this follows no links to folders below **, which may lead in circles.
        pattern = str(path.relative_to(base))
        matches = base.glob(f"{pattern}/*" if pattern.endswith("**") else pattern) if pattern != "." else ()
        found = [file for file in matches if file.is_file()]
    known = [file for file in found if file == path or _is_wanted(file.relative_to(base))]
    if any(".." in file.relative_to(base).parts for file in known):
        raise ConfigError(f"input={wanted}: found '..' behind a wildcard, expected it before the first one")
    results = [folder.resolve() for folder in leave_out]
    files = sorted(file for file in known if not any(file.resolve().is_relative_to(folder) for folder in results))
    if not path.exists() and not glob.has_magic(wanted):
        raise ConfigError(f"input={wanted}: no such file or folder; {describe_folder(path.parent)}")
    if not files:
        own = f", {len(known)} of them results of predictions" if known else ""
        there = "" if path.exists() else f"; {describe_folder(base)}"
        raise ConfigError(
            f"input={wanted}: found no pictures and no videos in {len(found)} files{own}{there}. Expected endings are "
            f"{', '.join(sorted(PICTURES | VIDEOS))}"
        )
    return base, _named(wanted, base, files)


def _is_wanted(path: Path) -> bool:
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    return path.suffix.lower() in PICTURES | VIDEOS and not hidden


def _named(wanted: str, base: Path, files: Sequence[Path]) -> list[Source]:
    """Give each file a name of its own, also where case does not count."""
    paths = [file.relative_to(base) for file in files]
    short = Counter(_folded(path.with_suffix("")) for path in paths)
    names = [path if short[_folded(path.with_suffix(""))] > 1 else path.with_suffix("") for path in paths]
    sources = [Source(file, name) for file, name in zip(files, names, strict=True)]
    taken = Counter(map(_folded, names))
    folders = {_folded(folder) for name in names for folder in name.parents}
    problems = Problems(f"input={wanted}")
    for source in sources:
        if taken[_folded(source.name)] > 1 or (source.is_video and f"{_folded(source.name)}.frames" in folders):
            problems.add("names whose results would collide", str(source.path), fix="rename one of them")
    problems.raise_if_any(ConfigError)
    return sources


def _folded(path: Path) -> str:
    return str(path).casefold()


def read_frames(source: Source, max_pixels: int = MAX_PIXELS) -> Iterator[Frame]:
    """The frames of a video, or the one picture, see :func:`read_picture`; none larger than `max_pixels` is decoded."""
    if source.is_video:
        yield from _read_video(source.path, max_pixels)
    else:
        yield Frame(read_picture(source.path, max_pixels))


def read_ahead(sources: Iterable[Source], max_pixels: int = MAX_PIXELS) -> Iterator[tuple[Source, Frame | FileProblem]]:
    """The frames of each source, or what is wrong with it, while a thread reads the next one."""

    def read() -> Iterator[tuple[Source, Frame | FileProblem]]:
        for source in sources:
            try:
                for frame in read_frames(source, max_pixels):
                    yield source, frame
            except FileProblem as problem:
                yield source, problem

    with ThreadPoolExecutor(max_workers=1) as pool:
        items = read()
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> ByteArray:
    """Decode a picture to ``(H, W, 3)`` uint8 RGB as a viewer shows it, turned as its EXIF says.

    Grey, palette and CMYK pictures become RGB (ICC profiles are not applied), 16 bits become the upper 8, an alpha
    channel is dropped as in training. Of several frames or pages the first is read.

    Raises:
        FileProblem: if the file is no whole picture, too large, or of a mode without a fixed range (32 bits).
    """
    check_file(path)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            check_pixels(path, image.width, image.height, max_pixels, "max_pixels")
            kind, upright = image.format, ImageOps.exif_transpose(image)
    except FileProblem:
        raise
    except Exception as error:  # decoders raise whatever comes first in damaged data
        raise unreadable(path, error) from error
    # Pillow before 11 calls the 16 bits of a grey PNG 32.
    if upright.mode.startswith("I;16") or (upright.mode == "I" and kind == "PNG"):
        return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if upright.mode not in PHOTO_MODES | {"CMYK", "PA", "YCbCr"}:
        fix = "convert the picture to 8-bit RGB"
        raise FileProblem(path, "picture of a mode whose range is unknown", f"found mode {upright.mode!r}", fix)
    upright.info.pop("transparency", None)
    return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _read_video(path: Path, max_pixels: int) -> Iterator[Frame]:
    check_file(path)
    video = cv2.VideoCapture(str(path))  # turns frames as the file says
    try:
        width, height = (int(video.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        check_pixels(path, width, height, max_pixels, "max_pixels")
        announced, rate = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS) or 25.0
        count = 0
        while video.isOpened() and (read := video.read())[0]:
            count += 1
            yield Frame(np.asarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), np.uint8), rate)
        if not count:
            raise FileProblem(path, "no video that OpenCV can read", f"{path.stat().st_size} bytes", REPLACE)
        if count < announced:
            log.warning("%s: %d of %d frames could be read", path, count, announced)
    finally:
        video.release()
