"""Tests that explain refuses wrong options with a message."""

import pytest
from explain_lab import prepared, run  # noqa: F401 - fixtures

from keras_pneumo.cli import explain, main
from keras_pneumo.errors import PneumoError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is no nowhere"),
        ([".", "--method", "lime"], "no heat map method 'lime'"),
        ([".", "--stage", "9"], "no encoder stage '9'"),
        ([".", "--segmenter", "x"], ""),
        ([".", "--subset", "test"], "--subset, --segmenter, --compare and --devices are for the check"),
    ],
)
def test_refusals(tmp_path, monkeypatch, run, arguments, message, capsys):  # noqa: F811 - a fixture
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["explain", str(run.folder), *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_wrong_label_csv_is_refused_before_tensorflow_is_loaded(tmp_path, monkeypatch):
    def loaded(**_):
        raise AssertionError("TensorFlow is loaded first")

    monkeypatch.setattr(explain, "import_tensorflow", loaded)
    (tmp_path / "labels.csv").write_text("colour,taste\nred,sweet\n")
    for name, words in (("labels.csv", "colour"), ("none.csv", "none.csv")):
        with pytest.raises(PneumoError, match=words):
            explain.explain_command(tmp_path / "run", [tmp_path], labels=tmp_path / name)
