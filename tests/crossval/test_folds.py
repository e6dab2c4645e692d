import json

import pytest

from cityseg.crossval.folds import read_sweep
from cityseg.crossval.output import to_markdown, write_summary
from cityseg.crossval.summary import summarize
from cityseg.errors import DataError
from cityseg.reports.html.page import OWN_CLASSES

from .sweeps import pictures, write_overrides, write_run


def statuses(group):
    return {fold: group.runs[fold].status for fold in group.runs}


def test_runs_are_grouped_by_what_differs_beside_the_fold(tmp_path):
    for model in ("unet", "manet"):
        for fold in (0, 1):
            write_run(tmp_path, [f"model={model}", f"fold={fold}", "+data.tag=a=b"], pictures(fold))
    sweep = read_sweep(tmp_path)
    assert sweep.common == {"data.tag": "a=b"}
    assert [(group.name, group.overrides) for group in sweep.groups] == [
        ("model=manet", {"model": "manet"}),
        ("model=unet", {"model": "unet"}),
    ]
    assert [list(group.runs) for group in sweep.groups] == [[0, 1], [0, 1]]


def test_folds_are_sorted_as_numbers(tmp_path):
    for fold in (10, 9, 0):
        write_run(tmp_path, [f"fold={fold}"], pictures(fold))
    assert list(read_sweep(tmp_path).groups[0].runs) == [0, 9, 10]


def test_a_lone_group_is_called_what_the_sweep_is(tmp_path):
    folder = tmp_path / "unet-gtfine" / "multirun" / "2026-01-31_12-00-00"
    write_run(folder, ["fold=0"], pictures(0))
    assert read_sweep(folder).name == read_sweep(folder).groups[0].name == "unet-gtfine"


def test_the_value_of_a_key_may_hold_slashes_which_nest_the_folders(tmp_path):
    run = write_run(tmp_path, ["data.root=/data/streets", "fold=3"], pictures(0))
    assert run.parent != tmp_path
    assert list(read_sweep(tmp_path).groups[0].runs) == [3]


def test_folders_of_a_resumed_run_are_not_runs_of_their_own(tmp_path):
    run = write_run(tmp_path, ["fold=0"], pictures(0))
    write_overrides(run / ".hydra" / "resumed_x", ["fold=0"])
    assert len(read_sweep(tmp_path).groups[0].runs) == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (0, 2)),
        ({"cv": None}, (0, 2)),
        ({"cv": {"folds": 4}}, (0, 1, 2, 3)),
        ({"cv": {"folds": 2, "repeats": 2}}, (0, 1, 2, 3)),
        ({"cv": {"folds": "${other}"}}, (0, 2)),
    ],
)
def test_expected_folds_are_those_seen_and_those_the_config_asks_for(tmp_path, config, expected):
    for fold in (0, 2):
        write_run(tmp_path, [f"fold={fold}"], pictures(fold), config=config)
    assert read_sweep(tmp_path).groups[0].expected == expected


def test_a_fold_that_one_group_has_is_expected_of_the_others(tmp_path):
    for overrides in (["fold=0", "model=a"], ["fold=1", "model=a"], ["fold=0", "model=b"]):
        write_run(tmp_path, overrides, pictures(0))
    assert [group.expected for group in read_sweep(tmp_path).groups] == [(0, 1), (0, 1)]


def test_fold_is_taken_from_the_config_where_it_was_not_typed(tmp_path):
    write_run(tmp_path, ["seed=1"], pictures(0), config={"fold": 4})
    assert list(read_sweep(tmp_path).groups[0].runs) == [4]


def test_a_run_without_figures_is_unfinished_or_failed_with_its_error(tmp_path):
    for fold in range(3):
        write_overrides(tmp_path / f"fold={fold}", [f"fold={fold}"])
    (tmp_path / "fold=1" / "failed.json").write_text(json.dumps({"error": "no such city"}))
    (tmp_path / "fold=2" / "failed.json").write_text("[cut")
    group = read_sweep(tmp_path).groups[0]
    assert statuses(group) == {0: "unfinished", 1: "failed", 2: "failed"}
    assert [run.error for run in group.runs.values()] == [None, "no such city", "[cut"]
    assert group.finished == {}


def test_figures_count_even_where_an_earlier_try_failed(tmp_path):
    run = write_run(tmp_path, ["fold=0"], pictures(0))
    (run / "failed.json").write_text('{"error": "old"}')
    assert statuses(read_sweep(tmp_path).groups[0]) == {0: "finished"}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{cut", "metrics.json cannot be read"),
        ('{"images": 3}', "no miou, mpa, per_class, confusion_matrix, train_images"),
    ],
)
def test_figures_that_cannot_be_used_are_a_failure_that_says_why(tmp_path, content, error):
    write_overrides(tmp_path / "fold=0", ["fold=0"])
    (tmp_path / "fold=0" / "metrics.json").write_text(content)
    run = read_sweep(tmp_path).groups[0].runs[0]
    assert run.status == "failed"
    assert error in run.error


def test_a_folder_without_folds_is_refused(tmp_path):
    write_run(tmp_path, ["model=unet"], pictures(0))
    with pytest.raises(DataError, match="found 1 run folders and none of a fold"):
        read_sweep(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_sweep(tmp_path / "nowhere")


def test_a_fold_that_is_there_twice_is_refused(tmp_path):
    for stamp in ("monday", "tuesday"):
        write_run(tmp_path / stamp, ["fold=0"], pictures(0))
    with pytest.raises(DataError, match=r"a fold that is there twice\n.*monday.*tuesday"):
        read_sweep(tmp_path)


def test_folds_whose_clusters_have_other_names_are_summarised_without_classes(tmp_path):
    for fold, names in enumerate([("road", "car"), ("road", "road 2")]):
        rows = {name: {"iou": 0.5, "accuracy": 0.5, "dice": 0.5} for name in names}
        figures = {"label_space": "kmeans2", "per_class": rows, "miou": 0.2 + 0.2 * fold}
        write_run(tmp_path, [f"fold={fold}"], pictures(fold), **figures)
    summary = summarize(read_sweep(tmp_path))
    (group,) = summary["groups"]
    assert group["scores"]["miou"]["mean"] == pytest.approx(0.3)
    assert (group["own_classes"], group["per_class"], group["pooled"], group["pooled_interval"]) == (
        True,
        {},
        None,
        None,
    )
    assert OWN_CLASSES in to_markdown(summary)
    write_summary(tmp_path)
    page = (tmp_path / "cv/report.html").read_text()
    assert OWN_CLASSES in page
    assert "Confusion matrix, pooled" not in page


def test_folds_of_other_classes_are_refused(tmp_path):
    write_run(tmp_path, ["fold=0"], pictures(0))
    write_run(tmp_path, ["fold=1"], pictures(1), per_class={"tree": {}})
    with pytest.raises(DataError, match="folds with different classes"):
        read_sweep(tmp_path)


def test_image_counts_of_another_scoring_are_refused(tmp_path):
    run = write_run(tmp_path, ["fold=0"], pictures(0))
    other = write_run(tmp_path / "other", ["fold=0"], pictures(1))
    (other / "per_image.npz").replace(run / "per_image.npz")
    (other / ".hydra" / "overrides.yaml").unlink()
    with pytest.raises(DataError, match="does not add up to the confusion matrix"):
        _ = read_sweep(tmp_path).groups[0].runs[0].image_counts
