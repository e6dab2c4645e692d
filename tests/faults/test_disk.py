"""A disk that is full, read-only or gone: what was there stays, what failed is named, and the run goes on later."""

import builtins
import errno
import io
import os
import re
import resource
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io import gfile

from cityseg import files
from cityseg.checkpoints import SealedCheckpointIO, is_sealed
from cityseg.crossval.output import write_summary
from cityseg.data.pack import pack
from cityseg.data.pictures import Frame
from cityseg.data.scenes import scenes_root
from cityseg.data.split_files import Split, write_split
from cityseg.data.statistics import image_class_pixels
from cityseg.errors import WriteError
from cityseg.files import locked, write_json
from cityseg.image_counts import ImageCounts, write_image_counts
from cityseg.labels import label_space
from cityseg.reports.plots import plot_confusion, plot_folds
from cityseg.reports.tensorboard import TensorBoard
from cityseg.runs import scoring, server
from cityseg.runs.export import write as export
from cityseg.runs.objects import build_network
from cityseg.runs.prediction import Prediction, Results
from tests.conftest import TINY
from tests.crossval.sweeps import pictures, write_run
from tests.data.layouts import write_gtfine
from tests.data.test_cache import cached
from tests.test_resume import GAN, GAN_BASE, content, equal

pytestmark = pytest.mark.slow  # runs, and plots that are drawn again and again

SPACE = label_space("cityscapes19")
ENOSPC = r"not written \(No space left on device\).*Fix: make space on the disk"
EROFS = r"not written \(Read-only file system\).*Fix: another folder, since this disk is read-only"


class Disk:
    """A folder that is a disk of its own where the system lets us mount one."""

    def __init__(self, folder: Path):
        self.folder, self._filler = folder, folder / "filler"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True, capture_output=True)
        self._mounts = 1

    def fill(self):
        with self._filler.open("wb", buffering=0) as file:
            while (room := os.statvfs(self.folder)).f_bavail:
                with suppress(OSError):  # a thread has written meanwhile
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), room.f_bavail * room.f_frsize)

    def refuse(self):
        """Become read-only; a second mount of the folder, since files that are open for writing hold the first."""
        subprocess.run(["mount", "--bind", self.folder, self.folder], check=True)
        self._mounts += 1
        subprocess.run(["mount", "-o", "remount,bind,ro", self.folder], check=True)

    def mend(self):
        if self._mounts == 2:
            subprocess.run(["umount", self.folder], check=True)
            self._mounts = 1
        self._filler.unlink(missing_ok=True)

    def close(self):
        for _ in range(self._mounts):
            subprocess.run(["umount", "-l", self.folder], check=True)


class PatchedDisk:
    """The same without a mount: files that Python opens for writing refuse what is written, or to be opened."""

    def __init__(self, folder: Path):
        self.folder, self._error, self._open = folder, 0, io.open
        folder.mkdir()
        self._fallocate = os.posix_fallocate
        builtins.open, io.open, os.posix_fallocate = self._opened, self._opened, self._allocated

    def _opened(self, path, mode="r", *args, **options):
        if self._error and set(mode) & set("wax+") and self._holds(path):
            if self._error == errno.EROFS:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            self._open(path, mode, *args, **options).close()
            path, mode = "/dev/full", mode.replace("x", "w")
        return self._open(path, mode, *args, **options)

    def _allocated(self, file, start, length):
        if self._error:
            raise OSError(self._error, os.strerror(self._error))
        self._fallocate(file, start, length)

    def _holds(self, path):
        path = Path("" if isinstance(path, int) else os.fsdecode(path))
        return self.folder in path.absolute().parents and path.suffix != ".lock"  # which holds nothing

    def fill(self):
        self._error = errno.ENOSPC

    def refuse(self):
        self._error = errno.EROFS

    def mend(self):
        self._error = 0

    def close(self):
        builtins.open, io.open, os.posix_fallocate = self._open, self._open, self._fallocate


def new_disk(folder, kind=Disk):
    try:
        return kind(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no disk can be mounted here, so that one is patched: {error}")
        folder.rmdir()
        return PatchedDisk(folder)


@pytest.fixture(params=[Disk, PatchedDisk], ids=["mounted", "patched"])
def disk(request, tmp_path):
    made = new_disk(tmp_path / "disk", request.param)
    yield made
    made.close()


@pytest.fixture
def run_disk(tmp_path):
    """The folder of a run."""
    made = new_disk(tmp_path / "stopped")
    yield made
    made.close()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "filler"}


def write_zip(folder, value):
    ids = folder.parent / "a_pred_labelIds.png"
    cv2.imwrite(str(ids), np.full((4, 8), value, np.uint8))
    server.write_server_archive(folder, "test", [ids])


def predict(targets, value, rate=None, frames=1, size=(4, 8)):
    """What a network would say of a picture, or of a video with so many frames a second."""
    results = Results(targets, SPACE, 0.5)
    try:
        for number in range(frames):
            noise = np.random.default_rng(number).integers(19, size=size, dtype=np.uint8)
            soft = np.full((19, *size), value, np.uint8)
            results.add(Frame(np.zeros((*size, 3), np.uint8), rate), Prediction((noise + value) % 19, None, soft))
        results.keep()
    finally:
        results.discard()


def counts(value):
    return ImageCounts(("a",), ("road", "sky"), np.full((1, 3, 2), value))


PARTS = Split(*(np.arange(count) for count in (1, 0, 0)))
WRITERS = {
    "checkpoint": lambda folder, value: SealedCheckpointIO().save_checkpoint({"value": value}, folder / "last.ckpt"),
    "json": lambda folder, value: write_json(folder / "metrics.json", [value] * 1000),
    "split": lambda folder, value: write_split(folder / "split.csv", [f"{value}.png"], PARTS),
    "image counts": lambda folder, value: write_image_counts(folder / "per_image.npz", counts(value)),
    "confusion plot": lambda folder, value: plot_confusion(np.eye(2) + value, ["road", "sky"], folder / "a.png"),
    "folds plot": lambda folder, value: plot_folds(
        {"unet": {0: value / 10}}, {"unet": {"mean": None, "interval": None}}, folder / "folds.png"
    ),
    "panel": lambda folder, value: scoring._save(np.full((4, 8, 3), value, np.uint8), folder / "panel.png"),
    "prediction": lambda folder, value: predict({"color": folder / "a.png", "soft": folder / "a.npz"}, value),
    "frames": lambda folder, value: predict({"train_ids": folder / "clip.frames"}, value, rate=25.0),
    "archive": write_zip,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_or_read_only_disk_leaves_the_older_file_and_nothing_else(disk, name, monkeypatch):
    monkeypatch.setattr(server, "CITYSCAPES_SIZE", (4, 8))
    write, folder = WRITERS[name], disk.folder
    write(folder, 1)
    before = contents(folder)
    for harm, message in ((disk.fill, ENOSPC), (disk.refuse, EROFS)):
        harm()
        with pytest.raises(WriteError, match=message) as error:
            write(folder, 2)
        disk.mend()
        assert any(str(path) in str(error.value) for path in (*before, *folder.iterdir()))
        assert contents(folder) == before
    write(folder, 2)
    assert contents(folder) != before
    assert contents(folder).keys() == before.keys()


def test_a_video_that_is_not_whole_is_not_kept(tmp_path):
    target = {"color": tmp_path / "clip.mp4"}
    predict(target, 1, 25.0, frames=20, size=(64, 64))
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # OpenCV writes by itself: no patch would see it
    try:
        with pytest.raises(
            WriteError, match=r"clip.mp4: not written \(the video is not whole: probably the disk is full"
        ):
            predict(target, 2, 25.0, frames=20, size=(64, 64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["torchscript", "safetensors"])
def test_an_export_to_a_full_disk_keeps_the_older_file(run_disk, name, compose_config):
    config = compose_config([key for key in TINY if "model." in key])
    config.model.pretrained = False
    network = build_network(config, SPACE)
    path = run_disk.folder / "network"
    path.write_bytes(b"older")
    run_disk.fill()
    with pytest.raises(WriteError, match=f"{path}: {ENOSPC}"):
        export(name, network, path, {}, 1.0)
    run_disk.mend()
    assert contents(run_disk.folder) == {path: b"older"}


def test_what_is_built_once_for_all_runs_is_whole_or_not_there(disk, tmp_path, monkeypatch):
    root, folder = write_gtfine(tmp_path / "data"), disk.folder
    space = {"label_space": "cityscapes19"}
    made = {
        "scenes": lambda: scenes_root("gtfine", cache_dir=folder, train=2, val=1, size=64),
        "shards": lambda: pack("gtfine", str(root), folder / "packed", settings=space),
        "decoded": lambda: cached(root, folder),
    }
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40))  # looked at before it fills
    for name, make in made.items():
        for harm, message in ((disk.fill, ENOSPC), (disk.refuse, EROFS)):
            harm()
            with pytest.raises(WriteError, match=message):
                make()
            disk.mend()
            assert {path.suffix for path in contents(folder)} <= {".lock"}, name
        make()
        assert contents(folder)
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_processes_that_draw_scenes_onto_a_full_disk_leave_none(run_disk, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr("cityseg.data.scenes.layouts.sys.executable", "false")  # as patched disks are of one process
    with pytest.raises(WriteError, match="2 of 2 processes that draw it failed"):
        scenes_root("pairs", cache_dir=run_disk.folder, train=80, val=0, size=32)
    assert not list(run_disk.folder.iterdir())


def test_class_pixels_that_cannot_be_kept_are_counted_all_the_same(disk, tmp_path, caplog):
    data = cached(write_gtfine(tmp_path / "data"), disk.folder, "none")
    disk.fill()
    first = image_class_pixels(data)
    assert re.search("class-pixels.*No space left", caplog.text)
    disk.mend()
    np.testing.assert_array_equal(image_class_pixels(data), first)
    np.testing.assert_array_equal(np.load(next(disk.folder.rglob("*.npy"))), first)


def test_a_summary_on_a_full_disk_keeps_the_older_one(disk):
    for fold in (0, 1):
        write_run(disk.folder, ["model=unet", f"fold={fold}"], pictures(fold), config={"cv": {"folds": 2}})
    write_summary(disk.folder, resamples=10)
    before = contents(disk.folder)
    disk.fill()
    with pytest.raises(WriteError, match=rf"cv/summary.json: {ENOSPC}"):
        write_summary(disk.folder, resamples=10)
    disk.mend()
    assert contents(disk.folder) == before


def after(patch, name, count, harm):
    """Do harm when a file is about to be written for the count-th time."""
    named, seen = files.refusals_named, []

    def watched(path):
        if path.name == name:
            seen.append(path)
            if len(seen) == count:
                harm()
        return named(path)

    patch.setattr(files, "refusals_named", watched)


whole = {}
SMALL = (*GAN, "model.discriminator.base_channels=4", "+model.generator.decoder_channels=[32, 16, 16, 8, 8]")
AT = [("last.ckpt.new", 1), ("last.ckpt.new", 3), ("history.csv", 2), ("metrics.json", 1)]


def result(folder):
    """What a run has come to, without what only counts where in the loop it is."""
    found = content(folder)
    for key in ("loops", "averages"):
        del found["checkpoint"][key]
    return found


def stops_and_goes_on(run_tiny, monkeypatch, disk, name, count, harm, message, *overrides, base=TINY):
    """A run whose disk fails when a file is to be written stops, and goes on as if nothing had been."""
    overrides = ("trainer.max_epochs=2", "augment=strong", *overrides)
    if base not in whole:
        whole[base] = result(run_tiny(*overrides, folder="whole", base=base))
    folder, last = disk.folder, disk.folder / "checkpoints/last.ckpt"
    with monkeypatch.context() as patch:
        after(patch, name, count, harm)
        with pytest.raises(WriteError, match=rf"{name}: {message}"):
            run_tiny(*overrides, folder="stopped", base=base)
    assert not (folder / "metrics.json").exists()
    assert last.exists() == ((name, count) != ("last.ckpt.new", 1))
    assert all(is_sealed(path) for path in folder.rglob("*.ckpt"))
    assert not list(folder.rglob("*.new*"))
    disk.mend()
    run_tiny(*((f"resume={folder}",) if last.exists() else overrides), folder="stopped", base=base)
    equal(whole[base], result(folder))


@pytest.mark.parametrize(("name", "count"), AT)
def test_a_run_on_a_full_disk_stops_and_goes_on_when_there_is_space(run_tiny, monkeypatch, run_disk, name, count):
    stops_and_goes_on(run_tiny, monkeypatch, run_disk, name, count, run_disk.fill, ENOSPC)


def test_an_adversarial_run_on_a_full_disk_does_too(run_tiny, monkeypatch, run_disk):
    stops_and_goes_on(run_tiny, monkeypatch, run_disk, "last.ckpt.new", 3, run_disk.fill, ENOSPC, *SMALL, base=GAN_BASE)


def test_a_run_whose_disk_becomes_read_only_does_too(run_tiny, monkeypatch, run_disk):
    stops_and_goes_on(run_tiny, monkeypatch, run_disk, "last.ckpt.new", 2, run_disk.refuse, EROFS)


def moved(folder):
    folder.rename(folder.with_name("moved"))


def replaced(folder):
    moved(folder)
    folder.mkdir()
    (folder / ".lock").touch()


def a_file(folder):
    moved(folder)
    folder.touch()


@pytest.mark.parametrize("harm", [shutil.rmtree, replaced, a_file])
def test_a_run_whose_folder_has_gone_stops_at_its_next_file_and_makes_no_other(run_tiny, monkeypatch, tmp_path, harm):
    folder = tmp_path / "run"
    after(monkeypatch, "last.ckpt.new", 1, lambda: harm(folder))
    with pytest.raises(WriteError, match=r"last.ckpt.new: not written \(.*Fix: (the folder has gone|another folder)"):
        run_tiny()
    assert not folder.is_dir() or {path.name for path in folder.iterdir()} <= {".lock"}


def test_without_room_for_events_a_run_goes_on_and_says_so_once(run_tiny, monkeypatch, caplog):
    calls = []

    def append(self, filename, content, binary_mode=False):
        calls.append(filename)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, filename, content, binary_mode)

    real = gfile.LocalFileSystem.append
    monkeypatch.setattr(gfile.LocalFileSystem, "append", append)
    folder = run_tiny()
    assert (folder / "metrics.json").is_file()
    assert len(calls) > 20
    # One line for the file of the epochs, and one for that of the final figures.
    assert caplog.text.count("TensorBoard's file is no longer written (No space left on device)") == 2
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["scalars"]
    assert len(folder.joinpath("history.csv").read_text().splitlines()) == 2


def test_events_on_a_full_disk_or_in_a_folder_that_has_gone_harm_nobody(disk, caplog):
    for number, harm in enumerate((disk.fill, lambda: shutil.rmtree(disk.folder / "1"))):
        logger = TensorBoard(str(disk.folder / str(number)))
        logger.log_hyperparams({"model": "unet"})
        logger.save()
        harm()
        for step in range(200):
            logger.log_metrics({"train/loss": 1.0}, step)
        logger.save()
        logger.finalize("failed")
        disk.mend()
        assert caplog.text.count("no longer written") == number + 1


def test_a_lock_on_a_full_disk_is_a_clear_refusal(disk):
    disk.fill()
    with pytest.raises(WriteError, match=r"\.lock: not written"), locked(disk.folder / "run"):
        pytest.fail("not reached")
    disk.mend()
    with locked(disk.folder / "run"), pytest.raises(ZeroDivisionError):  # errors of the run are not the disk's
        raise ZeroDivisionError
