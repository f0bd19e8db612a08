"""Catches the signals that ask long work to stop, so that it can be saved and gone on with.

Signals finish what is in hand, save, and end the process with a code that says whether to start again. SIGTERM and
SIGUSR1 (Slurm's warning before the time limit, ``--signal=USR1@120``) end with :data:`~keras_pneumo.errors.AGAIN` (75),
which a job script may requeue on; Ctrl-C with 130. A second Ctrl-C ends the process at once, which loses only what came
after the last checkpoint.
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
    """Catches the signals that ask a training to stop, and remembers the first one."""

    def __init__(self, notify: Callable[[str], None] = lambda message: None) -> None:
        """``notify`` is called with a message when a signal comes."""
        self.notify = notify
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
            self.notify(f"{self.name}: this step is finished and saved, then the training stops.{again}")


def stopped_at_once(sentence: str) -> contextlib.AbstractContextManager[None]:
    """A context in which these signals end the work at once, since there is nothing to save.

    Raises:
        Stopped: a signal came; ``sentence`` says what a new start does.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        interruption = Interruption()
        interruption.number = number
        raise Stopped(f"{interruption.name} came. {sentence}", interruption.exit_code)

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
