"""Tests that explain refuses wrong options with a message."""

import pytest
from explain_lab import untrained

from keras_pneumo.cli import main
from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.prepared.folder import load_prepared

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(prepared_folder):
    return load_prepared(prepared_folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, prepared):
    experiment = CLASSIFIER.replace(name="tiny", encoder="resnet18", weights="random", image_size=64)
    return untrained(tmp_path_factory.mktemp("runs") / "tiny", experiment, prepared, threshold=0.5)


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
def test_refusals(tmp_path, monkeypatch, run, arguments, message, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["explain", str(run.folder), *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
