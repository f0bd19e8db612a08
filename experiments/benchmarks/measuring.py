"""How a row is measured: two sides in alternating pairs, each a whole command or a process that was set up before.

In: a :class:`Row`, which a file of this folder yields from its ``rows(lab)``. Out: the ratio of the two speeds, ours
over theirs, as the median of the pairs, with the lowest and the highest. Alternating pairs, since a machine's speed
changes while one measures; the order is swapped in each pair, and the side that waits is stopped meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PAIRS = 5
"""Pairs of a row unless it names more."""

LIMIT = 600.0
"""Seconds that a run of one side, or a worker's set-up, may take."""

SAMPLE_SECONDS = 0.1
"""How often the memory of a side is looked at."""


class MeasurementError(Exception):
    """A side could not be measured; the text is the reason, for the row's note."""


@dataclass(frozen=True)
class Command:
    """A side that is a whole command: its wall time counts, from the line to the prompt."""

    argv: Sequence[str | Path]
    work: float
    """What one run does, in the row's unit without "/s": images, for example."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment."""
    cwd: Path | None = None
    before: Callable[[], None] = lambda: None
    """Called before each run and not counted: empties the folder that the command writes, for example."""
    exit_codes: Sequence[int] = (0,)
    after: Callable[[], Mapping[str, Any] | None] = lambda: None
    """Called after each run and not counted; further figures that it returns are added to the run's."""


@dataclass(frozen=True)
class Worker:
    """A side that is set up once, in a process of its own, and then asked to work; see ``worker.py``."""

    argv: Sequence[str | Path]
    runs: int = 1
    """The count that is sent for each measurement: enough for about a second."""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    warm_up: int = 1
    """The count of the run that is not counted."""


@dataclass(frozen=True)
class Row:
    """One comparison: ours against theirs, by speed."""

    name: str
    unit: str
    """Of the speeds, such as ``images/s``."""
    goal: float | None
    """The least ratio, ours over theirs; None where there is no goal."""
    ours: Command | Worker
    theirs: Command | Worker
    note: str = ""
    """What was measured against what, in a sentence, and why that is fair where it is not obvious."""
    pairs: int = PAIRS
    prepare: Callable[[], None] = lambda: None
    """Makes what both sides need, before the first run; rows that are not asked for are never prepared."""
    unmeasurable: str = ""
    """Why this cannot be measured here, such as a missing package: then neither side is started."""
    finish: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda result: {}
    """Called with the measured row; what it returns is added, such as a longer note or a further figure."""


@dataclass(frozen=True)
class OwnRow:
    """A row that measures itself, such as growth: no pairs, no other side."""

    name: str
    unit: str
    goal: float | None
    """The least ratio."""
    measure: Callable[[], dict[str, Any]]
    """Gives ``ratio``, and as it likes ``low``, ``high``, ``note`` and further figures."""
    note: str = ""
    unmeasurable: str = ""


def measure_row(row: Row | OwnRow, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure a row.

    Returns:
        ``name``, ``unit``, ``goal``, ``note``, ``ratio`` (None when it could not be measured; the note says why),
        ``low`` and ``high`` (of all pairs), and for pairs ``ours`` and ``theirs``: the median ``speed``, ``seconds``,
        ``cpu_seconds`` and the highest ``memory_mb`` of a run, and ``pairs``, the ratio of each pair.
    """
    result: dict[str, Any] = {"name": row.name, "unit": row.unit, "goal": row.goal, "note": row.note}
    empty = {"ratio": None, "low": None, "high": None}
    try:
        if row.unmeasurable:
            raise MeasurementError(row.unmeasurable)
        if isinstance(row, OwnRow):
            return {**result, **empty, **row.measure()}
        row.prepare()
        ours, theirs = _measure_pairs(row, say)
    except MeasurementError as error:
        reason = f"Not measured: {error}"
        return {**result, **empty, "note": f"{row.note} {reason}".strip()}
    ratios = [
        mine["work"] / mine["seconds"] / (other["work"] / other["seconds"])
        for mine, other in zip(ours, theirs, strict=True)
    ]
    result = {
        **result,
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "pairs": ratios,
        "ours": summarise(ours),
        "theirs": summarise(theirs),
    }
    return {**result, **row.finish(result)}


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of each figure of some runs, the ``speed`` (work per second), and the highest memory."""
    summary = {
        name: statistics.median(run[name] for run in runs)
        for name in runs[0]
        if name != "memory_mb" and all(isinstance(run.get(name), int | float) for run in runs)
    }
    summary["speed"] = statistics.median(run["work"] / run["seconds"] for run in runs)
    summary["memory_mb"] = max(run["memory_mb"] for run in runs)
    return summary


def _measure_pairs(row: Row, say: Callable[[str], None]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The runs of both sides, without the warm-up, in order."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with opened(row.ours) as run_ours, opened(row.theirs) as run_theirs:
        run_ours(True)
        run_theirs(True)
        for pair in range(row.pairs):
            sides = [(run_ours, ours), (run_theirs, theirs)]
            for run, runs in sides if pair % 2 == 0 else reversed(sides):
                runs.append(run(False))
            speeds = [runs[-1]["work"] / runs[-1]["seconds"] for runs in (ours, theirs)]
            say(f"  pair {pair + 1} of {row.pairs}: {speeds[0]:.4g} and {speeds[1]:.4g} {row.unit}")
    return ours, theirs


@contextlib.contextmanager
def opened(side: Command | Worker) -> Iterator[Callable[[bool], dict[str, Any]]]:
    """A side, ready: a function that runs it once (True: the warm-up) and gives ``seconds``, ``work`` and more."""
    if isinstance(side, Command):
        yield lambda warm_up: run_command(side)
        return
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [str(part) for part in side.argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **side.env},
            cwd=side.cwd,
            start_new_session=True,
        )
        try:
            first = _answer(process, errors)
            if "unmeasurable" in first:
                raise MeasurementError(first["unmeasurable"])
            os.killpg(process.pid, signal.SIGSTOP)

            def run(warm_up: bool) -> dict[str, Any]:
                os.killpg(process.pid, signal.SIGCONT)
                before = _cpu_seconds(process.pid)
                assert process.stdin is not None
                with peak_memory(process.pid) as peak:
                    try:
                        process.stdin.write(json.dumps({"run": side.warm_up if warm_up else side.runs}) + "\n")
                        process.stdin.flush()
                    except OSError:
                        raise MeasurementError(f"{_name(side.argv)} ended: {_last_line(errors)}") from None
                    answer = _answer(process, errors)
                cpu = _cpu_seconds(process.pid) - before
                os.killpg(process.pid, signal.SIGSTOP)
                return {**answer, "cpu_seconds": cpu, "memory_mb": peak[0] / 1e6}

            yield run
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]


def run_command(side: Command) -> dict[str, Any]:
    """Run a command once.

    Raises:
        MeasurementError: it could not be started, took too long, or ended with another exit code than it may.
    """
    side.before()
    cpu_seconds: dict[int, float] = {}
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        try:
            process = subprocess.Popen(
                [str(part) for part in side.argv],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**os.environ, **side.env},
                cwd=side.cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise MeasurementError(f"{_name(side.argv)} could not be started ({error})") from None
        stopper = threading.Timer(LIMIT, lambda: os.killpg(process.pid, signal.SIGKILL))
        stopper.start()
        try:
            with peak_memory(process.pid, cpu_seconds) as peak:
                _, status, usage = os.wait4(process.pid, 0)
                seconds = time.perf_counter() - started
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            stopper.cancel()
            process.returncode = 0  # it was waited for above
        code = os.waitstatus_to_exitcode(status)
        if code not in side.exit_codes:
            raise MeasurementError(f"{_name(side.argv)} ended with exit code {code}: {_last_line(errors)}")
    figures = {
        "seconds": seconds,
        "work": side.work,
        # A forkserver's workers are not waited for by the command, so the kernel's sum leaves them out.
        "cpu_seconds": max(usage.ru_utime + usage.ru_stime, sum(cpu_seconds.values())),
        # Not ru_maxrss: it counts what this process held when it forked.
        "memory_mb": peak[0] / 1e6,
    }
    return {**figures, **(side.after() or {})}


@contextlib.contextmanager
def peak_memory(pid: int, cpu_seconds: dict[int, float] | None = None) -> Iterator[list[float]]:
    """A context that looks at a process and its children; its list holds the most bytes that they had together.

    ``cpu_seconds``, if given, gets the CPU seconds of each process, as they were when it was last seen. Pages that
    several processes share count once (proportional set size), so workers that read one file are not counted as if
    each had a copy.
    """
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            family = _family(pid)  # looked up once: it reads the whole table of processes
            peak[0] = max(peak[0], _memory_of(family))
            if cpu_seconds is not None:
                cpu_seconds.update(_cpu_seconds_of(family))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        peak[0] = max(peak[0], _memory_of(_family(pid)))  # of a worker, which goes on; a command is gone


def _family(pid: int) -> list[psutil.Process]:
    """A process and all its children; nobody when it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _memory_of(family: Sequence[psutil.Process]) -> float:
    """Bytes that processes have in memory now, pages that they share counted once."""
    total = 0.0
    for member in family:
        with contextlib.suppress(psutil.Error, OSError):
            total += member.memory_full_info().pss
    return total


def _cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and its children so far."""
    return sum(_cpu_seconds_of(_family(pid)).values())


def _cpu_seconds_of(family: Sequence[psutil.Process]) -> dict[int, float]:
    """CPU seconds so far of each process that runs, by its id."""
    seconds = {}
    for member in family:
        with contextlib.suppress(psutil.Error):
            times = member.cpu_times()
            seconds[member.pid] = times.user + times.system
    return seconds


def _answer(process: subprocess.Popen[str], errors: Any) -> dict[str, Any]:
    """The next line that a worker writes."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], LIMIT)
    if not ready:
        raise MeasurementError(f"{_name(process.args)} did not answer within {LIMIT:.0f} s")
    line = process.stdout.readline()
    if not line:
        raise MeasurementError(f"{_name(process.args)} ended: {_last_line(errors)}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _name(argv: Any) -> str:
    """The script, module or program of a command line, as a note names it."""
    words = [str(part) for part in argv]
    if "-m" in words[:-2]:
        return " ".join(words[words.index("-m") + 1 :][:2])
    scripts = [Path(str(part)).name for part in argv if str(part).endswith(".py")]
    return scripts[0] if scripts else Path(str(argv[0])).name


def _last_line(errors: Any) -> str:
    """The last line that was written to a file of errors."""
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "without a message"
