"""Shows that the tests of the rows of faults can fail: plants a fault in the code that defends, and runs one test.

``python tests/rows_lab.py [ROW ...]`` takes the entries of ``rows_of_faults.csv`` one after the other (default: those
without a date), puts ``planted`` in the place of ``text`` in ``file``, runs ``test``, puts the file back, and writes
the date where the test has failed. Run it in a checkout where nobody else works and nothing of ``keras_pneumo`` is
changed.
"""

import csv
import datetime
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
TABLE = TESTS / "rows_of_faults.csv"
LONGEST = 600
"""Seconds of a test; one that its fault lets wait longer has failed."""


class Entry(NamedTuple):
    """One row of the table."""

    row: int
    test: str
    """As pytest names it, from the folder of the tests."""
    file: str
    text: str
    """What defends, as it stands in the file."""
    planted: str
    """What stands in its place while the test has to fail; blank: nothing."""
    seen_to_fail: str
    """When it was seen; blank where it was not."""


def read():
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [Entry(int(number), *rest) for number, *rest in list(csv.reader(file))[1:]]


def write(entries):
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Entry._fields)
        writer.writerows(entries)


def fails(entry):
    """Whether the test fails with the fault in place; the last lines of its output."""
    path = REPOSITORY / entry.file
    whole = path.read_bytes()
    assert entry.text.encode() in whole, f"{entry.file} has changed: choose another fault for row {entry.row}"
    line = [sys.executable, "-m", "pytest", "-x", "-m", "", "--tb=short", f"tests/{entry.test}"]
    try:
        path.write_bytes(whole.replace(entry.text.encode(), entry.planted.encode()))
        environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{TESTS}", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return True, "it took too long"
    finally:
        path.write_bytes(whole)
    reasons = [text for text in done.stdout.splitlines() if text.startswith(("E  ", "FAILED", "ERROR"))]
    return done.returncode == 1 and "FAILED" in done.stdout, "\n".join(reasons[-4:]) or done.stdout[-500:]


def main(rows):
    entries = read()
    for number, entry in enumerate(entries):
        if entry.row in rows or (not rows and not entry.seen_to_fail):
            failed, output = fails(entry)
            print(f"{entry.row} {entry.test}: {'failed' if failed else 'DID NOT FAIL'}\n{output}", flush=True)
            entries[number] = entry._replace(seen_to_fail=datetime.date.today().isoformat() if failed else "")
            write(entries)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
