import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import jaccard_score

from cityseg.crossval.statistics import (
    bootstrap_mean_iou,
    corrected_t_test,
    holm,
    mean_iou,
    percentile_interval,
    spread,
)
from cityseg.image_counts import count_pixels

from .sweeps import Pictures, pictures

DIFFERENCES = [0.021, 0.034, -0.004, 0.012, 0.027]


def test_spread_is_the_sample_standard_deviation_and_students_interval():
    values = [0.61, 0.59, 0.64, 0.60, 0.57]
    found = spread(values)
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-15)
    assert found["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    assert found["interval"] == pytest.approx(list(expected), abs=1e-12)


def test_absent_values_are_left_out_and_counted():
    assert spread([None, 0.5, None, 0.7]) == spread([0.5, 0.7])
    assert spread([0.5, None]) == {"mean": 0.5, "std": None, "interval": None, "folds": 1}
    assert spread([None]) == {"mean": None, "std": None, "interval": None, "folds": 0}


def test_without_shared_training_data_the_corrected_test_is_the_paired_t_test():
    found = corrected_t_test(DIFFERENCES, 0.0)
    expected = stats.ttest_1samp(DIFFERENCES, 0)
    assert (found["t"], found["p"]) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-12)
    assert found["interval"] == pytest.approx(list(expected.confidence_interval(0.95)), abs=1e-12)


@pytest.mark.parametrize("ratio", [0.25, 1 / 9, 1.0])
def test_the_correction_divides_t_by_what_overlap_adds_to_the_variance(ratio):
    found = corrected_t_test(DIFFERENCES, ratio)
    variance = sum((d - sum(DIFFERENCES) / 5) ** 2 for d in DIFFERENCES) / 4
    t = sum(DIFFERENCES) / 5 / math.sqrt((1 / 5 + ratio) * variance)
    assert found["t"] == pytest.approx(t, rel=1e-12)
    assert found["p"] == pytest.approx(2 * stats.t.sf(t, 4), rel=1e-12)
    assert found["df"] == 4


def test_the_interval_of_the_difference_ends_at_zero_where_p_is_five_percent():
    error = math.sqrt(1 / 5 + 1 / 4) * np.std(DIFFERENCES, ddof=1)
    shifted = np.array(DIFFERENCES) - np.mean(DIFFERENCES) + stats.t.ppf(0.975, 4) * error
    found = corrected_t_test(shifted.tolist(), 1 / 4)
    assert found["p"] == pytest.approx(0.05, abs=1e-12)
    assert found["interval"][0] == pytest.approx(0, abs=1e-12)


def test_exchanging_the_models_changes_the_sign_alone():
    there, back = corrected_t_test(DIFFERENCES, 0.25), corrected_t_test([-d for d in DIFFERENCES], 0.25)
    assert there["p"] == back["p"]
    assert there["t"] == -back["t"]


@pytest.mark.parametrize("differences", [[], [0.02], [0.02, 0.02, 0.02], [0.1 + 0.2, 0.3]])
def test_without_spread_there_is_no_test(differences):
    found = corrected_t_test(differences, 0.25)
    assert found["t"] is found["p"] is found["interval"] is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.5, 0.001, 0.4], [0.8, 0.003, 0.8]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([None, 0.03], [None, 0.03]),
        ([], []),
    ],
)
def test_holm_multiplies_by_the_tests_left_and_never_falls(given, expected):
    assert holm(given) == [None if p is None else pytest.approx(p) for p in expected]


def test_mean_iou_leaves_absent_classes_out_as_scikit_learn_does():
    made = pictures(5, classes=3)
    counts = count_pixels(made.prediction, made.truth, 4).sum(axis=0)
    assert mean_iou(counts) == pytest.approx(jaccard_score(*made.flat(), average="macro"), abs=1e-15)
    assert np.isnan(mean_iou(np.zeros((3, 4), np.int64)))


def test_bootstrap_pools_the_pixels_of_the_images_that_were_drawn():
    made = pictures(7, images=3)
    counts = count_pixels(made.prediction, made.truth, 4)
    possible = [
        jaccard_score(*Pictures(made.truth[[a, b, c]], made.prediction[[a, b, c]]).flat(), average="macro")
        for a in range(3) for b in range(3) for c in range(3)
    ]  # fmt: skip
    drawn = bootstrap_mean_iou([counts], resamples=450)[0]
    nearest = np.abs(drawn[:, None] - np.array(possible)).min(axis=1)
    assert nearest.max() < 1e-14
    assert drawn.size == 450
    assert drawn.mean() == pytest.approx(np.mean(possible), abs=4 * np.std(possible) / math.sqrt(450))
    assert drawn.std() == pytest.approx(np.std(possible), rel=0.2)


def test_bootstrap_draws_the_same_images_for_every_model():
    made = pictures(7, images=8)
    counts = count_pixels(made.prediction, made.truth, 4)
    a, b = bootstrap_mean_iou([counts, counts * 2], resamples=300)
    np.testing.assert_allclose(a, b, atol=1e-14)
    assert a.std() > 0.001


def test_percentile_interval_is_the_middle_of_the_samples():
    samples = np.append(np.random.default_rng(0).permutation(1001) / 1000, np.nan)
    assert percentile_interval(samples) == pytest.approx([0.025, 0.975])
    assert percentile_interval(np.array([np.nan])) is None
