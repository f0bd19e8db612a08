"""Readings: a person's verdict on each answer, kept in a csv, and the agreement of person and detector.

In: a verdict (agree, disagree, unsure) on an answer. Out: a row of a csv that is complete after every verdict; and the
agreement. A later verdict on the same radiograph replaces the earlier one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import acquire, write_table

VERDICTS = ("agree", "disagree", "unsure")
COLUMNS = ("time", "file", "image_sha256", "detector", "probability", "answer", "verdict")


@dataclass(frozen=True)
class Reading:
    """One verdict on one answer."""

    time: str
    file: str
    image_sha256: str
    detector: str
    probability: float
    answer: str
    """``yes`` or ``no``."""
    verdict: str


@contextlib.contextmanager
def open_readings(path: Path) -> Iterator[Readings]:
    """Open the readings of a csv file and lock it: two processes with one file would lose each other's rows.

    The lock, a file beside the csv, ends with the process, however that ends.

    Raises:
        PneumoError: another page has the csv; it exists and is not a csv of readings; or it cannot be locked.
    """
    path = path.resolve()
    busy = f"Another keras-pneumo view writes its readings to {path}. End it, or name another file with --readings."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = acquire(path.with_name(f".{path.name}.lock"), busy)
    except OSError as error:
        raise PneumoError(
            f"Readings cannot be saved in {path.parent} ({error.strerror or error}). Name a file in another folder "
            "with --readings."
        ) from None
    try:
        yield Readings(path)
    finally:
        lock.release()


class Readings:
    """The readings of one csv file: it is read if it exists, and written anew at every change."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            PneumoError: it exists and is not a csv of readings.
        """
        self.path = path
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], Reading] = {}
        if path.exists():
            for reading in _read(path):
                self._rows[reading.image_sha256, reading.detector] = reading

    def add(self, file: str, key: str, detector: str, probability: float, yes: bool, verdict: str) -> None:
        """Add a verdict and write the file.

        Raises:
            PneumoError: there is no such verdict, or the file cannot be written.
        """
        if verdict not in VERDICTS:
            raise PneumoError(f"A verdict is one of {', '.join(VERDICTS)}.")
        # A file's name may begin as a formula does, and this table is opened in spreadsheets.
        plain = "".join(letter for letter in file if letter.isprintable())[:200].lstrip("=+-@\t ")
        time = datetime.now(UTC).isoformat(timespec="seconds")
        reading = Reading(time, plain, key, detector, round(probability, 6), "yes" if yes else "no", verdict)
        with self._lock:
            rows = self._rows | {(key, detector): reading}
            write_table(self.path, pd.DataFrame([asdict(row) for row in rows.values()], columns=list(COLUMNS)))
            self._rows = rows

    def verdicts(self, detector: str) -> dict[str, str]:
        """The verdict on each radiograph, by its hash."""
        return {key: row.verdict for (key, version), row in self._rows.items() if version == detector}

    def agreement(self, detector: str) -> dict[str, Any]:
        """Counts, the share that agrees with its interval, Cohen's kappa, and one sentence."""
        rows = [row for (_, version), row in self._rows.items() if version == detector]
        return agreement_of(rows)


def agreement_of(rows: list[Reading]) -> dict[str, Any]:
    """How often the reader agrees with the detector, with interval and Cohen's kappa; "unsure" is counted apart.

    Kappa compares the detector's yes or no with the reader's: the same where the reader agrees, else the opposite.
    """
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    decided = counts["agree"] + counts["disagree"]
    agreement: dict[str, Any] = {**counts, "share": None, "low": None, "high": None, "kappa": None}
    if not decided:
        return agreement | {"sentence": "No answer is marked Agree or Disagree yet."}
    share = counts["agree"] / decided
    interval = stats.binomtest(counts["agree"], decided).proportion_ci(method="wilson")
    sure = [row for row in rows if row.verdict != "unsure"]
    detector_yes = sum(row.answer == "yes" for row in sure) / decided
    reader_yes = sum((row.answer == "yes") == (row.verdict == "agree") for row in sure) / decided
    chance = detector_yes * reader_yes + (1 - detector_yes) * (1 - reader_yes)
    kappa = (share - chance) / (1 - chance) if chance < 1 else None
    sentence = (
        f"Reader and detector agree on {counts['agree']} of {decided} radiographs, {share:.0%} "
        f"(95% interval {interval.low:.0%} to {interval.high:.0%})"
    )
    sentence += f"; kappa {kappa:.2f}" if kappa is not None else ""
    sentence += f"; {counts['unsure']} unsure." if counts["unsure"] else "."
    return agreement | {
        "share": share,
        "low": float(interval.low),
        "high": float(interval.high),
        "kappa": kappa,
        "sentence": sentence,
    }


def _read(path: Path) -> list[Reading]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        rows = [
            Reading(**{str(name): value for name, value in row.items()} | {"probability": float(row["probability"])})
            for row in table[list(COLUMNS)].to_dict("records")
        ]
    except (OSError, ValueError, KeyError, TypeError):
        rows = None
    if rows is None or any(row.verdict not in VERDICTS or row.answer not in ("yes", "no") for row in rows):
        raise PneumoError(f"{path} exists, but is not a csv of readings. Name another file with --readings.")
    return rows
