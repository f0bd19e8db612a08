"""What tests of several commands share."""

import pytest

from keras_pneumo.cli import main


@pytest.fixture
def call(capsys):
    """Runs a command in this process; gives its exit code, its output and its messages."""

    def called(*words):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        output = capsys.readouterr()
        return end.value.code or 0, output.out, " ".join(output.err.split())

    return called
