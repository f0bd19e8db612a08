import io

import pytest
from rich.console import Console

from keras_pneumo.cli import console
from keras_pneumo.cli.console import ProgressBar, duration
from keras_pneumo.errors import ChildFailed, PneumoError, Stopped


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_progress_in_a_pipe_is_a_plain_line_now_and_then(monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with ProgressBar("reading", Console(file=stream, force_terminal=False, width=200)) as progress:
        for done in range(1, 11):
            progress.update(done, 10, "note")
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 5, "a line every ten seconds of forty, not one for each image"
    assert lines[0].startswith("reading: ")
    assert lines[0].endswith(" left, note")
    assert "images/s" in lines[0]
    assert lines[-1].startswith("reading: 10/10")
    assert "\x1b" not in stream.getvalue()


def test_a_pass_over_other_images_has_a_rate_of_its_own(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 50.0, 61.0, 71.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with ProgressBar("reading", Console(file=stream, force_terminal=False, width=200)) as progress:
        for done, total in ((1, 100), (100, 100), (1, 11), (6, 11), (11, 11)):
            progress.update(done, total)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "reading: 100/100, 11.0 images/s, 0 s left",
        "reading: 1/11",
        "reading: 6/11, 0.5 images/s, 11 s left",
        "reading: 11/11, 0.5 images/s, 0 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = io.StringIO()
    with ProgressBar("reading", Console(file=stream, force_terminal=True, width=200)) as progress:
        progress.update(1, 10)
        progress.update(5, 10)
        progress.bar.refresh()
    assert "reading" in stream.getvalue()
    assert "5/10" in stream.getvalue()
    assert "images/s" in stream.getvalue()


def test_a_short_task_in_a_pipe_prints_nothing():
    stream = io.StringIO()
    with ProgressBar("reading", Console(file=stream, force_terminal=False)) as progress:
        progress.update(3, 3)
    assert stream.getvalue() == ""


def test_rows_39_and_46_nothing_that_a_terminal_obeys_reaches_it(capsys):
    hostile = "a\x1b]0;b\x07\u202ec\udcff.dcm [bold]é"
    shown = r"a\x1b]0;b\x07\u202ec\udcff.dcm [bold]é"
    for call in (console.say, console.warn, lambda text: console.report(PneumoError(text))):
        call(hostile)
        written = "".join(capsys.readouterr())
        assert shown in written
    assert console.plain("one\n\ttwo") == "one\n\ttwo"


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (PneumoError("x"), 2, "Refused. x"),
        (ChildFailed("x"), 70, "Failed. x"),
        (Stopped("x"), 75, "Stopped. x"),
        (Stopped("x", 130), 130, "Stopped. x"),
    ],
)
def test_row_49_each_kind_of_error_has_its_word_and_exit_code(error, code, word, capsys):
    console.report(error)
    assert capsys.readouterr().err.strip() == word
    assert console.exit_code_of(error) == code
