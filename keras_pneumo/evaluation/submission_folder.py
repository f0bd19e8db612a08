"""A submission's folder: what may stand there, and how a new one takes an old one's place.

In: a path that a user gave, and the finished folder that is to stand there. It exists because replacing a folder
deletes what was in it: only what a submission itself consists of may be lost that way.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from keras_pneumo.data.files import is_temporary
from keras_pneumo.errors import PneumoError

INFO_FILE, PREDICTIONS_FILE, VALIDATION_FILE = "submission.json", "predictions.csv", "validation.csv"
OWN_NAMES = frozenset({INFO_FILE, PREDICTIONS_FILE, VALIDATION_FILE, "postprocess.json", "postprocess.png"})
"""All that is written into a submission's folder, the rule for masks and the picture of its search included."""


def require_replaceable(folder: Path) -> Path:
    """The real path of a place where a submission may be written: a new folder, an empty one, or an old submission.

    Raises:
        PneumoError: a file stands there, or a folder that holds anything else, which writing would delete.
    """
    real = Path(folder).resolve()
    if not real.exists():
        return real
    if not real.is_dir():
        raise PneumoError(f"{folder} is a file, but a submission is a folder. Give another name; nothing was changed.")
    try:
        others = sorted(path.name for path in real.iterdir() if not _own(path))
    except OSError as error:
        raise PneumoError(f"{folder} cannot be read ({error.strerror}). Give another folder.") from error
    if others:
        named = ", ".join(repr(name) for name in others[:3]) + (", ..." if len(others) > 3 else "")
        raise PneumoError(
            f"{folder} holds what is no part of a submission ({named}), and writing a submission replaces the whole "
            "folder. Give a new or an empty folder; nothing was changed."
        )
    return real


def put_in_place(made: Path, folder: Path) -> None:
    """Give a finished folder its name; what stood there goes only once the new one stands."""
    if not folder.exists():
        made.rename(folder)
        return
    old = folder.with_name(made.name + ".old")
    folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _own(path: Path) -> bool:
    return path.is_file() and (path.name in OWN_NAMES or is_temporary(path.name))
