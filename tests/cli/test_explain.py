"""Tests that explain refuses wrong options with a message."""

import pytest
from explain_lab import prepared, run  # noqa: F401 - fixtures

from keras_pneumo.cli import main

pytestmark = pytest.mark.slow


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
