"""Whether all workers of a training mean the same one, asked before the first step.

Each worker reads the experiment and the prepared folder by itself. A stale copy on one host would train on what the
others validate with, and nothing later would tell: their steps are of equal size.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import LOCK_NAME, sha256_bytes
from keras_pneumo.training.distributed.strategy import Engine

SHORT = 16
"""Characters of each hash that are compared."""

SEEN_SECONDS = 30.0
"""How long a network file system may take to show a new folder; NFS keeps an old listing for up to 30 s or 60 s."""


def check_agreement(engine: Engine, known: Mapping[str, str], folder: Path, seconds: float = SEEN_SECONDS) -> None:
    """Refuse a training whose workers have different experiments, splits or images, or do not share its folder.

    Called by every worker at the same point, after the chief has locked the run folder. All of them refuse together.

    Args:
        engine: the workers.
        known: hashes of what must be the same, by name; see :func:`keras_pneumo.training.checkpoints.identity`.
        folder: the run folder.
        seconds: how long a worker looks for what the chief has put into the folder.

    Raises:
        PneumoError: they differ, or a worker does not see the folder; says which, on the worker that it is.
    """
    if engine.workers == 1:
        return
    mine = {name: sha256_bytes(value.encode())[:SHORT] for name, value in known.items()}
    chiefs = json.loads(engine.agree_text(json.dumps(mine)))
    fault = ""
    if differ := sorted(name for name in chiefs | mine if chiefs.get(name) != mine.get(name)):
        fault = (
            f"Worker {engine.worker} has another {' and another '.join(differ)} than worker 0. Give all workers the "
            "same experiment file and prepared folder, on a disk that all of them share."
        )
    # In the lock file, since a file of its own, left by a kill, would make the folder look like somebody else's.
    number = engine.agree(_mark(folder) if engine.chief else 0)
    if not fault and not engine.chief and not _sees(folder, number, seconds):
        fault = (
            f"Worker {engine.worker} does not see the run folder of worker 0, {folder.absolute()}. Choose an --out on "
            "a disk that all workers share."
        )
    worst = engine.largest(engine.worker + 1 if fault else 0)
    if fault:
        raise PneumoError(fault)
    if worst:
        raise PneumoError(f"Worker {worst - 1} refuses this training. Its own output says why.")


def _mark(folder: Path) -> int:
    number = int.from_bytes(os.urandom(6), "big") + 1
    (folder / LOCK_NAME).write_text(str(number), encoding="utf-8")
    return number


def _sees(folder: Path, number: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while True:
        try:
            list(folder.iterdir())  # asks a network file system anew
            if (folder / LOCK_NAME).read_text(encoding="utf-8") == str(number):
                return True
        except OSError:
            pass
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
