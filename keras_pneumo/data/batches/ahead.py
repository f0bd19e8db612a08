"""Batches by number, put together by threads before they are asked for.

In comes a function that puts some rows of a numbered batch together; out come whole batches, by their number. A batch
is a function of its number alone, so it does not matter how many threads there are, which of them is first, who else
takes batches, or whether a batch was there already: threads only decide when it is ready. They are plain Python
threads, since OpenCV and NumPy leave the interpreter's lock for the work itself, and TensorFlow carries out maps that
call Python one after the other when its operations are to be deterministic.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from keras_pneumo.storage.workers import available_cores

ALIGNMENT = 64
"""Bytes to whose multiple a batch begins, for TensorFlow to take it over without a copy."""

PIECES_PER_CORE = 2
"""Pieces of batches in work or waiting for each core: enough for a thread to find work at once, few enough to hold."""

MOST_AT_ONCE = 4
"""Iterators over one dataset whose batches are kept; with more, some batches are put together twice."""


class Batch(Protocol):
    """A batch that is to be filled: its arrays, and how rows ``first`` to ``last - 1`` of them get their values."""

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the batch consists of."""

    def fill(self, first: int, last: int) -> None:
        """Put some rows together; called by several threads at once for different rows."""

    def __len__(self) -> int:
        """Number of rows."""


@dataclass(frozen=True)
class _Pending:
    batch: Batch
    pieces: list[Future[None]]

    def result(self) -> tuple[np.ndarray, ...]:
        """The finished batch, once all pieces are done; the first one's error, if any failed."""
        for piece in self.pieces:
            piece.result()
        return self.batch.arrays

    def cancel(self) -> None:
        for piece in self.pieces:
            piece.cancel()


class Ahead:
    """Batches by number: each is put together when it is asked for, and with it those that follow."""

    def __init__(self, begin: Callable[[int], Batch], batch_size: int) -> None:
        """Nothing is begun yet.

        Args:
            begin: gives the batch of a number, to be filled; called by one thread at a time.
            batch_size: rows of a batch, about.
        """
        self._begin = begin
        # So many that every core has work while the first batch is taken away.
        self._ahead = 1 + -(-PIECES_PER_CORE * available_cores() // max(batch_size, 1))
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}

    def take(self, number: int, stop: int | None = None) -> tuple[np.ndarray, ...]:
        """The batch of this number, which is forgotten with that.

        Args:
            number: any; those after it are begun.
            stop: the number after the last one that will be asked for; None: there is no end.

        Raises:
            PneumoError: a file could not be read; or what else was raised in a thread.
        """
        with self._lock:
            taken = self._pending.pop(number, None) or self._submitted(number)
            last = number + self._ahead
            for following in range(number + 1, last + 1 if stop is None else min(last + 1, stop)):
                if following not in self._pending:
                    self._pending[following] = self._submitted(following)
            while len(self._pending) > MOST_AT_ONCE * self._ahead:  # what iterators left that were given up
                self._pending.pop(next(iter(self._pending))).cancel()
        return taken.result()

    def _submitted(self, number: int) -> _Pending:
        batch = self._begin(number)
        rows = len(batch)
        pieces = min(rows, PIECES_PER_CORE * available_cores())
        bounds = np.linspace(0, rows, pieces + 1).astype(int).tolist()
        spans = itertools.pairwise(bounds)
        return _Pending(batch, [threads().submit(batch.fill, first, last) for first, last in spans])


@functools.cache
def threads() -> ThreadPoolExecutor:
    """The threads that read and change images, one for each core; all datasets of the process share them."""
    return ThreadPoolExecutor(available_cores(), thread_name_prefix="images")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=threads.cache_clear)  # a forked process has none of its parent's threads


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An array float32 that is not filled, at an address that TensorFlow uses as it is."""
    numbers = int(np.prod(shape))
    memory = np.empty(numbers * 4 + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + numbers * 4].view(np.float32).reshape(shape)
