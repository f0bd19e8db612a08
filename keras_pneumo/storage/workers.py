"""The one pool of processes: bounded memory, and a file that kills its worker costs that file alone.

In come a function and items, out come (item, result) pairs in the order in which they end; or, for a server, one call
at a time (:class:`IsolatedWorker`). Workers are never forked from this process, since a forked copy of a process that
holds TensorFlow's threads can hang. They are forked from a server process that holds nothing but the modules that
workers need (``forkserver``), so those are imported once and not by every worker; where there is no such server
(Windows) they are started afresh. Either way a script that calls this needs ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

from keras_pneumo.errors import PneumoError

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called with how many items are done, and how many there are."""

FILE_SECONDS = 60.0
"""Longest that one file may take: a radiograph of 16 megapixels takes about a second, a hostile JPEG minutes."""

FILE_MEMORY = 3 * 2**29
"""Bytes that reading files may add to a process (1.5 GiB). A 16-bit radiograph of 30 megapixels takes 0.15 GiB, and 0.4
with a rescale, measured; clinical ones have up to 16. A small JPEG 2000 file can ask for several times FILE_MEMORY."""

FILE_FAILED = (
    f"reading it crashed, took more than {FILE_SECONDS:g} seconds, or needed more than {FILE_MEMORY / 2**30:g} GiB of "
    "memory, so it is damaged or hostile"
)
"""The reason where :func:`map_files` has no result."""

FILES_PER_PROCESS = 5000
"""Files after which processes are replaced, since decoders written in C keep a little of what they took."""

_AHEAD = 4
"""Items handed out per worker before the first has come back: enough to keep all busy, few enough to hold in memory."""

_ITEMS_PER_WORKER = 12
"""Below this many items per worker, starting one more takes longer than it saves (a start costs about a second)."""


def available_cores() -> int:
    """Cores that this process may use, which on shared machines are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_server(*modules: str) -> bool:
    """Start the process that workers will be forked from, and have it import ``modules``, while this one goes on.

    Without this call it starts with the first worker. Once it runs, this call does nothing: workers import for
    themselves what it has not imported.

    Returns:
        Whether there is such a process: not on Windows, nor where the system refuses one.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return False
    from multiprocessing import forkserver

    # The server is the interpreter's, and so is its list: the first to start it says what it imports.
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
    try:
        forkserver.ensure_running()
    except OSError:  # a folder for temporary files whose name is too long for a socket, say
        return False
    return True


def map_in_processes(
    function: Callable[[Item], Result],
    items: list[Item],
    workers: int | None = None,
    isolated: bool = False,
    seconds: float | None = None,
    initializer: Callable[[], None] | None = None,
    chunk: int = 1,
) -> Iterator[tuple[Item, Result | None]]:
    """Apply ``function`` to every item, in several processes when that pays.

    Args:
        function: a module-level function; whatever it raises ends the work and is raised here.
        items: what it is given, one at a time; picklable.
        workers: processes, default all cores; 1 works in this process.
        isolated: whether even a single worker is a process of its own, so that this one outlives a crash.
        seconds: longest that workers may go without a result before they are ended; None waits for ever.
        initializer: a module-level function that each process runs first; this process does not.
        chunk: items that a process takes, and gives back, at a time: more where one takes only milliseconds.

    Yields:
        The item and what the function returned, or None when its process died (a crash inside a decoder) or did not
        finish in time.
    """
    workers = workers or _workers_for(len(items))
    if workers == 1 and not isolated:
        for item in items:
            yield item, function(item)
        return
    yield from _from_pools(function, items, workers, chunk, _Settings(seconds, initializer))


def _workers_for(items: int) -> int:
    return max(1, min(available_cores(), items // _ITEMS_PER_WORKER))


def _from_pools(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, chunk: int, settings: _Settings
) -> Iterator[tuple[Item, Result | None]]:
    """Each item and its result, of a pool that is made anew whenever an item kills it; see :func:`map_in_processes`."""
    rest = iter(items)
    suspects = yield from _pooled(function, rest, workers, _AHEAD, settings, chunk)
    while suspects:
        # One at a time, they show which of them killed the pool.
        singly = iter(suspects)
        while culprits := (yield from _pooled(function, singly, 1, 1, settings)):
            yield culprits[0], None
        suspects = yield from _pooled(function, rest, workers, _AHEAD, settings, chunk)


def map_files(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None = None,
    initializer: Callable[[], None] | None = None,
    chunk: int = 1,
    in_order: bool = False,
) -> Iterator[tuple[Item, Result | None]]:
    """:func:`map_in_processes` for files that may be damaged or hostile: whatever one does costs that file alone.

    Never in this process; within :data:`FILE_SECONDS` and :data:`FILE_MEMORY`; in new processes after
    :data:`FILES_PER_PROCESS` files. A :class:`PneumoError` (of a full disk, say) ends the work all the same.

    Args:
        function: as there, like ``workers``, ``initializer`` and ``chunk``.
        items: the files, or what names them.
        in_order: whether results come in the order of the items; few wait for a slow one before them.

    Yields:
        The item and what the function returned; None when it raised anything else, crashed, took too long, or needed
        too much memory.
    """
    listed = list(items)
    workers = workers or _workers_for(len(listed))
    settings = _Settings(FILE_SECONDS, initializer, FILE_MEMORY, guarded=True, in_order=in_order)
    share = FILES_PER_PROCESS * workers
    for start in range(0, len(listed), share):
        yield from _from_pools(function, listed[start : start + share], workers, chunk, settings)


def results_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, chunk: int = 1
) -> list[Result | None]:
    """All results of :func:`map_files`, in the order of the items; for results that are small."""
    listed = list(items)
    position = {id(item): number for number, item in enumerate(listed)}
    results: list[Result | None] = [None] * len(listed)
    for item, result in map_files(function, listed, workers, chunk=chunk):
        results[position[id(item)]] = result
    return results


class WorkerCrashedError(PneumoError):
    """The function ended its process."""


class WorkerTimeoutError(PneumoError):
    """The function did not return in time; its process was ended."""


class WorkerClosedError(PneumoError):
    """The worker was closed before the function returned."""


class IsolatedWorker:
    """One process for one call at a time, started when first needed and again after a call has ended it.

    It is replaced after :data:`FILES_PER_PROCESS` calls.
    """

    def __init__(self, memory: int = FILE_MEMORY) -> None:
        """No process is started yet; ``memory`` is the bytes that one call may take."""
        self.memory = memory
        self._calls = 0
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._pool is not None and bool(self._pool._processes)

    def call(self, function: Callable[..., Result], *arguments: object, seconds: float) -> Result:
        """What ``function`` returns in the process; other threads wait for their turn.

        Raises:
            WorkerCrashedError: it ended the process.
            WorkerTimeoutError: it took longer than ``seconds``.
            WorkerClosedError: :meth:`close` was called.
        """
        with self._lock:
            if self._closed:
                raise WorkerClosedError("the worker is closed")
            if self._calls == FILES_PER_PROCESS:
                self._end()
            if self._pool is None:
                self._calls = 0
                self._pool = _new_pool(1, _Settings(memory=self.memory), function.__module__)
            self._calls += 1
            try:
                return self._pool.submit(function, *arguments).result(seconds)
            except BrokenProcessPool:
                self._end()
                if self._closed:
                    raise WorkerClosedError("the worker was closed") from None
                raise WorkerCrashedError("the worker's process died") from None
            except FutureTimeout:
                self._end()
                raise WorkerTimeoutError(f"the worker did not finish within {seconds:g} seconds") from None

    def close(self) -> None:
        """End the process, also during a call, which then raises :class:`WorkerClosedError`."""
        self._closed = True
        while not self._lock.acquire(timeout=0.1):
            if (pool := self._pool) is not None:
                _kill(pool)  # again, since it may only be starting
        self._end()
        self._lock.release()

    def _end(self) -> None:
        if self._pool is not None:
            _kill(self._pool)
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None


@dataclass(frozen=True)
class _Settings:
    """How a pool's processes begin and what they may take; see :func:`map_in_processes`."""

    seconds: float | None = None
    initializer: Callable[[], None] | None = None
    memory: int | None = None
    """Bytes that a process may take beyond what it begins with, where the system can tell (Linux)."""
    guarded: bool = False
    """Whether the result is None of an item for which the function raises anything but a :class:`PneumoError`."""
    in_order: bool = False
    """Whether results come in the order of the items."""


def _pooled(
    function: Callable[[Item], Result],
    items: Iterator[Item],
    workers: int,
    ahead: int,
    settings: _Settings,
    chunk: int = 1,
) -> Generator[tuple[Item, Result | None], None, list[Item]]:
    """Yield (item, result) until the items end, or a worker dies, or none gives a result for so many seconds.

    Returns:
        The items that were being worked on then, and those that would have been next in the same chunks.
    """
    pool = _new_pool(workers, settings, function.__module__)
    pending: dict[Future[list[Result | None]], list[Item]] = {}
    try:
        while True:
            while len(pending) < workers * ahead and (batch := list(itertools.islice(items, chunk))):
                try:
                    pending[pool.submit(_apply, function, batch, settings.guarded)] = batch
                except BrokenProcessPool:
                    return [*itertools.chain(*pending.values()), *batch]
            if not pending:
                return []
            # The first that was handed out is never behind another, so the time limit is its own.
            awaited = itertools.islice(pending, 1 if settings.in_order else None)
            ended = wait(awaited, timeout=settings.seconds, return_when=FIRST_COMPLETED).done
            if not ended:
                _kill(pool)
                return list(itertools.chain(*pending.values()))
            for future in ended:
                try:
                    results = future.result()
                except BrokenProcessPool:
                    return list(itertools.chain(*pending.values()))
                yield from zip(pending.pop(future), results, strict=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _apply(function: Callable[[Item], Result], batch: list[Item], guarded: bool) -> list[Result | None]:
    return [_guarded(function, item) if guarded else function(item) for item in batch]


def _guarded(function: Callable[[Item], Result], item: Item) -> Result | None:
    try:
        return function(item)
    except PneumoError:
        raise
    except Exception:  # a file can bring a library to raise anything
        return None


def _new_pool(workers: int, settings: _Settings, *modules: str) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver" if start_server(*modules) else "spawn")
    # The server has the environment of the time when it started, a worker that of now.
    beginning = (settings.initializer, settings.memory, dict(os.environ))
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=beginning)


def _kill(pool: ProcessPoolExecutor) -> None:
    """End a pool's processes at once: one that is stuck in a decoder does not react to anything else."""
    for process in list((pool._processes or {}).values()):
        process.kill()


def _start_worker(initializer: Callable[[], None] | None, memory: int | None, environment: dict[str, str]) -> None:
    """Run once in each process: one thread for OpenCV, Ctrl-C left to the parent, and an end when the parent ends."""
    import cv2  # here: the process that only hands out work needs none of it

    os.environ.clear()
    os.environ.update(environment)
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if initializer is not None:
        initializer()
    if memory is not None:
        _limit_memory(memory)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A killed parent cannot tell its workers; without this they would wait for work for ever.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _limit_memory(more: int) -> None:
    """Let this process take so many bytes more, and no others; where Linux does not tell what it has, do nothing.

    By its private memory (RLIMIT_DATA, which counts what is mapped since Linux 4.7): all of its addresses
    (RLIMIT_AS) would count libraries and the stacks of threads that a large machine has many of.
    """
    try:
        import resource

        lines = Path("/proc/self/status").read_text().splitlines()
        taken = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (taken + more, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    except (ImportError, OSError, StopIteration, ValueError):
        return


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for a worker to run first.

    Images are arrays of megabytes; glibc returns each to the system and requests it again, a tenth to a sixth of the
    time. With another C library nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, size in ((-1, 2**29), (-3, 2**24)):  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(option, size)
