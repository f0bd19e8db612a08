"""The benchmark rows of a run: what they start, and what the counting of host reads counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "experiments/benchmarks"


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """The rows by name, in a lab without PyTorch."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = ("lab", "measuring", "run")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import lab
    import run

    yield {row.name: row for row in run.rows(lab.Lab(tmp_path, None, True))}, tmp_path
    for name in names:
        sys.modules.pop(name, None)


def test_the_rows_start_the_same_training_on_both_sides(rows):
    by_name, folder = rows
    assert not list(folder.iterdir()), "nothing is made before a row is asked for"
    for name in ("start: from the line to the first step", "the demo's classifier, ten epochs, whole command"):
        row = by_name[name]
        assert (row.goal, row.unmeasurable) == (1.0, "no environment with torch and torchvision (make setup-torch)")
        ours, theirs = ([str(part) for part in side.argv] for side in (row.ours, row.theirs))
        assert ours[ours.index("--data") + 1] == theirs[theirs.index("--data") + 1]
        assert theirs[theirs.index("--experiment") + 1] == theirs[theirs.index("--init") + 1]


@pytest.mark.slow
def test_the_counting_of_one_short_training(prepared_folder):
    code = (
        "import sys, json, run, demo_classifier as demo\n"
        "demo.EXPERIMENT = demo.EXPERIMENT.replace(image_size=64, global_batch_size=4)\n"
        "from pathlib import Path\n"
        "print(json.dumps(run.count(Path(sys.argv[1]), 2)))"
    )
    path = os.pathsep.join(map(str, (BENCHMARKS.parents[1], BENCHMARKS, BENCHMARKS.parent)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(prepared_folder)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["steps"] >= 5
    assert figures["checkpoints"] >= 2
    assert 0 <= figures["reads_per_step"] < 1, "a step waits for no value; a few are read together"
    assert 0 < figures["stall_seconds"] < figures["written_at_once_seconds"]
