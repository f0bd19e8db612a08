"""Signals during a training: finish the step, save, exit with a code that says whether to start again.

SIGTERM and SIGUSR1 (Slurm's warning before the time limit, ``--signal=USR1@120``) end with :data:`AGAIN` (75), which a
job script may requeue on; Ctrl-C with 130. A second Ctrl-C ends the process at once, which loses only what came after
the last checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from keras_pneumo.errors import AGAIN, Stopped

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Whether a signal has asked for an end."""

    def __init__(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """``tell`` is told when a signal comes."""
        self.tell = tell
        self.number: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether to stop after the step."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """What the process is to exit with."""
        return INTERRUPTED if self.number == signal.SIGINT else AGAIN

    @property
    def name(self) -> str:
        """The signal, as a person calls it."""
        if self.number is None:
            return "A signal to another worker"
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name

    def listening(self) -> contextlib.AbstractContextManager[None]:
        """Within this context the signals are caught."""
        return _handled_by(self._caught)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        first = self.number is None
        self.number = number if first else self.number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if first:
            again = " Ctrl-C once more stops at once." if number == signal.SIGINT else ""
            self.tell(f"{self.name}: this step is finished and saved, then the training stops.{again}")


def stopped_at_once(sentence: str) -> contextlib.AbstractContextManager[None]:
    """Within this context the same signals end the work where it is, since there is nothing to save.

    Raises:
        Stopped: a signal came; ``sentence`` says what a new start does.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        found = Interruption()
        found.number = number
        raise Stopped(f"{found.name} came. {sentence}", found.exit_code)

    return _handled_by(stop)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within this context the signals go to ``handler``; in another thread than the main one none can be caught."""
    before = {}
    try:
        for number in SIGNALS:
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
