import itertools
import time

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from cityseg.data import clusters, samples
from cityseg.data.clusters import (
    cluster_space,
    cluster_warnings,
    distinct_colors,
    find_centers,
    numbered_space,
    sample_colors,
)
from cityseg.errors import DataError
from cityseg.labels import LabelSpace

ROAD, SIDEWALK, SKY, CAR = (128, 64, 128), (244, 35, 232), (70, 130, 180), (0, 0, 142)


def pixels(counts):
    """``{colour: pixels}`` as one array of colours."""
    return np.concatenate([np.tile(np.array(color, np.uint8), (count, 1)) for color, count in counts.items()])


@pytest.fixture(scope="module")
def blurred():
    """Noisy pixels of twelve colours, far more than one batch of K-means."""
    rng = np.random.default_rng(3)
    colors = rng.integers(0, 256, (12, 3))[rng.integers(0, 12, 30_000)]
    return np.clip(colors + rng.normal(0, 12, colors.shape), 0, 255).astype(np.uint8)


def test_centers_are_those_of_scikit_learn_rounded(blurred):
    expected = MiniBatchKMeans(n_clusters=10, random_state=42).fit(blurred).cluster_centers_
    centers = np.array(find_centers(blurred, 10, 42))
    assert np.abs(centers - expected).max() <= 0.5


def test_another_seed_finds_other_centers(blurred):
    assert find_centers(blurred, 10, 42) != find_centers(blurred, 10, 1)


def test_k_means_runs_in_one_thread_whatever_the_machine_has(blurred, monkeypatch):
    seen = []

    class Recording(MiniBatchKMeans):
        def fit(self, colors):
            fitted = super().fit(colors)
            seen.append(fitted._n_threads)
            return fitted

    monkeypatch.setattr(clusters, "MiniBatchKMeans", Recording)
    with threadpool_limits(limits=2):
        find_centers(blurred, 10, 42)
    assert seen == [1]


def test_fewer_colours_than_clusters_names_both_numbers_and_the_fix():
    with pytest.raises(DataError, match=r"data\.clusters=4: .* only 3 different colours. Fix: .*data\.clusters=3"):
        find_centers(pixels({ROAD: 50, SKY: 50, CAR: 2}), 4, 42)


def test_centers_that_round_to_one_colour_become_neighbouring_colours():
    road = np.array([[128.0, 63.0, 127.0], [128.0, 63.0, 127.2], [70.4, 129.6, 179.0], [128.3, 63.0, 127.0]])
    assert distinct_colors(road) == [(128, 63, 127), (128, 63, 128), (70, 130, 179), (129, 63, 127)]
    crowd = np.array(distinct_colors(np.zeros((255, 3))))
    assert len(np.unique(crowd, axis=0)) == 255
    assert crowd.min() == 0
    assert np.linalg.norm(crowd, axis=1).max() < 8.5  # an eighth of a ball of that radius holds some 255 colours


def images(count, size):
    """Label images whose every pixel tells its image (red) and its place in it (green, blue)."""
    places = np.stack(np.divmod(np.arange(size * size), 256), axis=-1).reshape(size, size, 2)
    return [
        np.concatenate([np.full((size, size, 1), i), places], axis=2, dtype=np.uint8, casting="unsafe")
        for i in range(count)
    ]


def test_small_data_is_used_whole_and_in_order():
    given = images(5, 8)
    np.testing.assert_array_equal(sample_colors(given.__getitem__, 5, 42), np.concatenate(given).reshape(-1, 3))


def test_of_more_pixels_every_image_gives_equally_many_none_twice(monkeypatch):
    monkeypatch.setattr(clusters, "SAMPLED_PIXELS", 1000)
    drawn = sample_colors(images(7, 32).__getitem__, 7, 42)
    assert drawn[:, 0].tolist() == np.repeat(range(7), 1000 // 7).tolist()
    assert len(np.unique(drawn, axis=0)) == len(drawn)


def test_images_draw_different_places(monkeypatch):
    monkeypatch.setattr(clusters, "SAMPLED_PIXELS", 200)
    first, second = sample_colors(images(2, 32).__getitem__, 2, 42)[:, 1:].reshape(2, 100, 2).tolist()
    assert first != second


def test_the_draw_depends_on_the_seed_alone_not_on_cores_or_which_file_is_slow(monkeypatch):
    monkeypatch.setattr(clusters, "SAMPLED_PIXELS", 600)
    given = images(6, 32)

    def slow(index):
        time.sleep(0.02 * (6 - index))
        return given[index]

    monkeypatch.setattr(samples, "available_cores", lambda: 8)
    many = sample_colors(slow, 6, 42)
    monkeypatch.setattr(samples, "available_cores", lambda: 1)
    np.testing.assert_array_equal(many, sample_colors(given.__getitem__, 6, 42))
    assert (many != sample_colors(given.__getitem__, 6, 7)).any()


def test_clusters_are_named_and_ordered_by_their_nearest_class():
    near_road, far_road, dark, sky = (130, 66, 130), (120, 70, 120), (3, 3, 3), (70, 128, 180)
    for centers in itertools.permutations([near_road, far_road, dark, sky]):
        space = cluster_space(centers)
        assert space.name == "kmeans4"
        assert space.class_names == ("road", "road 2", "sky", "void")
        assert space.colors == (near_road, far_road, sky, dark)
        assert space.to_label_ids(np.arange(4, dtype=np.uint8)).tolist() == [7, 7, 23, 0]


def test_of_the_void_colours_only_black_names_a_cluster():
    # Blends of car (0, 0, 142) with darker colours, from street photos; the trailer's (0, 0, 110) is nearer.
    assert cluster_space([(10, 3, 123), (25, 12, 108)]).class_names == ("car", "car 2")


def test_a_space_of_clusters_survives_a_checkpoint_and_its_own_order():
    space = cluster_space([(5, 3, 5), (130, 62, 125), (91, 125, 111)])
    assert LabelSpace.from_dict(space.to_dict()) == space == cluster_space(space.colors)


def test_before_they_are_found_clusters_have_numbers():
    assert numbered_space(255).num_classes == 255
    assert numbered_space(3).class_names == ("cluster 1", "cluster 2", "cluster 3")


def test_doubled_classes_are_warned_of_by_name():
    road, shade, glare = ROAD, (120, 70, 120), (134, 64, 128)
    found = pixels({road: 10, SKY: 10})
    (text,) = cluster_warnings(cluster_space([road, shade, SKY]), found)
    assert text == "of the clusters 2 are nearest to road: each is a class of its own"
    (text,) = cluster_warnings(cluster_space([road, shade, glare, SKY, (72, 130, 178)]), found)
    assert "3 are nearest to road, 2 are nearest to sky" in text


def test_lost_classes_are_warned_of_by_name_and_share_the_largest_first():
    blurred_sidewalk, far_from_any = (244, 45, 232), (20, 200, 20)
    found = pixels({ROAD: 7000, CAR: 900, blurred_sidewalk: 2000, far_from_any: 100})
    (text,) = cluster_warnings(cluster_space([ROAD, SKY]), found)
    assert text.startswith("no cluster is nearest to sidewalk (20.00 %), car (9.00 %): ")
    assert "blends" not in text


def test_a_tiny_share_is_said_to_be_doubtful_and_next_to_nothing_is_not_named():
    (text,) = cluster_warnings(cluster_space([ROAD]), pixels({ROAD: 29_980, CAR: 18, SKY: 2}))
    assert "car (0.06 %)" in text
    assert "below 0.1 % it may be blends" in text
    assert "sky" not in text


def test_nothing_doubled_or_lost_is_nothing_to_warn_of():
    assert cluster_warnings(cluster_space([ROAD, SKY]), pixels({ROAD: 5, SKY: 5})) == []
