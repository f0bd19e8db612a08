"""Charts hold what they are given, whatever is missing; no word is cut, and none leaves its line."""

from math import nan

import pytest
from board_lab import board_of, submit, write_truth
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.evaluation.report.charts import (
    Axis,
    Bar,
    Series,
    calibration_caption,
    interval_chart,
    line_chart,
    text_width,
    wrapped,
)


def test_missing_numbers_escaping_and_flat_lines():
    svg = line_chart([Series("a<b", [0, 1, 2], [nan, 0.5, nan]), Series("c", [1], [2])], "x", "y", "t", None, None)
    assert "a&lt;b" in svg
    assert "nan" not in svg
    assert interval_chart([Bar("x", nan, nan, nan)], "v", "t") == ""
    assert "nan" not in interval_chart([Bar("x", 1, nan, nan), Bar("y", 1, 0.5, 2)], "v", "t", 0)
    flat = line_chart([Series("a", [1, 1], [3, 3])], "x", "y", "t", None, None)
    assert "nan" not in flat
    series = [Series("a", [1, 2], [1, 2], low=[nan, 1], high=[nan, 2])]
    assert "nan" not in line_chart(series, "x", "y", "t", None, None), "an interval that does not exist is not drawn"


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), max_size=120), st.integers(60, 400))
def test_a_wrapped_text_fits_and_keeps_its_letters(text, width):
    lines = wrapped(text, width)
    assert all(text_width(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_words_break_where_a_reader_would():
    assert wrapped("Lead in Specificity at common sensitivity", 170) == ["Lead in Specificity at", "common sensitivity"]
    assert wrapped("keras_pneumo-resnet50", 100) == ["keras_", "pneumo-", "resnet50"]
    assert wrapped("memory: 0.69", 70) == ["memory:", "0.69"], "not within a number"
    assert len(wrapped("A" * 70, 220)) > 2


def test_long_names_are_whole_in_both_pictures():
    name = "a team with a name of many words that says what it did " * 2
    svg = interval_chart([Bar(name, 0.5, 0.4, 0.6)], "AUROC, 95% interval by patient", "t")
    wide, narrow = svg.split("</svg>")[:2]
    for picture in (wide, narrow):
        assert all(picture.count(word) >= 2 for word in ("team", "name", "many", "says"))
    assert 'class="chart wide"' in wide
    assert 'class="chart narrow"' in narrow
    assert "…" not in svg


def test_a_logarithmic_axis_has_equal_ratios_equally_long():
    axis = Axis([1, 100], 0, 200, logarithmic=True)
    assert axis(10) == 100
    assert axis(100) - axis(10) == pytest.approx(axis(10) - axis(1), abs=0.11)
    assert axis.ticks == [1, 2, 5, 10, 20, 50, 100]
    assert Axis([3, 30], 0, 1, logarithmic=True, ticks=[3, 30]).ticks == [3, 30]


def test_the_marks_of_an_axis_have_all_a_power_of_ten_or_none():
    def marks(low, high):
        axis = Axis([low, high], 0, 900, (low, high))
        return [axis.name(tick) for tick in axis.ticks]

    assert marks(0, 0.01) == ["0", "0.002", "0.004", "0.006", "0.008", "0.01"]
    assert marks(0, 2e-3) == ["0", "5e−4", "1e−3", "1.5e−3", "2e−3"]
    axis = Axis([1e-4, 1], 0, 900, logarithmic=True)
    assert [axis.name(tick) for tick in axis.ticks] == ["1e−4", "0.001", "0.01", "0.1", "1"]


def test_numbers_below_an_axis_never_cover_each_other():
    axis = Axis([0, 1], 20, 60, (0, 1e-7))
    texts = [part for part in axis.across(0, 10, 80) if part.startswith("<text")]
    assert 1 <= len(texts) < len(axis.ticks)


def test_intervals_of_the_calibration_are_named_where_they_are_drawn(tmp_path):
    truth = write_truth(tmp_path)
    teams = [submit(tmp_path / name, truth, name, 2) for name in ("a", "b")]
    assert "Wilson" in calibration_caption(board_of(truth, teams[0]))
    assert "Wilson" not in calibration_caption(board_of(truth, *teams)), "those of many teams would cover each other"
