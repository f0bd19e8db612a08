"""Tests of the report's section on what is not like the training images: exact figures, and the chart's limit."""

import re

import numpy as np
from scipy import stats

from keras_pneumo.evaluation.report.likeness_report import likeness_report


def test_the_section_gives_limit_rate_and_false_alarms_with_their_interval():
    held_out, test = np.linspace(0.01, 0.4, 400), np.r_[np.full(47, 0.1), 0.41, 0.5, 0.6]
    positive = np.zeros(50, bool)
    positive[[0, 49]] = True
    report = likeness_report(held_out, test, positive, limit=0.4, rate=0.01)
    assert "is above 0.400" in report.sentences[0]
    assert "400 training and validation images" in report.sentences[1]
    assert "at most 1.0% is refused by mistake" in report.sentences[1]
    low, high = stats.binomtest(3, 50).proportion_ci(method="wilson")
    expected = f"3 of 50 (6.0%; 95% Wilson interval {low:.1%} to {high:.1%}), 1 of them with a pneumothorax"
    assert expected in report.sentences[2]


def test_the_chart_has_both_distributions_and_the_limit():
    report = likeness_report(np.array([0.1, 0.2, 0.2, 0.3]), np.array([0.25]), np.array([True]), 0.3, 0.2)
    assert "training and validation (n = 4)" in report.chart
    assert "test (n = 1)" in report.chart
    (x, bottom, same_x, top), *others = re.findall(
        r'class="s7 dashed" d="M([0-9.]+) ([0-9.]+)L([0-9.]+) ([0-9.]+)"', report.chart
    )
    assert not others
    assert x == same_x == "372.2"  # a vertical line at 0.3 of 0.33, the axis from 74 to 402
    assert float(bottom) > float(top)
    # a quarter of four up to 0.1, the axis from 313 up to 31
    assert 'class="s0" d="M74.0 313.0H173.4L173.4 242.5H272.8L272.8' in report.chart


def test_without_test_images_there_is_no_rate_of_false_alarms():
    report = likeness_report(np.array([0.1, 0.2]), np.empty(0), np.empty(0, bool), 0.2, 1 / 3)
    assert len(report.sentences) == 2
    assert "test" not in report.chart
