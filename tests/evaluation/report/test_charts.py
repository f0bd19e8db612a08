"""Charts as SVG: escaped words, and no NaN in a path."""

from keras_pneumo.evaluation.report.charts import Bar, Series, interval_chart, line_chart


def test_charts_survive_what_data_holds():
    nan = float("nan")
    svg = line_chart([Series("a<b", [0, 1, 2], [nan, 0.5, nan]), Series("c", [1], [2])], "x", "y", "t", None, None)
    assert "a&lt;b" in svg
    assert "nan" not in svg
    assert interval_chart([Bar("x", nan, nan, nan)], "v", "t") == ""
    assert "nan" not in interval_chart([Bar("x", 1, nan, nan), Bar("y", 1, 0.5, 2)], "v", "t", 0)
    flat = line_chart([Series("a", [1, 1], [3, 3])], "x", "y", "t", None, None)
    assert "nan" not in flat
