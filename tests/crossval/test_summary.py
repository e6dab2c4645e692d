"""The summary of sweep folders, recomputed from their pictures with scikit-learn, numpy and scipy."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, recall_score

from cityseg.crossval.folds import read_sweep
from cityseg.crossval.output import close_sweep
from cityseg.crossval.summary import summarize
from cityseg.image_counts import read_image_counts, write_image_counts

from .sweeps import CLASSES, Pictures, pictures, write_overrides, write_run

FOLDS = range(5)


def joined(parts):
    return Pictures(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def miou(made):
    return jaccard_score(*made.flat(), average="macro")


def write_model(folder, model, error, folds=FOLDS, **options):
    """A model with its own mistakes on the images that every model sees; returns its pictures by fold."""
    made = {fold: pictures(fold + 100 * round(100 * error), error=error) for fold in folds}
    for fold in folds:
        write_run(folder, [f"fold={fold}", f"model={model}"], made[fold], **options)
    return made


def summary_of(folder, **options):
    return json.loads(json.dumps(summarize(read_sweep(folder), **{"resamples": 50, **options}), allow_nan=False))


@pytest.fixture
def five(tmp_path):
    # Fold 3 lacks the last class, in truth and prediction.
    made = {fold: pictures(fold, images=4 + fold, classes=3 if fold == 3 else 4) for fold in FOLDS}
    for fold in FOLDS:
        write_run(tmp_path, [f"fold={fold}"], made[fold])
    return made, summary_of(tmp_path)["groups"][0]


def test_mean_and_deviation_over_folds_are_those_of_scikit_learns_scores(five):
    made, group = five
    scorers = {
        "miou": miou,
        "mpa": lambda fold: recall_score(*fold.flat(), average="macro"),
        "dice": lambda fold: f1_score(*fold.flat(), average="macro"),
        "pixel_accuracy": lambda fold: np.mean(np.equal(*fold.flat())),
        "fwiou": lambda fold: jaccard_score(*fold.flat(), average="weighted"),
    }
    for key, score in scorers.items():
        values = [score(made[fold]) for fold in FOLDS]
        found = group["scores"][key]
        assert [row["scores"][key] for row in group["folds"]] == pytest.approx(values, abs=1e-12)
        assert found["mean"] == pytest.approx(np.mean(values), abs=1e-12)
        assert found["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        interval = stats.t.interval(0.95, 4, np.mean(values), np.std(values, ddof=1) / math.sqrt(5))
        assert found["interval"] == pytest.approx(list(interval), abs=1e-12)


def test_class_scores_leave_out_the_folds_without_the_class(five):
    made, group = five
    for index, name in enumerate(CLASSES):
        folds = [fold for fold in FOLDS if not (name == "bus" and fold == 3)]
        for key, score in (("iou", jaccard_score), ("accuracy", recall_score), ("dice", f1_score)):
            values = [score(*made[fold].flat(), labels=[index], average="macro") for fold in folds]
            found = group["per_class"][name][key]
            assert found["folds"] == len(folds)
            assert found["mean"] == pytest.approx(np.mean(values), abs=1e-12)
            assert found["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_pooled_matrix_and_its_miou_are_those_of_all_held_out_pixels(five):
    made, group = five
    everything = joined(made.values())
    assert group["pooled"]["confusion_matrix"] == confusion_matrix(*everything.flat()).tolist()
    assert group["pooled"]["miou"] == pytest.approx(miou(everything), abs=1e-12)
    assert group["pooled_interval"]["value"] == pytest.approx(miou(everything), abs=1e-12)
    assert group["pooled_interval"]["images"] == sum(len(fold.truth) for fold in made.values())
    low, high = group["pooled_interval"]["interval"]
    assert low < miou(everything) < high


def test_best_and_worst_fold_come_with_their_panels(five):
    made, group = five
    scores = [miou(made[fold]) for fold in FOLDS]
    assert (group["best"], group["worst"]) == (int(np.argmax(scores)), int(np.argmin(scores)))
    assert group["folds"][2]["panels"] == ["fold=2/predictions/a street.png"]


def test_missing_and_failed_folds_are_named_and_left_out(tmp_path):
    made = {fold: pictures(fold) for fold in (0, 3)}
    for fold in made:
        write_run(tmp_path, [f"fold={fold}"], made[fold], config={"cv": {"folds": 5}})
    for fold in (1, 2):
        write_overrides(tmp_path / f"fold={fold}", [f"fold={fold}"])
    (tmp_path / "fold=2" / "failed.json").write_text('{"error": "out of memory"}')
    summary = summary_of(tmp_path)
    assert (summary["finished"], summary["expected"]) == (2, 5)
    assert summary["groups"][0]["unfinished"] == [
        {"fold": 1, "run": "fold=1", "status": "unfinished", "error": None},
        {"fold": 2, "run": "fold=2", "status": "failed", "error": "out of memory"},
        {"fold": 4, "run": None, "status": "not started", "error": None},
    ]
    assert summary["groups"][0]["scores"]["miou"]["mean"] == pytest.approx(np.mean([miou(m) for m in made.values()]))


@pytest.mark.parametrize(("broken", "code"), [(None, 0), ("fold=1", 1)])
def test_exit_code_tells_of_a_failed_fold_but_not_of_one_never_started(tmp_path, broken, code):
    write_run(tmp_path, ["fold=0"], pictures(0), config={"cv": {"folds": 3}})
    if broken:
        write_overrides(tmp_path / broken, [broken])
    assert close_sweep(tmp_path) == code


def test_a_sweep_without_a_finished_fold_has_a_summary_too(tmp_path):
    write_overrides(tmp_path / "fold=0", ["fold=0"])
    summary = summary_of(tmp_path)
    assert (summary["finished"], summary["groups"][0]["pooled"]) == (0, None)


def test_a_single_group_has_no_comparison(tmp_path):
    write_run(tmp_path, ["fold=0"], pictures(0))
    assert summary_of(tmp_path)["comparison"] is None


def test_paired_test_is_nadeau_and_bengios_on_the_differences_per_fold(tmp_path):
    good, bad = (write_model(tmp_path, name, error) for name, error in (("unet", 0.2), ("manet", 0.25)))
    (pair,) = summary_of(tmp_path)["comparison"]["pairs"]
    differences = [miou(good[fold]) - miou(bad[fold]) for fold in FOLDS]
    assert (pair["a"], pair["b"], pair["folds"]) == ("model=unet", "model=manet", list(FOLDS))
    assert pair["differences"] == pytest.approx(differences, abs=1e-12)
    # 6 images held out, 20 trained on
    t = np.mean(differences) / np.sqrt((1 / 5 + 6 / 20) * np.var(differences, ddof=1))
    assert pair["test"]["t"] == pytest.approx(t, rel=1e-9)
    assert pair["test"]["p"] == pytest.approx(2 * (1 - stats.t.cdf(abs(t), 4)), rel=1e-9)
    assert pair["p_holm"] is None


def test_of_three_models_every_pair_is_tested_with_holms_correction(tmp_path):
    for model, error in (("a", 0.3), ("b", 0.2), ("c", 0.21)):
        write_model(tmp_path, model, error)
    pairs = summary_of(tmp_path)["comparison"]["pairs"]
    raw = np.array([pair["test"]["p"] for pair in pairs])
    order = np.argsort(raw)
    expected = np.empty(3)
    expected[order] = np.minimum(1, np.maximum.accumulate(raw[order] * [3, 2, 1]))
    assert len(pairs) == 3
    assert [pair["p_holm"] for pair in pairs] == pytest.approx(expected.tolist(), rel=1e-12)


def test_ranking_is_by_the_folds_that_all_have(tmp_path):
    good = write_model(tmp_path, "good", 0.2)
    write_model(tmp_path, "bad", 0.4, folds=(0, 1))
    # Without fold 2 to 4 the others' scores do not count, however high they are.
    write_model(tmp_path, "worst", 0.5, folds=(0, 1))
    write_run(tmp_path, ["fold=2", "model=worst"], pictures(2, error=0.0))
    comparison = summary_of(tmp_path)["comparison"]
    assert comparison["folds"] == [0, 1]
    assert [(row["rank"], row["group"]) for row in comparison["ranking"]] == [
        (1, "model=good"), (2, "model=bad"), (3, "model=worst"),
    ]  # fmt: skip
    assert comparison["ranking"][0]["miou"]["mean"] == pytest.approx((miou(good[0]) + miou(good[1])) / 2)


def test_groups_with_other_folds_are_paired_on_the_common_ones(tmp_path):
    a = write_model(tmp_path, "a", 0.2, folds=(0, 1, 2, 3))
    b = write_model(tmp_path, "b", 0.3, folds=(1, 2, 3, 4))
    (pair,) = summary_of(tmp_path)["comparison"]["pairs"]
    assert (pair["folds"], pair["left_out"]) == ([1, 2, 3], [0, 4])
    assert pair["differences"] == pytest.approx([miou(a[fold]) - miou(b[fold]) for fold in (1, 2, 3)], abs=1e-12)
    assert pair["images"]["images"] == 18


def test_groups_without_a_common_fold_are_ranked_but_not_tested(tmp_path):
    write_model(tmp_path, "a", 0.2, folds=(0, 1))
    write_model(tmp_path, "b", 0.3, folds=(2, 3))
    comparison = summary_of(tmp_path)["comparison"]
    assert [row["group"] for row in comparison["ranking"]] == ["model=a", "model=b"]
    (pair,) = comparison["pairs"]
    assert (pair["test"]["p"], pair["images"]) == (None, None)
    assert "no fold in common" in pair["images_note"]


def test_bootstrap_of_the_difference_draws_the_same_images_for_both_models(tmp_path):
    """Two images, one easier for both models: separate draws would give differences that no one set has."""
    a, b = (pictures(seed, images=2, error=error) for seed, error in ((103, 0.2), (203, 0.3)))
    write_run(tmp_path, ["fold=0", "model=a"], a)
    write_run(tmp_path, ["fold=0", "model=b"], b)
    (pair,) = summary_of(tmp_path, resamples=400)["comparison"]["pairs"]
    picks = [[0, 0], [0, 1], [1, 1]]
    possible = [
        miou(Pictures(a.truth[p], a.prediction[p])) - miou(Pictures(b.truth[p], b.prediction[p])) for p in picks
    ]
    assert pair["images"]["value"] == pytest.approx(possible[1], abs=1e-12)
    assert pair["images"]["interval"] == pytest.approx([min(possible), max(possible)], abs=1e-12)


def test_without_image_counts_there_is_no_interval_over_images_and_a_reason(tmp_path):
    write_model(tmp_path, "a", 0.2)
    write_model(tmp_path, "b", 0.3, counts=False)
    summary = summary_of(tmp_path)
    (pair,) = summary["comparison"]["pairs"]
    assert pair["test"]["p"] is not None
    assert pair["images"] is None
    assert "per_image.npz" in pair["images_note"]
    assert [group["pooled_interval"] is None for group in summary["groups"]] == [False, True]


def test_folds_that_hold_out_other_images_are_not_paired_by_image(tmp_path):
    write_run(tmp_path, ["fold=0", "model=a"], pictures(0, images=4))
    write_run(tmp_path, ["fold=0", "model=b"], pictures(0, images=5))
    (pair,) = summary_of(tmp_path)["comparison"]["pairs"]
    assert "fold 0 holds out other images" in pair["images_note"]


def test_folds_with_clusters_of_their_own_are_not_paired_by_image(tmp_path):
    for model in "ab":
        for fold, names in enumerate([CLASSES, (*CLASSES[:-1], "another")]):
            rows = {name: {} for name in names}
            run = write_run(
                tmp_path, [f"fold={fold}", f"model={model}"], pictures(fold), label_space="kmeans4", per_class=rows
            )
            counts = read_image_counts(run / "per_image.npz")
            write_image_counts(run / "per_image.npz", replace(counts, class_names=names))
    (pair,) = summary_of(tmp_path)["comparison"]["pairs"]
    assert "each fold has classes of its own" in pair["images_note"]
