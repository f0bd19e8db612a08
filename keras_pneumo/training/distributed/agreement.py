"""The check, before the first step, that all workers train the same experiment on the same images.

Each worker reads the experiment and the prepared folder by itself. A stale copy on one host would train on images that
the others validate with, and nothing later would show it: the steps are of equal size.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import LOCK_NAME, sha256_bytes
from keras_pneumo.training.distributed.strategy import Distribution

SHORT = 16
"""Characters of each hash that are compared."""

SEEN_SECONDS = 30.0
"""How long a network file system may take to show a new folder; NFS keeps an old listing for up to 30 s or 60 s."""


def check_agreement(
    distribution: Distribution, identity: Mapping[str, str], folder: Path, seconds: float = SEEN_SECONDS
) -> None:
    """Refuse a training whose workers have different experiments, splits or images, or do not share its run folder.

    Called by every worker at the same point, after the chief has locked the run folder. All of them refuse together.

    Args:
        distribution: the workers.
        identity: hashes of what must be the same, by name; see :func:`keras_pneumo.training.checkpoints.identity`.
        folder: the run folder.
        seconds: how long a worker looks for the chief's mark in the folder.

    Raises:
        PneumoError: they differ, or a worker does not see the folder; the worker itself says in what.
    """
    if distribution.workers == 1:
        return
    own = {name: sha256_bytes(value.encode())[:SHORT] for name, value in identity.items()}
    chiefs = json.loads(distribution.broadcast_text(json.dumps(own)))
    reason, worker = "", distribution.worker
    if different := sorted(name for name in chiefs | own if chiefs.get(name) != own.get(name)):
        reason = (
            f"Worker {worker} has another {' and another '.join(different)} than worker 0. Give all workers the same "
            "experiment file and prepared folder, on a disk that all of them share."
        )
    # In the lock file, since a file of its own, left by a kill, would make the folder look like somebody else's.
    mark = distribution.broadcast(_write_mark(folder) if distribution.chief else 0)
    if not reason and not distribution.chief and not _sees(folder, mark, seconds):
        reason = (
            f"Worker {worker} does not see the run folder of worker 0, {folder.absolute()}. Choose an --out on a disk "
            "that all workers share."
        )
    refusing = distribution.maximum(worker + 1 if reason else 0)
    if refusing:
        # A worker that ends at once can take the answer away from one that is still receiving it. So each waits for
        # the others' word that they have it; who ends before this word is through takes nothing away.
        with contextlib.suppress(Exception):
            distribution.maximum(0)
    if reason:
        raise PneumoError(reason)
    if refusing:
        raise PneumoError(f"Worker {refusing - 1} refuses this training. Its own output says why.")


def _write_mark(folder: Path) -> int:
    """A random number, written into the chief's lock file."""
    mark = int.from_bytes(os.urandom(6), "big") + 1
    (folder / LOCK_NAME).write_text(str(mark), encoding="utf-8")
    return mark


def _sees(folder: Path, mark: int, seconds: float) -> bool:
    """Whether the chief's mark appears in the folder within the time limit."""
    until = time.monotonic() + seconds
    while True:
        try:
            list(folder.iterdir())  # makes a network file system look again
            if (folder / LOCK_NAME).read_text(encoding="utf-8") == str(mark):
                return True
        except OSError:
            pass
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
