import json
import pickle
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.pack import pack
from cityseg.data.pairs import PairsDataModule
from cityseg.data.statistics import image_class_pixels
from cityseg.data.stream import INDEX, stream
from cityseg.errors import CitysegError
from cityseg.reports.run_files import read_history
from tests.data.layouts import OPTIONS, write_gtfine, write_pairs

webdataset = pytest.importorskip("webdataset")


@pytest.fixture
def packed(tmp_path):
    """A data set, and its shards of two or three samples each."""
    root = write_gtfine(tmp_path / "data", (("train", 7), ("val", 2)))
    pack("gtfine", str(root), tmp_path / "packed", shard_bytes=6_000)
    return root, tmp_path / "packed"


def test_a_pack_gives_the_samples_of_its_files_in_their_order(packed):
    root, folder = packed
    files, streamed = GtFineDataModule(str(root), **OPTIONS), stream(str(folder), **OPTIONS)
    assert len(list(folder.glob("train-*.tar"))) == 3
    for data in (files, streamed):
        data.keep_splits()
    for split in ("train", "val"):
        assert streamed.samples(split).names() == files.samples(split).names()
    assert streamed.split[0] == files.split[0]
    for one, two in zip(files.train_dataloader(), streamed.train_dataloader(), strict=True):
        assert all((one[key] == two[key]).all() for key in ("photo", "target", "index"))
    assert (image_class_pixels(streamed) == image_class_pixels(files)).all()
    assert streamed.cities(streamed.samples("train").names()) == ["ulm"] * 7


def test_the_shards_are_the_files_byte_for_byte_in_the_format_of_webdataset(packed):
    root, folder = packed
    photos = sorted(root.glob("leftImg8bit/train/*/*"))
    shards = sorted(map(str, folder.glob("train-*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert [sample["png"] for sample in samples] == [photo.read_bytes() for photo in photos]
    labels = sorted(root.glob("gtFine/train/*/*labelIds.png"))
    assert [sample["label.png"] for sample in samples] == [label.read_bytes() for label in labels]


def test_paths_into_a_pack_reach_spawned_workers(packed):
    samples = stream(str(packed[1]), **OPTIONS).samples("val")
    again = pickle.loads(pickle.dumps(samples))
    assert again.photo(1).open("rb").read() == (packed[0] / again.names()[1]).read_bytes()
    assert again.photo(1).stat().st_size == (packed[0] / again.names()[1]).stat().st_size


@pytest.mark.slow
def test_settings_and_found_classes_are_those_of_the_layout(tmp_path):
    root = write_pairs(tmp_path / "data")
    pack("pairs", str(root), tmp_path / "packed", settings={"labels": "kmeans", "clusters": 3})
    files, streamed = PairsDataModule(str(root), labels="kmeans", clusters=3, **OPTIONS), stream(
        str(tmp_path / "packed"), **OPTIONS)  # fmt: skip
    for data in (files, streamed):
        data.keep_splits()
    found = files.fit_labels()
    assert streamed.fit_labels() == found
    assert stream(str(tmp_path / "packed"), **found, **OPTIONS).label_space.colors == files.label_space.colors


def cut(folder):
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "train-000001.tar").unlink(), "train-000001.tar: found no such file, expected"),
        (cut, "train-000001.tar: found 3000 bytes, expected"),
        (lambda folder: (folder / INDEX).unlink(), "expected the folder that python -m cityseg.data.pack"),
        (lambda folder: (folder / INDEX).write_bytes(b"PK\3\4 and no more"), "index.npz is damaged"),
    ],
    ids=["no shard", "half a shard", "no index", "half an index"],
)
def test_a_damaged_pack_is_named_before_training(packed, damage, message):
    damage(packed[1])
    with pytest.raises(CitysegError, match=message):
        stream(str(packed[1]), **OPTIONS).keep_splits()


def test_a_shard_that_is_cut_while_training_is_named(packed):
    samples = stream(str(packed[1]), **OPTIONS).samples("train")
    cut(packed[1])
    with pytest.raises(CitysegError, match=r"truncated shard.*train-000001.tar.*expected"):
        [samples.photo(index).open("rb") for index in range(7)]
    (packed[1] / "train-000001.tar").unlink()
    with pytest.raises(CitysegError, match=r"missing shard.*train-000001.tar"):
        [samples.photo(index).open("rb") for index in range(7)]


class WithRanges(SimpleHTTPRequestHandler):
    """Parts of files, as every web server but Python's own gives them."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        if wanted is None:
            return super().do_GET()
        start, stop = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        with open(self.translate_path(self.path), "rb") as file:
            content = file.read()[start : stop + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(packed):
    with HTTPServer(("127.0.0.1", 0), partial(WithRanges, directory=packed[1])) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield packed[0], f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_a_run_on_remote_shards_scores_what_a_run_on_the_files_does(run_tiny, served):
    root, url = served
    settings = ("model.pretrained=false", "data.crop=24", "data.workers=2", "trainer.max_epochs=2", "logger=none")
    files = run_tiny(f"data.root={root}", *settings, folder="files")
    streamed = run_tiny("data=stream", f"data.root={url}", *settings, folder="stream")
    expected, found = (json.loads((run / "metrics.json").read_text()) for run in (files, streamed))
    assert found["dataset"] == url
    for key in ("miou", "loss", "confusion_matrix", "images", "best_epoch"):
        assert found[key] == expected[key], key
    timed = ("seconds", "images_per_second")
    histories = [[{k: v for k, v in row.items() if k not in timed} for row in read_history(run / "history.csv")]
                 for run in (files, streamed)]  # fmt: skip
    assert histories[0] == histories[1]
