"""Runs the fuzzers in the program's own pool of processes: ``make fuzz MINUTES=30``.

Counts of what was tried go to ``counts.json``, every find with its file beside it; small finds are kept in
``tests/fuzz/corpus``, where they are tests from then on. The same numbers give the same inputs, so ``--begin`` of a
second run should be where the first one ended.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.outcomes import Outcome

from keras_pneumo.storage.workers import FILES_PER_PROCESS, available_cores, map_files

CORPUS = Path(__file__).parent / "corpus"
MOST_KEPT = 64 * 2**10
"""Bytes of the largest find that is kept as a test."""


@dataclass(frozen=True)
class Kind:
    """A kind of input: what tries one, what makes one again, and how many a long run tries."""

    name: str
    attempt: Callable[[tuple[int, str]], Outcome]
    remake: Callable[[int], tuple[str, Any]]
    goal: int
    share: float
    """Of the time."""
    chunk: int


@dataclass
class Tally:
    """What a run found of one kind."""

    tried: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    most_memory: int = 0
    results: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[int]] = field(default_factory=dict)
    """What is wrong -> numbers of the inputs that show it."""

    def add(self, number: int, outcome: Outcome | None, lost: str) -> None:
        """Count one input; None where its process was lost."""
        self.tried += 1
        if outcome is None:
            self.results["process lost"] += 1
            self.found.setdefault(lost, []).append(number)
            return
        self.results[f"{outcome.result}, {'truth known' if outcome.known else 'truth not known'}"] += 1
        self.slowest = max(self.slowest, outcome.seconds)
        self.most_memory = max(self.most_memory, outcome.memory)
        if outcome.problem:
            self.found.setdefault(outcome.problem[:120], []).append(number)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "tried": self.tried,
            "seconds": round(self.seconds, 1),
            "per_second": round(self.tried / self.seconds, 1),
            "slowest_seconds": round(self.slowest, 2),
            "most_memory_gib": round(self.most_memory / 2**30, 2),
            "results": dict(sorted(self.results.items())),
            "found": {key: numbers[:5] for key, numbers in self.found.items()},
        }


def kinds() -> list[Kind]:
    """All kinds; the first two need no TensorFlow."""
    from fuzz import dicom_mutants, text_mutants, weight_mutants

    return [
        Kind(
            "dicom",
            dicom_mutants.try_number,
            lambda number: ("file.dcm", dicom_mutants.mutant(number)),
            50_000,
            0.45,
            8,
        ),
        Kind("texts", text_mutants.try_number, text_mutants.mutant, 100_000, 0.4, 16),
        Kind("weights", weight_mutants.try_number, weight_mutants.mutant, 10_000, 0.15, 8),
    ]


def explore(kind: Kind, begin: int, most: int, seconds: float, workers: int | None = None) -> Tally:
    """Try inputs of one kind, from a number on, until there were so many or the time is over."""
    tally, began = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        batch = FILES_PER_PROCESS // 2
        for start in range(begin, begin + most, batch):
            numbers = range(start, min(start + batch, begin + most))
            jobs = [(number, folder) for number in numbers]
            results = map_files(kind.attempt, jobs, workers or available_cores(), chunk=kind.chunk)
            for (number, _), outcome in results:
                tally.add(number, outcome, f"the process was lost: {kind.name}")
                if time.monotonic() - began > seconds:
                    results.close()  # type: ignore[attr-defined]
                    break
            if time.monotonic() - began > seconds:
                break
    tally.seconds = time.monotonic() - began
    return tally


def keep(kind: Kind, tally: Tally, out: Path, corpus: Path) -> None:
    """Write the first file of each find, and a small one also into the corpus."""
    for number in (numbers[0] for numbers in tally.found.values()):
        name, made = kind.remake(number)
        for folder in (out / "found", *([corpus] if len(made.data) <= MOST_KEPT else [])):
            path = folder / kind.name / f"{number}-{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made.data)
            path.with_name(f"{path.name}.change.txt").write_text(
                f"{made.truth or 'truth not known'}: {made.change}\n".encode("utf-8", "backslashreplace").decode()
            )


def _rounds(chosen: list[Kind], begin: int) -> Iterator[tuple[Kind, int]]:
    for number in itertools.count():
        for kind in chosen:
            yield kind, begin + number * kind.goal


def main() -> int:
    """Run for so many minutes; 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--begin", type=int, default=1_000_000, help="number of the first input")
    parser.add_argument("--only", default="dicom,texts,weights")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--once", action="store_true", help="end when every goal is reached, however early")
    options = parser.parse_args()
    chosen = [kind for kind in kinds() if kind.name in options.only.split(",")]
    deadline = time.monotonic() + 60 * options.minutes
    counts: dict[str, dict[str, Any]] = {}
    options.out.mkdir(parents=True, exist_ok=True)
    found = 0
    for turn, (kind, begin) in enumerate(_rounds(chosen, options.begin)):
        if deadline - time.monotonic() < 1 or (options.once and turn == len(chosen)):
            break
        rest = chosen[turn % len(chosen) :]
        share = kind.share / sum(each.share for each in rest)
        tally = explore(kind, begin, kind.goal, share * (deadline - time.monotonic()), options.workers)
        keep(kind, tally, options.out, options.corpus)
        found += len(tally.found)
        counts[f"{kind.name} from {begin}"] = tally.as_json()
        (options.out / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
        print(f"{kind.name}: {json.dumps(tally.as_json(), indent=1)}", flush=True)
    print(f"{found} found; counts in {options.out / 'counts.json'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
