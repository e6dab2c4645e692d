import numpy as np
import pytest

from cityseg.data.gtfine import GtFineDataModule
from cityseg.data.statistics import class_pixel_counts
from tests.data.layouts import OPTIONS, label_ids, save, write_gtfine


@pytest.fixture
def data(tmp_path):
    write_gtfine(tmp_path / "data")

    def build(**options):
        return GtFineDataModule(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"), **OPTIONS, **options)

    return build


def test_training_pixels_are_counted_by_class_without_void(data):
    counts = class_pixel_counts(data())
    ids = label_ids()
    assert counts[[0, 10, 13]].tolist() == [4 * (ids == raw).sum() for raw in (7, 23, 26)]
    assert counts.sum() == 4 * (ids != 0).sum()


def test_counts_are_kept_and_counted_anew_when_a_label_or_its_reading_changes(data, tmp_path, monkeypatch):
    first = class_pixel_counts(data())
    kept = list((tmp_path / "cache/class-pixels").iterdir())
    assert len(kept) == 1
    kept[0].write_text(str([7] * 19))
    assert class_pixel_counts(data()).tolist() == [7] * 19  # read, not counted
    path = data().samples("train").label(0)
    save(np.full((24, 32), 7), path)
    assert class_pixel_counts(data()).tolist() != [7] * 19
    assert class_pixel_counts(data(label_space="cityscapes_categories")).shape == (7,)
    assert class_pixel_counts(data())[0] > first[0]
