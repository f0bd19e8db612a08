import io

import pytest
from rich.console import Console

from keras_pneumo.cli import console
from keras_pneumo.cli.console import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text


def test_piped_progress_is_plain_lines_now_and_then(monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with Progress("reading", Console(file=stream, force_terminal=False, width=200)) as progress:
        for done in range(1, 11):
            progress.update(done, 10, "note")
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 5, "a line every ten seconds of forty, not one for each image"
    assert lines[0].startswith("reading: ")
    assert lines[0].endswith(" left, note")
    assert "images/s" in lines[0]
    assert lines[-1].startswith("reading: 10/10")
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = io.StringIO()
    with Progress("reading", Console(file=stream, force_terminal=True, width=200)) as progress:
        progress.update(1, 10)
        progress.update(5, 10)
        progress.bar.refresh()
    assert "reading" in stream.getvalue()
    assert "5/10" in stream.getvalue()
    assert "images/s" in stream.getvalue()


def test_short_work_piped_says_nothing():
    stream = io.StringIO()
    with Progress("reading", Console(file=stream, force_terminal=False)) as progress:
        progress.update(3, 3)
    assert stream.getvalue() == ""
