"""What a person reads of a summary: ``cv/summary.md`` and the closing lines on the console; percentages throughout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from cityseg.crossval.comparison import Comparison, Pair
from cityseg.crossval.summary import SCORES, FinalModel, FoldFigures, GroupSummary, Summary, Unfinished
from cityseg.reports.html.text import OWN_CLASSES, SCORE_NAMES, interval, mean_and_std, p_value, points, points_interval
from cityseg.reports.summary import ABSENT, percent


def to_markdown(summary: Summary) -> str:
    """The whole page; plots and panels are linked as seen from ``cv/``."""
    groups = summary["groups"]
    lines = [f"# Cross-validation of {summary['name']}", ""]
    if summary["overrides"]:
        lines += ["`" + " ".join(f"{key}={value}" for key, value in summary["overrides"].items()) + "`", ""]
    for group in groups:
        prefix = f"{group['name']}: " if len(groups) > 1 else ""
        lines += [f"**{prefix}{headline(group)}**", "", *_unfinished_list(group)]
    if summary["comparison"] is not None:
        lines += _comparison_section(summary["comparison"], groups)
    lines += ["![mIoU of every fold](plots/folds.png)", "", "![curves of all folds](plots/curves.png)", ""]
    for number, group in enumerate(groups, start=1):
        if group["folds"]:
            lines += _group_section(group, number, titled=len(groups) > 1)
    lines += ["## How it was computed", "", *(f"- {what}: {how}." for what, how in summary["methods"].items()), ""]
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", "\n".join(lines))  # names may hold HTML


def headline(group: GroupSummary) -> str:
    """The figure people quote, and over how many folds.

    >>> spread = {"mean": 0.612, "std": 0.0134, "interval": None, "folds": 4}
    >>> headline({"scores": {"miou": spread}, "folds": [{}] * 4, "expected": [0, 1, 2, 3, 4]})
    'mIoU 61.2 ± 1.3 % over 4 of 5 folds'
    """
    finished, expected = len(group["folds"]), len(group["expected"])
    if not finished:
        return f"no fold finished, 0 of {expected}"
    return f"mIoU {mean_and_std(group['scores']['miou'])} % over {finished} of {expected} folds"


def closing_lines(summary: Summary) -> list[str]:
    """What the console shows at the end of a sweep: parameters, scores, what is missing, best against others."""
    lines: list[str] = []
    for group in summary["groups"]:
        lines.append(f"{group['name']}: {headline(group)}")
        if parameters := group["parameters"]:
            lines.append(f"  parameters {parameters['total']:,}, {parameters['trainable']:,} trainable")
        if group["folds"]:
            means = (f"{SCORE_NAMES[key]} {mean_and_std(group['scores'][key])} %" for key in ("miou", "mpa"))
            lines.append(f"  mean ± std over folds: {', '.join(means)}")
        if group["pooled"] is not None:
            lines.append(f"  pooled over folds: mIoU {percent(group['pooled']['miou'])} %")
        if len(group["folds"]) > 1 and group["best"] is not None:
            lines.append(f"  best fold {_with_miou(group, 'best')}, worst fold {_with_miou(group, 'worst')}")
        lines += [f"  {_unfinished_text(row)}" for row in group["unfinished"]]
        if group["final"] is not None:
            lines.append(f"  {_final_text(group['final'])}")
    if summary["comparison"] is not None:
        best = summary["comparison"]["ranking"][0]["group"]  # all pairs would be many lines: the page has them
        lines += [_pair_text(pair) for pair in summary["comparison"]["pairs"] if pair["a"] == best]
    return lines


def _with_miou(group: GroupSummary, which: str) -> str:
    fold = group["best"] if which == "best" else group["worst"]
    return f"{fold} ({percent(_fold(group, fold)['scores']['miou'])} %)"


def _fold(group: GroupSummary, fold: int | None) -> FoldFigures:
    return next(row for row in group["folds"] if row["fold"] == fold)


def _unfinished_text(row: Unfinished) -> str:
    reason = {
        "not started": "not started",
        "unfinished": "unfinished: no metrics.json, and no error recorded",
    }.get(row["status"], f"failed: {(row['error'] or 'no reason recorded').splitlines()[0]}")
    return f"fold {row['fold']} {reason}" + (f" ({row['run']})" if row["run"] else "")


def _final_text(final: FinalModel) -> str:
    what = f"final model on all training images ({final['run']})"
    if final["status"] != "finished":
        return f"{what} {final['status']}{': ' + final['error'].splitlines()[0] if final['error'] else ''}"
    scores = ", ".join(f"{SCORE_NAMES[key]} {percent(final['scores'][key])} %" for key in ("miou", "mpa"))
    return f"{what}, {final['epochs']} epochs: {scores} on {final['split']}"


def _unfinished_list(group: GroupSummary) -> list[str]:
    rows = [f"- {_unfinished_text(row)}" for row in group["unfinished"]]
    return [*rows, ""] if rows else []


def _pair_text(pair: Pair) -> str:
    test = pair["test"]
    line = f"{pair['a']} against {pair['b']}: mIoU {points(test['mean'])}"
    line += f" points over {len(pair['folds'])} common folds, p {p_value(test['p'])}"
    return line + (f", {p_value(pair['p_holm'])} after Holm" if pair["p_holm"] is not None else "")


def _comparison_section(comparison: Comparison, groups: Sequence[GroupSummary]) -> list[str]:
    by_name = {group["name"]: group for group in groups}
    folds = _listing(comparison["folds"])
    over = f"the folds that all have: {folds}" if comparison["folds"] else "each one's own folds: they share none"
    ranking = []
    for row in comparison["ranking"]:
        pooled = by_name[row["group"]]["pooled"]
        ranking.append(
            [
                row["group"],
                str(row["rank"]),
                mean_and_std(row["miou"]),
                mean_and_std(row["mpa"]),
                percent(None if pooled is None else pooled["miou"]),
            ]
        )
    pairs = [_pair_row(pair) for pair in comparison["pairs"]]
    notes = [f"- {pair['a']} and {pair['b']}: {note}." for pair in comparison["pairs"] for note in _pair_notes(pair)]
    return [
        "## Comparison",
        "",
        f"Ranked by mean ± std over {over}. Pooled: over all folds of its own.",
        "",
        *_table(["", "rank", "mIoU %", "mPA %", "pooled mIoU %"], ranking),
        "Paired differences of the mIoU in percentage points; p of the corrected resampled t-test.",
        "",
        *_table(["", "mean ± std", "95 % interval", "t", "p", "p (Holm)", "95 % over images"], pairs),
        *_difference_table(comparison["pairs"]),
        *([*notes, ""] if notes else []),
    ]


def _pair_row(pair: Pair) -> list[str]:
    test, images = pair["test"], pair["images"]
    return [
        _pair_name(pair),
        points(test["mean"]) + ("" if test["std"] is None else f" ± {percent(test['std'])}"),
        points_interval(test["interval"]),
        ABSENT if test["t"] is None else f"{test['t']:.2f}",
        p_value(test["p"]),
        p_value(pair["p_holm"]),
        points_interval(images["interval"] if images else None),
    ]


def _pair_name(pair: Pair) -> str:
    return f"{pair['a']} \N{MINUS SIGN} {pair['b']}"


def _pair_notes(pair: Pair) -> list[str]:
    notes = []
    if pair["left_out"]:
        count = f"{len(pair['folds'])} of {len(pair['folds']) + len(pair['left_out'])} folds"
        notes.append(f"compared on {count}; not in both: {_listing(pair['left_out'])}")
    if pair["test"]["p"] is None:
        notes.append("no test: it needs two common folds whose differences are not all the same")
    if not pair["test_train_ratio_counted"]:
        notes.append(f"n_test/n_train taken for {pair['test_train_ratio']:.3g}: the runs do not record train_images")
    if pair["images_note"]:
        notes.append(f"no interval over images: {pair['images_note']}")
    return notes


def _difference_table(pairs: Sequence[Pair]) -> list[str]:
    folds = sorted({fold for pair in pairs for fold in pair["folds"]})
    rows = []
    for pair in pairs:
        differences = dict(zip(pair["folds"], pair["differences"], strict=True))
        rows.append([_pair_name(pair), *(points(differences.get(fold)) for fold in folds)])
    return _table(["", *(f"fold {fold}" for fold in folds)], rows) if folds else []


def _group_section(group: GroupSummary, number: int, *, titled: bool) -> list[str]:
    lines = [f"## {group['name']}", ""] if titled else []
    if group["parameters"]:
        lines += [f"{group['parameters']['total']:,} parameters. Split: {group['split']} of {group['dataset']}.", ""]
    lines += _fold_table(group)
    for which in ("best", "worst") if len(group["folds"]) > 1 and group["best"] is not None else ():
        row = _fold(group, group["best"] if which == "best" else group["worst"])
        panels = " ".join(
            f"[{index}](../{quote(path, safe='/=,')})" for index, path in enumerate(row["panels"], start=1)
        )
        lines += [
            f"{which.capitalize()} fold: {_with_miou(group, which)}" + (f", panels {panels}" if panels else ""),
            "",
        ]
    if group["final"] is not None:
        final = _final_text(group["final"])
        lines += [final[0].upper() + final[1:] + ".", ""]
    if group["own_classes"]:
        return [*lines, OWN_CLASSES, ""]
    return [*lines, *_class_table(group), *_pooled_lines(group), f"![pooled matrix](plots/confusion_{number}.png)", ""]


def _fold_table(group: GroupSummary) -> list[str]:
    spreads = [group["scores"][key] for key in SCORES]
    rows = [
        [
            str(row["fold"]),
            *(percent(row["scores"][key]) for key in SCORES),
            str(row["images"]),
            ABSENT if row["best_epoch"] is None else str(row["best_epoch"]),
        ]
        for row in group["folds"]
    ]
    rows.append(["mean ± std", *(mean_and_std(spread) for spread in spreads), "", ""])
    rows.append(["95 % interval", *(interval(spread["interval"]) for spread in spreads), "", ""])
    return _table(["fold", *(f"{SCORE_NAMES[key]} %" for key in SCORES), "images", "best epoch"], rows)


def _class_table(group: GroupSummary) -> list[str]:
    pooled = group["pooled"]["per_class"] if group["pooled"] else {}
    rows = [
        [
            name,
            mean_and_std(spreads["iou"]),
            interval(spreads["iou"]["interval"]),
            mean_and_std(spreads["accuracy"]),
            mean_and_std(spreads["dice"]),
            percent(pooled[name]["iou"]),
            f"in {spreads['iou']['folds']} of {len(group['folds'])}",
        ]
        for name, spreads in group["per_class"].items()
    ]
    return _table(["class", "IoU %", "95 % interval", "accuracy %", "Dice %", "pooled IoU %", "folds"], rows)


def _pooled_lines(group: GroupSummary) -> list[str]:
    pooled, drawn, note = group["pooled"], group["pooled_interval"], group["pooled_interval_note"]
    if pooled is None:
        return []
    text = f"Pooled out of fold: mIoU {percent(pooled['miou'])} %, mPA {percent(pooled['mpa'])} %"
    if drawn is not None:
        text += f"; 95 % over {drawn['images']} images: {interval(drawn['interval'])} %"
    return [text + (f". No interval over images: {note}" if note else "."), ""]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table and the empty line after it; the first column is text, the others numbers."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return [
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, ruler, *rows)),
        "",
    ]


def _listing(folds: Iterable[int]) -> str:
    return ", ".join(map(str, folds))
