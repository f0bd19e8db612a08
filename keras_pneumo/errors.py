"""The exceptions whose message is written for the person at the keyboard."""


class PneumoError(Exception):
    """Something the user gave cannot be used.

    The message is one or more full sentences: what is wrong, where (file, row), what to do. The command line prints it
    without a traceback and exits with 2. It is no ``ValueError``, so a handler of damaged files cannot take it for one.

    Example:
        >>> try:
        ...     kp.load_prepared("nowhere")
        ... except kp.PneumoError as error:
        ...     print(error)
        nowhere ...
    """


REFUSED = 2
"""Exit code of a refusal."""

FAILED = 70
"""Exit code of an error that nobody foresaw: ``EX_SOFTWARE`` of sysexits.h."""

AGAIN = 75
"""Exit code of what a scheduler may start again as it is: ``EX_TEMPFAIL`` of sysexits.h."""


class Stopped(PneumoError):  # noqa: N818 nothing went wrong
    """Work that was interrupted, was saved, and goes on when the same command is run again.

    The command line prints the message without a traceback and exits with ``exit_code``.
    """

    def __init__(self, message: str, exit_code: int = AGAIN) -> None:
        """The sentence, and what the process is to exit with."""
        super().__init__(message)
        self.exit_code = exit_code


class Diverged(PneumoError):  # noqa: N818 other settings may do better
    """A training whose loss, or every validation score, is no finite number."""


class ChildFailed(PneumoError):  # noqa: N818 it says whose fault it is
    """A program that a command started ended by a fault of its own: no refusal, and nothing to start again as it is.

    The message names its log. The command line prints it without a traceback and exits with :data:`FAILED`.
    """
