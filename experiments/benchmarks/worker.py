"""The loop of a benchmark's worker: a process that is set up once and then measures itself again and again.

Standard library only, since it is imported in the PyTorch team's environment too. A worker is a small script::

    def set_up():                    # imports, data, networks, compilation: not counted
        ...
        def run(count):              # carries out ``count`` units (steps, batches, passes)
            ...
            return images            # the work done, in the row's unit
        return run

    serve(set_up)

It reads ``{"run": count}`` from its input, one JSON text a line, and answers ``{"seconds": ..., "work": ...}``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


class UnmeasurableError(Exception):
    """A worker lacks something for its set-up, such as a package or a GPU; the text is the reason."""


def serve(set_up: Callable[[], Callable[[int], float | dict[str, float]]]) -> None:
    """Set up, say so, and answer requests until the input ends.

    Args:
        set_up: gives the function that does the work. That function gets a count and returns the work done, or a
            dictionary with ``work`` and further figures, ``seconds`` among them when it measures the time itself.
    """
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the error output
    try:
        run = set_up()
    except (UnmeasurableError, ImportError) as error:
        print(json.dumps({"unmeasurable": str(error)}), file=answers)
        return
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        count = json.loads(line)["run"]
        started = time.perf_counter()
        done = run(count)
        seconds = time.perf_counter() - started
        figures = done if isinstance(done, dict) else {"work": done}
        print(json.dumps({"seconds": seconds, **figures}), file=answers)


def step_parser() -> argparse.ArgumentParser:
    """The options of a worker of training steps, the same on both sides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=("classifier", "segmenter"), default="classifier")
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--gpu", action="store_true", help="refuse to run without a GPU")
    return parser


def end_with_parent() -> None:
    """Have Linux end this process when its parent ends, however that happens: a stopped worker would stay for ever."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
