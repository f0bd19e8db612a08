"""A short run of each fuzzer, and what earlier runs found; the long run is ``make fuzz MINUTES=30``."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from fuzz import dicom_mutants, outcomes, run, text_mutants, weight_mutants
from fuzz.outcomes import Mutant, ends_at_one, outcome_of

from keras_pneumo.errors import PneumoError

KINDS = {kind.name: kind for kind in run.kinds()}
CORPUS = sorted(path for path in run.CORPUS.rglob("*") if path.is_file() and not path.name.endswith((".txt", ".md")))


def nothing_found(tally, count):
    assert tally.found == {}
    assert tally.tried == count
    assert any(name.startswith("read") for name in tally.results)
    assert any(name.startswith("refused") for name in tally.results)


@pytest.mark.parametrize(("name", "count"), [("dicom", 600), ("texts", 600)])
def test_a_short_run_finds_nothing(name, count):
    nothing_found(run.explore(KINDS[name], 0, count, 600, workers=2), count)


def test_a_short_run_of_weights_finds_nothing(tmp_path):
    """In this process, where TensorFlow is loaded already; the long run has processes of its own."""
    tally = run.Tally()
    for number in range(250):
        outcome = weight_mutants.try_number((number, str(tmp_path)))
        tally.add(number, outcome._replace(memory=0, problem=memory_aside(outcome)), "lost")
    nothing_found(tally, 250)


def memory_aside(outcome):
    """Of a process that runs other tests too, the memory says nothing."""
    return "" if outcome.problem.startswith("the process took") else outcome.problem


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("dicom", 3000), ("texts", 2000), ("weights", 500)])
def test_a_longer_run_finds_nothing(name, count):
    nothing_found(run.explore(KINDS[name], 100_000, count, 600, workers=2), count)


def test_run_length_texts_read_as_the_plain_reader_reads_them():
    assert [wrong for number in range(400) if (wrong := text_mutants.try_runs(number))] == []


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.relative_to(run.CORPUS).as_posix())
def test_what_was_found_earlier(path, tmp_path):
    kind, (truth, _, change) = path.parent.name, path.with_name(f"{path.name}.change.txt").read_text().partition(": ")
    made = Mutant(path.read_bytes(), change.strip(), truth if truth == "refused" else "")
    copy = tmp_path / path.name.partition("-")[2]
    copy.write_bytes(made.data)
    attempt = {"dicom": dicom_mutants, "texts": text_mutants, "weights": weight_mutants}[kind].try_file
    assert memory_aside(attempt(copy, made)) == ""


# -- The fuzzers themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [dicom_mutants, text_mutants, weight_mutants])
def test_a_number_always_gives_the_same_mutant(module):
    for number in range(20):
        first, second = (module.mutant(number) for _ in range(2))
        first, second = (made[1] if isinstance(made[0], str) else made for made in (first, second))
        assert (first.data, first.change, first.truth) == (second.data, second.change, second.truth)


def test_what_is_wrong_is_found(monkeypatch):
    monkeypatch.setattr(outcomes, "MEMORY", math.inf)  # of a process that runs other tests too

    def raises(error):
        def read():
            raise error

        return read

    refused, harmless = Mutant(b"", "cut", "refused"), Mutant(b"", "quoted", "same")
    assert outcome_of(refused, raises(PneumoError("It is cut.")), str).problem == ""
    assert "silently read" in outcome_of(refused, lambda: 1, lambda value: "").problem
    assert "although harmless" in outcome_of(harmless, raises(PneumoError("It is cut.")), str).problem
    assert outcome_of(harmless, lambda: 1, lambda value: "other values").problem == "other values"
    assert "KeyError" in outcome_of(Mutant(b"", "x"), raises(KeyError("x")), str).problem
    assert "cannot be shown" in outcome_of(refused, raises(PneumoError("\x1b[31m")), str).problem


def test_other_pixels_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "MEMORY", math.inf)  # of a process that runs other tests too
    (tmp_path / "a.dcm").write_bytes(dicom_mutants.seeds()["explicit"])
    wanted = dicom_mutants._read_seed("explicit").copy()
    made = Mutant(b"", "nothing", "same", wanted)
    assert dicom_mutants.try_file(tmp_path / "a.dcm", made).problem == ""
    wanted[0, 0] ^= 1
    assert "silently other pixels" in dicom_mutants.try_file(tmp_path / "a.dcm", made).problem


def test_a_lost_process_is_found_and_finds_are_kept(tmp_path):
    kind = dataclasses.replace(KINDS["texts"], attempt=ends_at_one, chunk=1)
    tally = run.explore(kind, 0, 3, 60, workers=1)
    assert tally.results == {"process lost": 1, "read, truth not known": 2}
    run.keep(kind, tally, tmp_path / "out", tmp_path / "corpus")
    kept = sorted(path.name for path in (tmp_path / "corpus").rglob("*") if path.is_file())
    assert len(kept) == 2
    assert kept[1] == f"{kept[0]}.change.txt"
    assert json.loads(json.dumps(tally.as_json()))["found"]


def test_the_plain_reader_of_run_length_text():
    assert text_mutants.plain_runs("5 3") == [5, 3]
    assert text_mutants.plain_runs(" -1 ") == []
    for wrong in ("5", "5 0", "-5 3", "1048576 1", "1.0 2", "٥ ٣"):
        assert text_mutants.plain_runs(wrong) is None
    assert np.flatnonzero(text_mutants._drawn([5, 3, 2, 1])).tolist() == [5, 6, 7, 10]


def test_the_folder_of_finds_is_small():
    assert all(path.stat().st_size <= run.MOST_KEPT for path in CORPUS)
    assert Path(run.CORPUS).is_dir()
