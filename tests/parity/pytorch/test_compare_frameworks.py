"""The comparison over seeds with both real teams, at their smallest, by the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("task", "score", "controls"), [("classifier", "auroc", 1), ("segmenter", "dice", 0)])
def test_both_teams_with_two_seeds(tmp_path, prepared_folder, torch_python, task, score, controls):
    out = tmp_path / "frameworks"
    argv = [sys.executable, "-m", "keras_pneumo", "compare-frameworks", ROOT / f"experiments/smallest_{task}.py"]
    argv += ["--data", prepared_folder, "--out", out, "--seeds", "2", "--controls", str(controls)]
    argv += ["--torch-python", torch_python]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, timeout=900, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads((out / "compare_frameworks.json").read_text())
    assert answer["outcome"] in ("equivalent", "different", "undecided")
    assert answer["headline"] == score
    assert [row["team"] for row in answer["trainings"]].count("torch_last_bit") == controls
    assert done.stdout.strip().splitlines()[-1] == str(out / "compare_frameworks.html")
    assert f"training {4 + controls} of {4 + controls}: PyTorch, seed 1" in done.stderr
    assert "left" in done.stderr.splitlines()[-1], "the last line of progress says how long it still takes"
    for seed in (0, 1):
        logs = [pd.read_csv(out / f"seed_{seed}/{team}/log.csv") for team in ("keras", "torch")]
        # The same start, order and augmentations: the first epoch's loss is the same but for rounding, which from a
        # random start grows within an epoch where the whole network learns.
        bound = 1e-4 if task == "classifier" else 2e-2
        assert logs[0]["loss"][0] == pytest.approx(logs[1]["loss"][0], rel=bound)
    first, second = (pd.read_csv(out / f"seed_{seed}/keras/log.csv")["loss"][0] for seed in (0, 1))
    assert abs(first / second - 1) > 1e-3, "another seed is another training"
