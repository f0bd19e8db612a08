"""Work on many files at once: bounded memory, and one file that kills its worker costs that file alone.

In come a function and items, out come (item, result) pairs in the order in which they end. Processes are started afresh
(``spawn``), because a forked copy of a process that holds TensorFlow's threads can hang; so a script that
calls this needs the usual ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import TypeVar

import cv2

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4
"""Items handed out per worker before the first has come back: enough to keep all busy, few enough to hold in memory."""

_ITEMS_PER_WORKER = 12
"""Below this many items per worker, starting one more takes longer than it saves (a start costs about a second)."""


def available_cores() -> int:
    """Cores that this process may use, which on shared machines are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work_through(
    function: Callable[[Item], Result],
    items: list[Item],
    workers: int | None = None,
    apart: bool = False,
    seconds: float | None = None,
) -> Iterator[tuple[Item, Result | None]]:
    """Apply ``function`` to every item, in several processes when that pays.

    Args:
        function: a module-level function; whatever it raises ends the work and is raised here.
        items: what it is given, one at a time; picklable.
        workers: processes, default all cores; 1 works in this process.
        apart: whether even a single worker is a process of its own, so that this one outlives a crash.
        seconds: longest that workers may go without a result before they are ended; None waits for ever.

    Yields:
        The item and what the function returned, or None when its process died (a crash inside a decoder) or came to no
        end.
    """
    if workers is None:
        workers = max(1, min(available_cores(), len(items) // _ITEMS_PER_WORKER))
    if workers == 1 and not apart:
        for item in items:
            yield item, function(item)
        return
    rest = iter(items)
    suspects = yield from _pooled(function, rest, workers, seconds=seconds)
    while suspects:
        # One at a time, they show which of them killed the pool.
        singly = iter(suspects)
        while culprits := (yield from _pooled(function, singly, 1, ahead=1, seconds=seconds)):
            yield culprits[0], None
        suspects = yield from _pooled(function, rest, workers, seconds=seconds)


def _pooled(
    function: Callable[[Item], Result],
    items: Iterator[Item],
    workers: int,
    ahead: int = _AHEAD,
    seconds: float | None = None,
) -> Generator[tuple[Item, Result], None, list[Item]]:
    """Yield (item, result) until the items end, or a worker dies, or none gives a result for so many seconds.

    Returns:
        The items that were then under way.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    pending: dict[Future[Result], Item] = {}
    try:
        while True:
            for item in itertools.islice(items, workers * ahead - len(pending)):
                try:
                    pending[pool.submit(function, item)] = item
                except BrokenProcessPool:
                    return [*pending.values(), item]
            if not pending:
                return []
            ended = wait(pending, timeout=seconds, return_when=FIRST_COMPLETED).done
            if not ended:
                kill_workers(pool)
                return list(pending.values())
            for future in ended:
                try:
                    result = future.result()
                except BrokenProcessPool:
                    return list(pending.values())
                yield pending.pop(future), result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def kill_workers(pool: ProcessPoolExecutor) -> None:
    """End a pool's processes at once: one that is stuck in a decoder hears nothing else."""
    for process in list((pool._processes or {}).values()):
        process.kill()


def start_worker() -> None:
    """Run once in each process: one thread for OpenCV, Ctrl-C left to the parent, and an end when the parent ends."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A killed parent cannot tell its workers; without this they would wait for work for ever.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def collect(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> list[Result | None]:
    """All results of :func:`work_through`, in the items' order; for results that are small."""
    listed = list(items)
    place = {id(item): number for number, item in enumerate(listed)}
    results: list[Result | None] = [None] * len(listed)
    for item, result in work_through(function, listed, workers):
        results[place[id(item)]] = result
    return results
