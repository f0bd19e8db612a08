"""The one exception whose message is written for the person at the keyboard."""


class PneumoError(ValueError):
    """Something the user gave cannot be used.

    The message is one or more full sentences: what is wrong, where (file, row), what to do. The command line prints it
    without a traceback and exits with 2.
    """
