"""Names and figures as people give and read them: files, CSV, HTML, config strings, numbers."""

import csv
import math
import re
import tempfile
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from cityseg.callbacks.history import History
from cityseg.cli import quote_path, quoted
from cityseg.errors import did_you_mean
from cityseg.files import fresh_file, write_bytes
from cityseg.reports.html.page import breakable, compact, minutes, p_value, points
from cityseg.reports.run_files import read_history
from cityseg.reports.summary import ABSENT, duration, percent

ANY_NAME = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
FRACTIONS = st.floats(0, 1)
KEYS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)  # as class names are


@given(before=st.none() | st.binary(max_size=99), after=st.binary(max_size=99), stop=st.integers(0, 99))
def test_a_file_is_the_old_one_or_the_new_one_never_half(before, after, stop):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "file.bin"
        if before is not None:
            write_bytes(path, before)
        with suppress(KeyboardInterrupt), fresh_file(path) as fresh, fresh.open("wb") as file:
            for place, byte in enumerate(after):
                if place == stop:
                    raise KeyboardInterrupt
                file.write(bytes([byte]))
        expected = before if stop < len(after) else after
        assert (path.read_bytes() if path.is_file() else None) == expected
        assert list(path.parent.iterdir()) == ([path] if expected is not None else [])


@given(rows=st.lists(st.dictionaries(KEYS, st.floats(allow_nan=False), max_size=4), min_size=1, max_size=4))
def test_a_history_comes_back_as_it_was(rows):
    with tempfile.TemporaryDirectory() as folder:
        history = History(f"{folder}/history.csv")
        history.rows = [{"epoch": epoch, **row} for epoch, row in enumerate(rows, start=1) if "epoch" not in row]
        if history.rows:
            history.write()
            assert read_history(history.path) == history.rows


class Texts(HTMLParser):
    """The tags of a page, and the text between them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, sorted(name for name, _ in attrs)))

    def handle_data(self, data):
        self.text += data


@example("<script>alert(1)</script>")
@example("\" onload='x' a=\"")
@example("</title><img src=x onerror=y>")
@example("{{ 7 * 7 }}{% raw %}")
@given(ANY_NAME)
def test_a_name_adds_no_tag_to_a_page(name):
    plain, named = Texts(str(breakable("a,b"))), Texts(str(breakable(f"{name},b")))
    assert {tag for tag, _ in named.tags} <= {tag for tag, _ in plain.tags}
    assert named.text == f"{name},b"


@given(fraction=FRACTIONS, digits=st.integers(0, 3))
def test_percentages_are_rounded_and_never_lose_a_figure(fraction, digits):
    shown = percent(fraction, digits)
    assert abs(float(shown) - 100 * fraction) <= 0.5 * 10**-digits + 1e-9
    assert re.fullmatch(r"\d+" + (rf"\.\d{{{digits}}}" if digits else ""), shown)
    assert percent(None, digits) == percent(math.nan, digits) == ABSENT
    assert points(fraction)[0] == "+"
    assert points(-fraction)[0] == "-"
    assert abs(float(points(fraction)) - 100 * fraction) <= 0.05 + 1e-9


@given(st.integers(0, 10**14))
def test_a_compact_count_has_at_most_four_characters_and_is_near(count):
    shown = compact(count)
    number, unit = re.fullmatch(r"([\d.]+)([kMGT]?)", shown).groups()
    value = float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert len(shown) <= 4
    assert abs(value - count) <= 0.06 * count


@given(seconds=st.floats(0, 10**7), p=FRACTIONS)
def test_times_and_p_values_are_as_near_as_they_are_shown(seconds, p):
    assert abs(float(minutes(seconds)) - seconds / 60) <= (0.0501 if seconds < 600 else 0.501)
    numbers = re.fullmatch(r"(?:([\d.]+) s)|(?:(\d+) min (\d+) s)|(?:(\d+) h (\d+) min)", duration(seconds)).groups()
    s, m, ms, h, hm = (float(number or 0) for number in numbers)
    assert abs(s + 60 * m + ms + 3600 * h + 60 * hm - seconds) <= (
        0.051 if seconds < 60 else 1 if seconds < 3600 else 60
    )
    assert ms < 60
    assert hm < 60
    assert p_value(p) == "< 0.001" if p < 0.001 else float(p_value(p)) == pytest.approx(p, abs=5.01e-4)


@example("a\\'b\\")
@example("\\")
@example("'")
@given(ANY_NAME)
def test_hydra_takes_a_quoted_value_as_it_is(text):
    override = OverridesParser.create().parse_override(f"key={quoted(text)}")
    assert override.value() == text


@given(st.text("abz09._-/=", max_size=20))
def test_a_path_with_equals_signs_needs_no_quotes(path):
    override = OverridesParser.create().parse_override(quote_path(f"ckpt={path}"))
    assert str(override.value() if path else "") == path or "=" not in path


@given(word=ANY_NAME, known=st.lists(ANY_NAME, max_size=6, unique=True))
def test_a_hint_names_known_words_only(word, known):
    hint = did_you_mean(word, known)
    assert not hint or any(repr(name) in hint for name in known)
    assert word not in known or repr(word) in hint


@given(names=st.lists(ANY_NAME, min_size=1, max_size=5))
def test_names_survive_csv(names):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([[name, "x"] for name in names])
        with path.open(newline="", encoding="utf-8") as file:
            assert [row[0] for row in csv.reader(file)] == names
