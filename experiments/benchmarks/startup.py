"""How long a command takes to begin: any ``--help``, and commands without TensorFlow from the line to their own work.

There is no other side; the ratio is the seconds allowed over the seconds of the slowest command, as the median of some
runs. A command's own work begins where the function is called that a notebook would call; the process ends there.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import Lab
from measuring import MeasurementError, OwnRow

HELP_SECONDS = 0.5
WORK_SECONDS = 1.0
RUNS = 5
HELP = ("--help", "prepare --help", "compare --help", "train --help", "predict --help", "detect --help",
        "explain --help", "view --help", "parity --help", "doctor --help")  # fmt: skip

WORK = {
    "prepare": ("data.prepared.prepare", "prepare", "prepare data --out out --size 64"),
    "inspect": ("data.prepared.folder", "load_prepared", "inspect data"),
    "phantom": ("phantoms.folder", "write_phantoms", "phantom out --images 4"),
    "compare": ("evaluation.compare", "compare", "compare teams --truth data --out out"),
    "audit-split": ("evaluation.board.split_audit", "audit_split", "audit-split data"),
}
"""Command -> the module and the function of its own work, and a line that calls it."""

UNTIL_WORK = """
import importlib, os, sys
module = importlib.import_module("keras_pneumo." + sys.argv[1])
setattr(module, sys.argv[2], lambda *given, **named: os._exit(0))
from keras_pneumo.cli import main
main(sys.argv[3:])
"""


def rows(lab: Lab) -> Iterator[OwnRow]:
    """The rows of this file."""
    helps = {line: lab.command(*line.split()) for line in HELP}
    yield OwnRow(
        "start-up: any --help",
        "starts/s",
        1.0,
        lambda: measured(helps, HELP_SECONDS, lab.environment, lab.folder),
        f"{HELP_SECONDS} s over the slowest --help.",
    )
    work = {
        name: [lab.python, "-c", UNTIL_WORK, module, function, *line.split()]
        for name, (module, function, line) in WORK.items()
    }
    yield OwnRow(
        "start-up: commands without TensorFlow",
        "starts/s",
        1.0,
        lambda: measured(work, WORK_SECONDS, lab.environment, lab.folder),
        f"{WORK_SECONDS} s over the slowest of {', '.join(WORK)}, from the line to the command's own work.",
    )


def measured(
    commands: Mapping[str, Sequence[str | Path]],
    allowed: float,
    environment: Mapping[str, str],
    folder: Path,
    runs: int = RUNS,
) -> dict[str, Any]:
    """The ratio of the seconds allowed and the slowest command's median, and the seconds of each.

    Raises:
        MeasurementError: a command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for run in range(runs + 1):  # the first fills the caches
        for name, argv in commands.items():
            started = time.perf_counter()
            done = subprocess.run(
                [str(part) for part in argv], env={**os.environ, **environment}, cwd=folder, capture_output=True,
                text=True,
            )  # fmt: skip
            if done.returncode:
                raise MeasurementError(f"{name} ended with exit code {done.returncode}: {done.stderr[-300:]}")
            if run:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    slowest = max(medians, key=lambda name: medians[name])
    return {
        "ratio": allowed / medians[slowest],
        "low": allowed / max(seconds[slowest]),
        "high": allowed / min(seconds[slowest]),
        "note": f"{allowed} s over the slowest: {slowest}, {medians[slowest]:.2f} s.",
        "seconds": {name: round(value, 3) for name, value in medians.items()},
    }
