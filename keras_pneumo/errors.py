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
