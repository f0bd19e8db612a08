"""What a reader thinks of each answer, kept as a csv, and how far reader and detector agree.

In: a verdict (agree, disagree, unsure) on an answer. Out: a row of a csv that is whole after every verdict; and the
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
    """The readings of a csv file, held for this process: two that wrote one file would each lose the other's.

    The lock, a file beside the csv, goes away with the process, however that ends.

    Raises:
        PneumoError: another page holds the csv; or it is there and no csv of readings; or the disk refuses a lock.
    """
    path = path.resolve()
    busy = (
        f"Another keras-pneumo view writes its readings to {path}. End that one, or name another file with --readings."
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = acquire(path.with_name(f".{path.name}.lock"), busy)
    except OSError as error:
        raise PneumoError(
            f"Readings cannot be kept in {path.parent} ({error.strerror or error}). Name a file elsewhere with "
            "--readings."
        ) from None
    try:
        yield Readings(path)
    finally:
        lock.release()


class Readings:
    """The readings of one csv file, which is read if it is there and written whole at every change."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            PneumoError: it is there and no csv of readings.
        """
        self.path = path
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], Reading] = {}
        if path.exists():
            for reading in _read(path):
                self._rows[reading.image_sha256, reading.detector] = reading

    def add(self, file: str, key: str, detector: str, probability: float, yes: bool, verdict: str) -> None:
        """Keep a verdict and write the file.

        Raises:
            PneumoError: there is no such verdict, or the disk refuses.
        """
        if verdict not in VERDICTS:
            raise PneumoError(f"A verdict is one of {', '.join(VERDICTS)}.")
        # A file's name may begin as a formula does, and this table is opened in spreadsheets.
        plain = "".join(one for one in file if one.isprintable())[:200].lstrip("=+-@\t ")
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
    """How far a reader agrees with the detector; "unsure" is counted apart.

    Cohen's kappa is that of the detector's yes or no and the reader's, who says the same where he agrees and the
    opposite where he does not.
    """
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    told = counts["agree"] + counts["disagree"]
    found: dict[str, Any] = {**counts, "share": None, "low": None, "high": None, "kappa": None}
    if not told:
        return found | {"sentence": "No answer was agreed or disagreed with yet."}
    share = counts["agree"] / told
    interval = stats.binomtest(counts["agree"], told).proportion_ci(method="wilson")
    sure = [row for row in rows if row.verdict != "unsure"]
    detector_yes = sum(row.answer == "yes" for row in sure) / told
    reader_yes = sum((row.answer == "yes") == (row.verdict == "agree") for row in sure) / told
    chance = detector_yes * reader_yes + (1 - detector_yes) * (1 - reader_yes)
    kappa = (share - chance) / (1 - chance) if chance < 1 else None
    sentence = (
        f"Reader and detector agree on {counts['agree']} of {told} radiographs, {share:.0%} "
        f"(95% interval {interval.low:.0%} to {interval.high:.0%})"
    )
    sentence += f"; kappa {kappa:.2f}" if kappa is not None else ""
    sentence += f"; {counts['unsure']} unsure." if counts["unsure"] else "."
    return found | {
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
        raise PneumoError(f"{path} is there, but is no csv of readings. Name another file with --readings.")
    return rows
