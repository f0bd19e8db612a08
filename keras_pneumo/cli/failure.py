"""Reports an error of the program's own: one sentence with the exit code 70, and a log file that can be sent.

The log says where in the code it happened, with versions, and nothing of the user's: no message of an exception, no
file name, no argument. Those may quote a patient's name. The sentence on the terminal has the message.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from keras_pneumo import __version__
from keras_pneumo.cli.console import err, plain
from keras_pneumo.errors import FAILED, PneumoError
from keras_pneumo.storage.files import cache_folder, write_bytes

LOGS = "errors"
"""Folder of the logs, in the cache folder."""

MOST_LOGS = 20
"""Older logs are deleted."""

PACKAGES = ("numpy", "pandas", "scipy", "opencv-python-headless", "pydicom", "pillow", "tensorflow", "keras")
PACKAGE = Path(__file__).resolve().parents[1]


def report_failure(error: BaseException) -> int:
    """Print one sentence about an error that nobody foresaw, and write its log; nothing is raised, whatever happens.

    Returns:
        The exit code, :data:`FAILED`.
    """
    with contextlib.suppress(Exception, PneumoError):
        sentences = failure_sentences(error)
        try:
            err.print("Failed.", style="bold red", end=" ")
            err.print(plain(sentences), markup=False, highlight=False, soft_wrap=True)
        except (PneumoError, Exception):  # the console is full, closed, or part of the fault
            os.write(2, f"Failed. {sentences}\n".encode("ascii", "backslashreplace"))
    return FAILED


def failure_sentences(error: BaseException) -> str:
    """Sentences about an error that nobody foresaw, after its log is written: what and where, and what to send."""
    from keras_pneumo.storage.tables import one_line  # it imports pandas

    try:
        message = one_line(str(error), 200)
    except (PneumoError, Exception):  # an error whose own text is broken
        message = ""
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    path = _write_log(log_of(error))
    log = (
        f"Please send {path} to those who maintain it. The log holds no file name, message or value of yours."
        if path
        else "No log could be written, neither in the cache folder nor in the temporary one."
    )
    return f"The program has a fault: {what} ({_place(error)}). What was complete before is kept. {log}"


def log_of(error: BaseException) -> str:
    """The text of a log: versions, command, and where in the code each error of the chain happened."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} absent")
    lines = [
        f"keras-pneumo {__version__}, Python {platform.python_version()}, {platform.platform()}",
        ", ".join(versions),
        f"command: {' '.join(_command_words())}",
    ]
    for each in _chain(error):
        lines += ["", f"{type(each).__module__}.{type(each).__qualname__}, without its message:"]
        for frame in traceback.extract_tb(each.__traceback__):
            lines += [f"  {_shown_file(frame.filename)}, line {frame.lineno}, in {frame.name}", f"    {frame.line}"]
        # concurrent.futures hands on the traceback of another process as the text of an exception.
        remote = re.findall(r'^  File "(.+)", line (\d+), in (\w+)$', getattr(each, "tb", ""), re.M)
        lines += [f"  {_shown_file(file)}, line {number}, in {name}" for file, number, name in remote]
    return "\n".join(lines) + "\n"


def _command_words() -> list[str]:
    """The command and the names of its options, without their values."""
    from keras_pneumo.cli import COMMANDS

    return [word.split("=")[0] for word in sys.argv[1:] if word in COMMANDS or re.match(r"--[a-z][a-z-]*(=|$)", word)]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then those that it came from."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _place(error: BaseException) -> str:
    """The last line of this package that an error came through."""
    for each in _chain(error):
        frames = [f for f in traceback.extract_tb(each.__traceback__) if Path(f.filename).is_relative_to(PACKAGE)]
        if frames:
            return f"{_shown_file(frames[-1].filename)}, line {frames[-1].lineno}"
    return "outside of keras_pneumo"


def _shown_file(name: str) -> str:
    """A source file's path from the package's or the library's folder on, without the folders of this machine."""
    path = Path(name)
    if path.is_relative_to(PACKAGE):
        return str(path.relative_to(PACKAGE.parent))
    parts = path.parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return path.name


def _write_log(text: str) -> Path | None:
    """Write a log into the cache folder, else the temporary one, and delete all but the newest."""
    name = f"keras-pneumo-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (cache_folder() / LOGS, Path(tempfile.gettempdir())):
        try:
            write_bytes(folder / name, text.encode("utf-8", "replace"))
        except (PneumoError, OSError):
            continue
        if folder.name == LOGS:
            for old in sorted(folder.glob("keras-pneumo-*.log"))[:-MOST_LOGS]:
                with contextlib.suppress(OSError):
                    old.unlink()
        return folder / name
    return None
