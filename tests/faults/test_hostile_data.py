"""Data sets made to run code, to fill the memory, to hang or to write elsewhere: read, or refused by a file's name."""

import contextlib
import io
import json
import os
import pickle
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cityseg.crossval.output import write_summary
from cityseg.data.folders import FoldersDataModule
from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.images import read_header, read_label, read_photo
from cityseg.data.pairs import PairsDataModule
from cityseg.data.pictures import Source, find_sources, read_frames
from cityseg.data.split_files import read_split
from cityseg.data.statistics import image_class_pixels
from cityseg.data.stream import Pack
from cityseg.errors import DataError, FileProblem
from cityseg.image_counts import read_image_counts
from cityseg.runs.evaluation import _print_side_by_side, evaluate
from cityseg.runs.jobs import run_job
from tests.conftest import TINY
from tests.crossval import sweeps
from tests.data.layouts import OPTIONS, bomb, label_ids, photo, save, write_folders, write_gtfine
from tests.faults.test_hostile_checkpoints import SYSTEM, status
from tests.reports.test_html import Page

pytestmark = pytest.mark.slow  # networks are trained, and many files written

NAMES = [
    "<script>alert('file')", "\"><img src=x onerror=alert(1)>", "-rf", "--help", "=cmd|' !A0", "[red]x[bold]",
    "$x^{$", "a|b`c", "${oc.env:HOME}", "{{ 7*7 }}", "%s%n", "ünïcødé 漢字",
]  # fmt: skip
CLASSES = {
    "<script>alert('class')</script>": [128, 64, 128],
    "../../../outside": [70, 130, 180],
    "[/red] $x^{$ \"'|`": [0, 0, 142],
}


def test_strange_names_of_files_and_classes_are_text_wherever_they_are_shown(tmp_path, compose_config):
    root = tmp_path / "data"
    mask = np.arange(64 * 64).reshape(64, 64) % 3
    for split in ("train", "val"):
        for number, name in enumerate(NAMES):
            save(photo(64, 64, seed=number + 100 * (split == "val")), root / split / "images" / f"{name}.png")
            save(mask, root / split / "masks" / f"{name}.png")
    typed = [key for key in TINY if not key.startswith("data.scenes")]
    typed += [
        "data=folders",
        f"data.root={root}",
        "panels=99",
        "callbacks.images.every_n_epochs=1",
        "model.pretrained=false",
    ]
    folder = tmp_path / "run"
    config = compose_config(typed, folder)
    config.data.classes = CLASSES
    run_job(config, folder, [], sweep=None)
    scored = tmp_path / "scored"
    config = compose_config([f"ckpt={folder}/checkpoints/last.ckpt", "predictions=true"], scored, "evaluate")
    evaluate(config, scored)
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert written == {"data", "run", "scored"}
    assert not list(tmp_path.parent.glob("outside*"))
    for made in (folder, scored):
        page = Page(made / "report.html")
        assert [tag for tag, _ in page.tags].count("script") == 1  # its own
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
        assert {attributes["src"][:11] for tag, attributes in page.tags if tag == "img"} == {"data:image/"}
        for name in CLASSES:
            assert name in page.table("classes")
        for name in NAMES:
            assert f"val/images/{name}.png" in page.source.replace("<wbr>", "") or name in page.text
    assert len(list((scored / "label_ids").glob("*.png"))) == len(NAMES)
    names = [f"{split}/images/{name}.png" for split in ("train", "val") for name in NAMES]
    read_split(folder / "split.csv", names)
    assert set(read_image_counts(folder / "per_image.npz").images) == {name for name in names if name.startswith("val")}
    events = EventAccumulator(str(folder)).Reload()
    assert not [tag for tag in events.Tags()["tensors"] if "text" in tag]
    assert any("script" in tag for tag in events.Tags()["scalars"])  # TensorBoard shows tags as text


def test_a_summary_in_markdown_has_no_html_of_names(tmp_path):
    evil = "<script>alert(1)</script>"
    for fold in (0, 1):
        run = sweeps.write_run(tmp_path, [f"fold={fold}", f"name='{evil}'"], sweeps.pictures(fold), dataset=evil)
        figures = json.loads((run / "metrics.json").read_text())
        figures["per_class"] = {evil + name: row for name, row in figures["per_class"].items()}
        (run / "metrics.json").write_text(json.dumps(figures))
    write_summary(tmp_path, resamples=5)
    text = (tmp_path / "cv/summary.md").read_text()
    assert "&lt;script>alert(1)" in text
    assert "<script" not in text


def pipe(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def circle(path):
    path.symlink_to(path.name)


def nowhere(path):
    path.symlink_to("/no/such/file")


def device(path):
    path.symlink_to("/dev/zero")


def outside(path):
    path.symlink_to("/etc/passwd")


def huge(path):
    path.write_bytes(bomb(50_000, 50_000))


def script(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 24\n%%EndComments\n(marker) (w) file closefile\n")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind, data):
    def write(path):
        good = io.BytesIO()
        Image.fromarray(photo()).save(good, "png")
        path.write_bytes(good.getvalue()[:33] + chunk(kind, data) + good.getvalue()[33:])

    write.__name__ = kind.decode()
    return write


ZEROS = zlib.compress(bytes(300 * 2**20), 9)  # three hundred megabytes in three hundred kilobytes
PROFILE = with_chunk(b"iCCP", b"x\0\0" + ZEROS)
TEXT = with_chunk(b"zTXt", b"x\0\0" + ZEROS)
CHUNK = with_chunk(b"tEXt", b"x\0" + bytes(20 * 2**20))


def short(path):
    save(photo(), path)
    path.write_bytes(path.read_bytes()[:-40])


def flipped(path):
    save(photo(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


TRAPS = {
    pipe: "not a file: found a pipe",
    folder: "not a file: found a folder",
    circle: "cannot be read: Too many levels of symbolic links",
    nowhere: "no such file",
    device: "not a file: found a pipe or device",
    outside: "not a picture",
    huge: "too large, refused before decoding: found 50000x50000",
    script: "not a picture",
    PROFILE: "truncated or damaged picture",
    TEXT: "truncated or damaged picture",
    CHUNK: None,  # plain text is as long as the file
    short: "truncated or damaged picture",
    flipped: "truncated or damaged picture",
}


def peak_of(work):
    """Bytes by which the largest resident size goes beyond what it was."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


@pytest.mark.timeout(60)  # a pipe would be waited for
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_what_is_no_picture_is_refused_by_name_in_bounded_memory_and_time(tmp_path, monkeypatch, trap):
    monkeypatch.chdir(tmp_path)
    root = write_gtfine(tmp_path / "data")
    name = "train/ulm/ulm_000000_000001_leftImg8bit.png"
    bad = root / "leftImg8bit" / name
    bad.unlink()
    trap(bad)

    def index():
        GtFineDataModule(str(root), **OPTIONS, verify="full").index(["train"])

    def frame():
        list(read_frames(Source(bad, Path("x")), 10**8))

    if TRAPS[trap] is None:
        index()
        frame()
        return
    messages = []

    def refused():
        with pytest.raises(DataError) as caught:
            index()
        messages.append(str(caught.value))

    assert peak_of(refused) < 64 * 2**20
    message = messages[0]
    kind, _, found = TRAPS[trap].partition(": ")
    assert f". {kind}\n" in message
    assert f"{name}: {found}" in message if found else name in message
    with pytest.raises(FileProblem, match=name):
        frame()
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\rb", b"a\xff\xfeb", "a\u2028b"], ids=ascii)
def test_a_name_that_is_no_text_is_refused_with_escapes(tmp_path, name):
    root = write_folders(tmp_path)
    text = os.fsdecode(name)
    (root / "train/images/0.jpg").rename(root / f"train/images/{text}.jpg")
    for masks in (True, False):
        if masks:
            (root / "train/masks/0.png").rename(root / f"train/masks/{text}.png")
        else:
            (root / f"train/masks/{text}.png").unlink()
        with pytest.raises(DataError) as caught:
            FoldersDataModule(str(root), classes=sweeps_classes(), **OPTIONS).index(["train"])
        message = str(caught.value)
        message.encode()  # can be printed
        assert text not in message
        assert "train/images/a\\" in message
        assert ("control characters, or not in UTF-8" in message) is masks


def sweeps_classes():
    return {"road": [128, 64, 128], "sky": [70, 130, 180], "car": [0, 0, 142]}


def test_what_another_program_would_be_started_for_is_not_opened(tmp_path):
    script(tmp_path / "x.png")
    with pytest.raises(FileProblem, match="not a picture"):
        read_header(tmp_path / "x.png")


def test_names_of_classes_are_no_markup_side_by_side(capsys):
    _print_side_by_side([{"per_class": {"[/red]": {"iou": 0.5}}}], ["1"])
    assert "[/red]" in capsys.readouterr().out


def test_folders_that_lead_in_circles_are_gone_through_once(tmp_path):
    root = write_gtfine(tmp_path / "data")
    for place in (root, root / "leftImg8bit", root / "leftImg8bit/train", root / "leftImg8bit/train/ulm"):
        for number in range(2):  # with two, each level has twice as many paths as the one above
            (place / f"again{number}").symlink_to(".")
    started = time.monotonic()
    GtFineDataModule(str(root), **OPTIONS).index(["train", "val"])
    photos = {root / f"leftImg8bit/{split}/ulm/ulm_000000_{n:06d}_leftImg8bit.png"
              for split, count in (("train", 4), ("val", 2)) for n in range(count)}  # fmt: skip
    for wanted in (f"{root}/leftImg8bit", f"{root}/leftImg8bit/**/*.png", f"{root}/leftImg8bit/**"):
        assert {source.path for source in find_sources(wanted)[1]} == photos
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("read", [read_photo, read_label])
def test_a_flipped_bit_of_a_png_gives_no_other_picture(tmp_path, little_memory, read):
    rng, path = np.random.default_rng(0), tmp_path / "x.png"
    picture = photo(40, 40) if read is read_photo else label_ids(64, 64)
    content, refused = save(picture, path).read_bytes(), 0
    for place in rng.choice(len(content) * 8, 150, replace=False).tolist():
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read(path)
        except FileProblem:
            refused += 1
        else:
            np.testing.assert_array_equal(found, picture)
    assert refused > 130


def test_damaged_pictures_of_every_format_raise_nothing_else(tmp_path, little_memory):
    rng = np.random.default_rng(1)
    for ending in ("bmp", "gif", "jpg", "png", "ppm", "tif", "webp"):
        path = tmp_path / f"x.{ending}"
        content = save(photo(), path).read_bytes()
        for _ in range(100):
            damaged = bytearray(content)
            for place in rng.integers(0, min(len(damaged), rng.choice([64, 10**6])), 3):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged[: rng.integers(1, len(damaged) + 1)] if rng.random() < 0.3 else damaged)
            for read in (header_and_photo, frames):
                with contextlib.suppress(FileProblem):
                    read(path)


def header_and_photo(path):
    read_header(path, 10**6)
    read_photo(path)


def frames(path):
    list(read_frames(Source(path, Path("x")), 10**6))


@pytest.fixture
def little_memory():
    """So that a picture that wants all there is does not get it."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_hundred_thousand_empty_files_are_refused_in_bounded_memory_and_time(tmp_path):
    (tmp_path / "train").mkdir()
    for number in range(100_000):
        os.close(os.open(f"{tmp_path}/train/{number}.jpg", os.O_CREAT))
    data = PairsDataModule(str(tmp_path), **OPTIONS)
    started = time.process_time()

    def index():
        with pytest.raises(DataError) as caught:
            data.index(["train"])
        assert "empty file (100000)" in str(caught.value)
        assert "... and 99990 more" in str(caught.value)
        assert len(str(caught.value)) < 2000

    assert peak_of(index) < 200 * 2**20
    assert time.process_time() - started < 60


def test_no_pickle_is_read_from_a_cache_or_a_packed_data_set(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    data = GtFineDataModule(str(write_gtfine(tmp_path / "data")), **OPTIONS, cache_dir=str(tmp_path / "cache"))
    counts = image_class_pixels(data)
    (kept,) = (tmp_path / "cache/class-pixels").iterdir()
    for content in (pickle.dumps(SYSTEM), object_array(), b""):
        kept.write_bytes(content)
        np.testing.assert_array_equal(image_class_pixels(data), counts)
        assert f"{kept} is damaged and is made anew" in caplog.text
        caplog.clear()
    about = {"format": 1, "layout": "folders", "settings": {}, "shards": [["../../secret", 1]], "time_ns": 0}
    for array, message in (
        (np.array([SYSTEM], object), "allow_pickle"),
        (np.array(json.dumps(about)), "a shard outside"),
    ):
        np.savez(tmp_path / "index.npz", about=array, names=np.array([b"x"]), places=np.zeros((1, 3), np.int64))
        with pytest.raises(DataError, match=f"index.npz is damaged .*{message}"):
            Pack.load(str(tmp_path))
    assert not (tmp_path / "marker").exists()


def object_array():
    buffer = io.BytesIO()
    np.save(buffer, np.array([SYSTEM], object))
    return buffer.getvalue()
