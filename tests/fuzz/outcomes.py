"""What becomes of one mutated file, and how an unexpected exception is named."""

from __future__ import annotations

import os
import resource
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from keras_pneumo.errors import PneumoError

MEMORY = 2 * 2**30
"""Bytes that no process may take."""

LONGEST_SENTENCE = 20_000
"""Characters of a message: a table may name many rows, but no message repeats a file."""


class Mutant(NamedTuple):
    """A mutated file, and what is known of how it must be read."""

    data: bytes
    change: str
    """What was changed, in words."""
    truth: str = ""
    """``same``: reads as the file that it was made of; ``refused``: must be refused; blank: not known."""
    wanted: Any = None
    """What it must read as, where that is known."""


class Outcome(NamedTuple):
    """What became of one input."""

    result: str
    """``read`` or ``refused``."""
    known: bool
    """Whether the truth was known."""
    problem: str = ""
    """What is wrong with the program; blank when nothing is."""
    seconds: float = 0.0
    memory: int = 0
    """The most that the process has taken so far, in bytes."""


def outcome_of(mutant: Mutant, read: Callable[[], Any], differs: Callable[[Any], str]) -> Outcome:
    """Read a mutant, and compare what came of it with the truth.

    Args:
        mutant: what is read.
        read: the program's own function; a :class:`PneumoError` is a refusal.
        differs: what is wrong with the value read, in words; blank when nothing is.
    """
    began = time.monotonic()
    value, refused, problem = None, "", ""
    try:
        value = read()
    except PneumoError as error:
        refused = str(error)
        if not refused or len(refused) > LONGEST_SENTENCE or not refused.isprintable():
            refused_lines = refused.splitlines()
            if not refused or len(refused) > LONGEST_SENTENCE or not all(map(str.isprintable, refused_lines)):
                problem = f"a message of {len(refused)} characters that cannot be shown: {refused[:200]!r}"
    except Exception as error:
        refused, problem = "exception", named(error)
    seconds = time.monotonic() - began
    if not problem and mutant.truth == "refused" and not refused:
        problem = f"silently read: {mutant.change}"
    if not problem and mutant.truth == "same" and refused:
        problem = f"refused although harmless: {mutant.change}: {refused[:200]}"
    if not problem and not refused:
        problem = differs(value)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if not problem and taken > MEMORY:
        problem = f"the process took {taken / 2**30:.1f} GiB: {mutant.change}"
    return Outcome("refused" if refused else "read", bool(mutant.truth), problem, seconds, taken)


def named(error: BaseException) -> str:
    """An exception with the last place in the package that it passed, so that equal finds have equal names."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "keras_pneumo" in Path(frame.filename).parts]
    place = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "outside of the package"
    return f"{type(error).__name__} in {place}: {str(error)[:150]}"


def ends_at_one(job: tuple[int, str]) -> Outcome:
    """Ends its process for the input of number 1: what a crash in a decoder looks like."""
    if job[0] == 1:
        os._exit(1)
    return Outcome("read", False)
