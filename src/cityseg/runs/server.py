"""What the Cityscapes benchmark server takes: which photos, and the archive of their predictions."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from cityseg.data.images import read_header, read_label
from cityseg.data.pictures import Source
from cityseg.errors import DataError, FileProblem, Problems
from cityseg.files import fresh_file
from cityseg.labels import CITYSCAPES_LABELS, LabelSpace

log = logging.getLogger(__name__)

CITYSCAPES_NAME = re.compile(r"([^_]+)_\d{6}_\d{6}_leftImg8bit\.png")
CITYSCAPES_SIZE = (1024, 2048)
CITYSCAPES_TEST_IMAGES = 1525


def check_server_input(base: Path, sources: Sequence[Source], space: LabelSpace) -> None:
    """Refuse what the benchmark server would not take.

    Raises:
        DataError: with every problem.
    """
    problems = Problems(f"input={base} (format=cityscapes)")
    known = {(label.name, label.id) for label in CITYSCAPES_LABELS} | {("void", 0)}
    if foreign := sorted(set(zip(space.class_names, space.label_ids or range(space.num_classes), strict=True)) - known):
        problems.add(f"the checkpoint's classes are not Cityscapes': {', '.join(name for name, _ in foreign[:5])}")
    for source in sources:
        path = source.path.relative_to(base)
        match = CITYSCAPES_NAME.fullmatch(path.name)
        if match is None or path.parts[:-1] != (match[1],):
            problems.add(
                "files that are not CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png, with six digits each",
                str(path),
                fix="give the folder of a split: input=ROOT/leftImg8bit/test",
            )
            continue
        try:
            header = read_header(source.path)
        except FileProblem as problem:
            problems.add_file(problem, base)
            continue
        if header != CITYSCAPES_SIZE:
            found = f"{path}: {header[1]}x{header[0]}"
            problems.add("photos of another size than 2048x1024", found, fix="give the original files")
    problems.raise_if_any(DataError)
    if base.resolve().name == "test" and len(sources) != CITYSCAPES_TEST_IMAGES:
        log.warning("the server expects all %d images of test, found %d", CITYSCAPES_TEST_IMAGES, len(sources))


def write_server_archive(output: Path, split: str, files: Sequence[Path]) -> None:
    """Check the written label ids, then zip them for the benchmark server.

    Raises:
        DataError: naming the wrong ones.
    """
    problems = Problems(f"output={output} (format=cityscapes)")
    for path in files:
        try:
            ids = read_label(path)
            if ids.shape != CITYSCAPES_SIZE or ids.max() > max(label.id for label in CITYSCAPES_LABELS):
                found = f"{ids.shape[1]}x{ids.shape[0]}, ids up to {ids.max()}, expected 2048x1024 and at most 33"
                raise FileProblem(path, "not label ids of the benchmark", found, "overwrite=true")
        except FileProblem as problem:
            problems.add_file(problem, output)
    problems.raise_if_any(DataError)
    target = output / f"cityscapes_{split}.zip"
    with fresh_file(target) as fresh, zipfile.ZipFile(fresh, "w") as archive:  # stored: PNGs are compressed already
        for path in files:
            archive.write(path, path.name)
    log.info("%d images for the benchmark server: %s", len(files), target)
