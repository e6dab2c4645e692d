import numpy as np

from cityseg.data.samples import Samples, in_threads, list_files


def test_paths_come_back_as_they_went_in(tmp_path):
    photos = ["a/größe.png", "a/long/er_leftImg8bit.png"]
    samples = Samples.from_paths(tmp_path, photos, photos[::-1])
    assert samples.names() == photos
    assert [samples.photo(0), samples.label(0)] == [tmp_path / photos[0], tmp_path / photos[1]]
    assert samples.name(1) == "er"
    assert len(Samples.from_paths(tmp_path, [], None)) == 0


def test_files_are_listed_in_numeric_order_by_their_endings(tmp_path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    for name in ("10.jpg", "9.JPG", "notes.txt", "2.png", ".jpg"):
        (folder / name).touch()
    assert list_files(tmp_path, folder, frozenset({".jpg"})) == ["set/train/9.JPG", "set/train/10.jpg"]
    assert list_files(tmp_path, tmp_path / "missing", frozenset({".jpg"})) == []


def test_threads_keep_the_order_also_of_more_inputs_than_are_under_way():
    assert list(in_threads(lambda number: int(number) + 1, np.arange(4100))) == list(range(1, 4101))
