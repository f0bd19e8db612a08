"""Prints results, notes and refusals, and shows progress: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import collections
import contextlib
import time
import unicodedata
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from keras_pneumo.errors import FAILED, REFUSED, ChildFailed, PneumoError, Stopped

out = Console()
"""Results, for a person or a pipe."""

err = Console(stderr=True)
"""Progress and refusals."""

OBEYED = ("Cc", "Cf", "Cs")
"""Unicode's categories of control and format characters, and of the halves that stand for undecodable bytes."""

ENOUGH_UPDATES, ENOUGH_SECONDS = 5, 5.0
"""After so many updates and seconds from the first one on a rate means something; before, no time is said."""

RECENT_SECONDS = 120.0
"""The rate is that of so many last seconds, since a later phase of a training may be several times as slow."""

PLAIN_SECONDS = 10.0
"""In a pipe, the shortest time between two lines of progress."""


class ProgressBar:
    """Shows how many images of a task are done; a context whose :meth:`update` is a ``progress`` callback."""

    def __init__(self, title: str, console: Console = err) -> None:
        """``title`` names the task; the bar appears on entering the context."""
        self.title = title
        self.console = console
        self.started = time.monotonic()
        self.printed = self.started
        self.recent: collections.deque[tuple[int, float]] = collections.deque()
        """Images done, and when, of the updates of the last :data:`RECENT_SECONDS` and the one before them."""
        self.updates = 0
        self.first = 0.0
        self.last = 0
        self.bar = (
            Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )
        self.task = self.bar.add_task(title, total=None, rate="", left="", note="") if self.bar else None

    def __enter__(self) -> ProgressBar:
        """Start the clock and the bar."""
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` images are finished, followed by a short ``note``."""
        now = time.monotonic()
        if not self.recent or done < self.last:
            # Time before the first image (imports, building the network, an earlier pass over other images) does not
            # count for the rate; nor does a training's first step, which is mostly the making of the graph.
            self.recent.clear()
            self.updates, self.first = 0, now
        self.last = done
        self.updates += 1
        self.recent.append((done, now))
        while len(self.recent) > 2 and now - self.recent[1][1] >= RECENT_SECONDS:
            self.recent.popleft()
        rate, left = self._pace(total)
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=done, total=total, rate=rate, left=left, note=note)
        elif now - self.printed >= PLAIN_SECONDS or (done >= total and now - self.started >= PLAIN_SECONDS):
            self.printed = now
            parts = [f"{self.title}: {done}/{total}", *filter(None, (rate, left, note))]
            self.console.print(", ".join(parts), highlight=False, soft_wrap=True)

    def _pace(self, total: int) -> tuple[str, str]:
        """Images per second and the time left, in words; '' while they would mean nothing."""
        (before, then), (done, now) = self.recent[0], self.recent[-1]
        enough = self.updates > ENOUGH_UPDATES and now - self.first >= ENOUGH_SECONDS
        if done <= before or not (enough or done >= total):
            return "", ""
        rate = (done - before) / max(now - then, 1e-9)
        return f"{rate:.1f} images/s", f"{duration((total - done) / rate)} left"


def duration(seconds: float) -> str:
    """Seconds in words: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plain(text: str) -> str:
    """``text`` without what a terminal would obey or could not write: a file's name can hold any byte.

    Control characters, direction marks and bytes that are not UTF-8 stand as ``\\x1b``, ``\\u202e`` or ``\\udcff``.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter if letter in "\n\t" or unicodedata.category(letter) not in OBEYED else ascii(letter)[1:-1]
        for letter in text
    )


def say(text: str) -> None:
    """Print a sentence as it is, without markup."""
    out.print(plain(text), markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a note that the user should not miss."""
    err.print(f"Note: {plain(text)}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def exit_code_of(error: PneumoError) -> int:
    """The exit code of a process: 75 or 130 where it was stopped and can go on, 70 for a fault, 2 for a refusal."""
    if isinstance(error, ChildFailed):
        return FAILED
    return error.exit_code if isinstance(error, Stopped) else REFUSED


def report(error: PneumoError) -> None:
    """Print the reason why a command ends, without a traceback."""
    word = {FAILED: "Failed.", REFUSED: "Refused."}.get(exit_code_of(error), "Stopped.")
    with contextlib.suppress(OSError):  # a console that cannot be written changes no exit code
        err.print(word, style="bold red", end=" ")
        err.print(plain(str(error)), markup=False, highlight=False, soft_wrap=True)
