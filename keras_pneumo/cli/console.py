"""Where words go, and how progress is shown: a live bar on a terminal, plain lines when piped."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from keras_pneumo.errors import PneumoError, Stopped

out = Console()
"""Results, for a person or a pipe."""

err = Console(stderr=True)
"""Progress and refusals."""

PLAIN_SECONDS = 10.0
"""When piped, a line is written at most this often, and one at the end."""


class Progress:
    """Counts images done of one piece of work; a context whose :meth:`update` is a ``progress`` callback."""

    def __init__(self, title: str, console: Console = err) -> None:
        """Name the work; the bar appears on entering the context."""
        self.title = title
        self.console = console
        self.started = time.monotonic()
        self.spoke = self.started
        self.before: tuple[int, float] | None = None
        self.last = 0
        self.bar = (
            Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )
        self.task = self.bar.add_task(title, total=None, rate="", note="") if self.bar else None

    def __enter__(self) -> Progress:
        """Start the clock and the bar."""
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar; what was done is said by whoever did it."""
        if self.bar:
            self.bar.stop()

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` images are finished, with a short ``note`` behind."""
        now = time.monotonic()
        if self.before is None or done < self.last:
            # What came before the first image (imports, plans, building the network, an earlier pass over other images)
            # is no part of the rate.
            self.before = (done, now)
        self.last = done
        rate = (done - self.before[0]) / max(now - self.before[1], 1e-9)
        if self.bar and self.task is not None:
            self.bar.update(
                self.task, completed=done, total=total, rate=f"{rate:.1f} images/s" if rate else "", note=note
            )
        elif now - self.spoke >= PLAIN_SECONDS or (done >= total and now - self.started >= PLAIN_SECONDS):
            self.spoke = now
            left = (total - done) / max(rate, 1e-9)
            text = f"{self.title}: {done}/{total}"
            if rate:
                text += f", {rate:.1f} images/s, {duration(left)} left"
            self.console.print(f"{text}, {note}" if note else text, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def say(text: str) -> None:
    """Print a sentence as it is: nothing in it is taken for markup."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a sentence that the user should not miss."""
    err.print(f"Note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


REFUSED = 2
"""Exit code of what was refused."""


def exit_code_of(fault: PneumoError) -> int:
    """What the process exits with: 75 or 130 for what was stopped and can be gone on with, 2 for a refusal."""
    return fault.exit_code if isinstance(fault, Stopped) else REFUSED


def report(fault: PneumoError) -> None:
    """Print why a command ends, without a traceback."""
    err.print("Stopped." if isinstance(fault, Stopped) else "Refused.", style="bold red", end=" ")
    err.print(str(fault), markup=False, highlight=False, soft_wrap=True)
