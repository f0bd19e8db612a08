"""Each row of the list of faults to survive (1 to 49) has a test named by it that a planted fault makes fail."""

import datetime
import re

import pytest
import rows_lab
from rows_lab import REPOSITORY, TESTS, Entry

ENTRIES = rows_lab.read()
ROWS = range(1, 50)


def rows_by_test():
    """The rows that the name of each test stands for, by its file and name."""
    found = {}
    for path in TESTS.rglob("test_*.py"):
        file = path.relative_to(TESTS).as_posix()
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found[f"{file}::{name}"] = {int(row) for row in re.findall(r"row_(\d+)", name)}
    return found


def test_every_row_has_an_entry_whose_test_is_there_and_is_named_by_it():
    assert {entry.row for entry in ENTRIES} == set(ROWS)
    found = rows_by_test()
    for entry in ENTRIES:
        assert entry.row in found.get(entry.test.partition("[")[0], ()), entry


def test_what_defends_is_still_there_to_be_taken_away():
    for entry in ENTRIES:
        assert entry.text in (REPOSITORY / entry.file).read_text(encoding="utf-8"), (
            f"{entry.file} has changed: choose another fault for row {entry.row} in tests/rows_of_faults.csv, and run "
            f"`python tests/rows_lab.py {entry.row}`."
        )
        assert entry.text != entry.planted
        if entry.seen_to_fail:
            datetime.date.fromisoformat(entry.seen_to_fail)


@pytest.mark.parametrize(("planted", "fails"), [("1 + 2", True), ("0 + 2", False)])
def test_a_fault_is_planted_seen_and_taken_out_again(tmp_path, monkeypatch, planted, fails):
    (tmp_path / "tests").mkdir()
    source = "def test_row_1():\n    assert 1 + 1 == 2\n"
    (tmp_path / "tests/test_sum.py").write_text(source)
    monkeypatch.setattr(rows_lab, "REPOSITORY", tmp_path)
    monkeypatch.setattr(rows_lab, "TESTS", tmp_path / "tests")
    entry = Entry(1, "test_sum.py::test_row_1", "tests/test_sum.py", "1 + 1", planted, "")
    failed, output = rows_lab.fails(entry)
    assert failed == fails, output
    assert (tmp_path / "tests/test_sum.py").read_text() == source
