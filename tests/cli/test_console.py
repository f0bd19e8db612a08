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
    assert all(line.endswith(" left, note") and "images/s" in line for line in lines[-2:])
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
        "reading: 6/11",
        "reading: 11/11, 0.5 images/s, 0 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = io.StringIO()
    with ProgressBar("reading", Console(file=stream, force_terminal=True, width=200)) as progress:
        progress.update(1, 10)
        progress.update(10, 10)
        progress.bar.refresh()
    assert "reading" in stream.getvalue()
    assert "10/10" in stream.getvalue()
    assert "images/s" in stream.getvalue()


def lines_of(monkeypatch, updates):
    """What a pipe is told of updates, each the seconds and the images done of 1,000."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with ProgressBar("training", Console(file=stream, force_terminal=False, width=200)) as progress:
        for now[0], done in updates:
            progress.update(done, 1000)
    return stream.getvalue().splitlines()


def test_no_time_is_said_before_it_means_something(monkeypatch):
    """The first step took 60 s, in which the graph was made; the others take two each."""
    few = [(60.0, 8), (62.0, 16), (64.0, 24), (75.0, 32)]
    assert lines_of(monkeypatch, few) == ["training: 8/1000", "training: 32/1000"]
    many = [(60.0 + 2 * step, 8 + 8 * step) for step in range(7)]
    assert lines_of(monkeypatch, many) == ["training: 8/1000", "training: 48/1000, 4.0 images/s, 3 min 58 s left"]
    at_once = [(9.0 + step / 10, 8 + step) for step in range(30)]  # many updates, but of three seconds
    assert lines_of(monkeypatch, at_once) == ["training: 18/1000"]


def test_a_slower_phase_is_seen_after_two_minutes(monkeypatch):
    fast = [(float(second), 2 * second) for second in range(1, 101)]
    slow = [(100.0 + 10 * step, 200 + step) for step in range(1, 31)]
    lines = lines_of(monkeypatch, [*fast, *slow])
    assert "2.0 images/s" in lines[5]
    assert lines[-1].startswith("training: 230/1000, 0.1 images/s, 2 h 8 min left")


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
