import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from PIL import Image

from cityseg.crossval import __main__ as command
from cityseg.crossval.output import closing_lines, to_markdown, write_summary
from cityseg.reports.plots import folds_figure, plot_fold_curves

from .sweeps import pictures, write_overrides, write_run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two models, five folds, one of which failed."""
    folder = tmp_path_factory.mktemp("outputs") / "nets" / "multirun" / "now"
    for model, error in (("unet", 0.2), ("manet", 0.3)):
        for fold in range(5):
            if (model, fold) != ("manet", 2):
                made = pictures(fold + round(1000 * error), error=error, classes=3 if fold == 3 else 4)
                write_run(folder, [f"fold={fold}", f"model={model}", "seed=1"], made)
    failed = folder / "fold=2,model=manet,seed=1"
    write_overrides(failed, ["fold=2", "model=manet", "seed=1"])
    (failed / "failed.json").write_text(json.dumps({"error": "bus | tram\nmore"}))
    return folder


@pytest.fixture(scope="module")
def summary(sweep):
    return write_summary(sweep, resamples=20)


def cells(text, first):
    line = next(line for line in text.splitlines() if line.startswith(f"| {first}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_everything_is_written_into_cv(sweep, summary):
    written = {path.relative_to(sweep / "cv").as_posix() for path in (sweep / "cv").rglob("*.*")}
    plots = {f"plots/{name}.png" for name in ("curves", "folds", "confusion_1", "confusion_2")}
    assert written == {"summary.json", "summary.md", "report.html", *plots}
    assert json.loads((sweep / "cv" / "summary.json").read_text()) == summary
    assert write_summary(sweep, resamples=20) == summary  # cv itself is no run


def test_page_begins_with_percentages_over_the_folds_that_finished(sweep, summary):
    text = (sweep / "cv" / "summary.md").read_text()
    for group in summary["groups"]:
        values = [row["scores"]["miou"] for row in group["folds"]]
        mean, std = 100 * np.mean(values), 100 * np.std(values, ddof=1)
        assert f"**{group['name']}: mIoU {mean:.1f} ± {std:.1f} % over {len(values)} of 5 folds**" in text
    assert "- fold 2 failed: bus | tram (fold=2,model=manet,seed=1)\n" in text


def test_tables_have_a_row_for_each_fold_and_class(sweep, summary):
    text = to_markdown(summary).split("## model=unet")[1]
    fold = summary["groups"][1]["folds"][4]
    assert cells(text, "4")[:3] == ["4", f"{100 * fold['scores']['miou']:.1f}", f"{100 * fold['scores']['mpa']:.1f}"]
    assert cells(text, "bus")[-1] == "in 4 of 5"
    assert cells(text, "road")[-1] == "in 5 of 5"


def test_comparison_table_gives_points_p_and_the_folds_that_were_paired(summary):
    text = to_markdown(summary)
    (pair,) = summary["comparison"]["pairs"]
    row = cells(text, "model=unet \N{MINUS SIGN} model=manet")
    assert row[1].startswith(f"{100 * pair['test']['mean']:+.1f} ± ")
    assert row[4] == ("< 0.001" if pair["test"]["p"] < 0.001 else f"{pair['test']['p']:.3f}")
    assert "compared on 4 of 5 folds; not in both: 2" in text
    assert "| fold 0 | fold 1 | fold 3 | fold 4 |" in text


def test_every_table_row_has_as_many_cells_as_its_header(summary):
    for table in re.findall(r"(?:^\|.*\n)+", to_markdown(summary), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_every_link_of_the_page_leads_somewhere(sweep, summary):
    links = re.findall(r"\]\(([^)]+)\)", (sweep / "cv" / "summary.md").read_text())
    assert len(links) == 8
    for link in links:
        assert (sweep / "cv" / unquote(link)).is_file(), link


def test_closing_lines_give_parameters_scores_and_what_is_missing(summary):
    lines = closing_lines(summary)
    assert "  parameters 1,234,567, 1,000 trainable" in lines
    assert sum(bool(re.match(r"  mean ± std over folds: mIoU [\d.]+ ± [\d.]+ %, mPA [\d.]+ ± [\d.]+ %$", line))
               for line in lines) == 2  # fmt: skip
    assert "  fold 2 failed: bus | tram (fold=2,model=manet,seed=1)" in lines
    assert any(re.search(r"over 4 of 5 folds", line) for line in lines)
    assert re.match(r"model=unet against model=manet: mIoU \+[\d.]+ points over 4 common folds, p ", lines[-1])


def test_one_fold_has_no_deviation(tmp_path):
    write_run(tmp_path, ["fold=0"], pictures(0))
    text = to_markdown(write_summary(tmp_path, resamples=5))
    assert re.search(r"\*\*mIoU [\d.]+ % over 1 of 1 folds\*\*", text)
    assert cells(text, "95 % interval")[1] == "\N{EN DASH}"


@pytest.mark.parametrize(("failed", "code"), [(False, 0), (True, 1)])
def test_command_writes_the_summary_and_fails_if_a_fold_did(tmp_path, capsys, failed, code):
    write_run(tmp_path, ["fold=0"], pictures(0))
    if failed:
        write_overrides(tmp_path / "fold=1", ["fold=1"])
        (tmp_path / "fold=1" / "failed.json").write_text('{"error": "no memory"}')
    assert command.main([str(tmp_path)]) == code
    printed = capsys.readouterr().out
    assert str(tmp_path / "cv" / "report.html") in printed
    assert ("fold 1 failed: no memory" in printed) == failed


def test_command_says_what_is_wrong_with_a_folder(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 1
    assert "expected a sweep over folds" in capsys.readouterr().err


def test_a_sweep_without_a_finished_fold_is_summarised(tmp_path):
    write_overrides(tmp_path / "fold=0", ["fold=0"])
    write_summary(tmp_path, resamples=5)
    text = (tmp_path / "cv" / "summary.md").read_text()
    assert "**no fold finished, 0 of 1**" in text
    assert "fold 0 unfinished" in text


def test_fold_plot_shows_points_means_and_intervals_at_their_values():
    scores = {"a": {0: 0.5, 1: 0.6}, "b": {0: 0.4, 1: None}}
    spreads = {"a": {"mean": 0.55, "interval": [0.3, 0.8]}, "b": {"mean": 0.4, "interval": None}}
    axis = folds_figure(scores, spreads).axes[0]
    scatters = [drawn for drawn in axis.collections if isinstance(drawn, PathCollection)]
    assert sorted(y for drawn in scatters for y in drawn.get_offsets()[:, 1].compressed()) == [40, 50, 60]
    paths = [path.vertices[:, 1] for drawn in axis.collections if drawn not in scatters for path in drawn.get_paths()]
    spans = sorted((round(float(y.min()), 9), round(float(y.max()), 9)) for y in paths)
    assert spans == [(30, 80), (40, 40), (55, 55)]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b"]


def test_curves_have_a_row_of_charts_for_each_group_and_bear_gaps(tmp_path):
    history = [{"epoch": 1, "val/miou": 0.3}, {"epoch": 2, "val/miou": None}, {"epoch": 3, "val/loss": 1.0}]
    plot_fold_curves({"a": {0: history}}, tmp_path / "one.png")
    plot_fold_curves({"a": {0: history, 1: []}, "b": {}}, tmp_path / "two.png")
    one, two = (Image.open(tmp_path / f"{name}.png").size for name in ("one", "two"))
    assert two == (one[0], 2 * one[1])
