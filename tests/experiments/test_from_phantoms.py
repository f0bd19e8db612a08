"""The table of what a start from phantoms changes, on submissions whose scores are known."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from keras_pneumo.data.prepared.folder import load_prepared

FOLDER = Path(__file__).parents[2] / "experiments/from_phantoms"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "table", raising=False)
    import table

    yield table
    sys.modules.pop("table", None)


def submit(folder, prepared, seed, skill):
    """A finished run's submission with noisy answers; returns its AUROC."""
    test = prepared.split[prepared.split["subset"] == "test"]
    truth = test["pneumothorax"].to_numpy(int)
    probability = np.clip(0.5 + skill * truth + 0.2 * np.random.default_rng(seed).normal(size=len(truth)), 0, 1)
    (folder / "submission").mkdir(parents=True)
    test[["image_id"]].assign(probability=probability).to_csv(folder / "submission/predictions.csv", index=False)
    info = {"team": folder.name, "task": "classification", "split_sha256": prepared.manifest["split_sha256"]}
    (folder / "submission/submission.json").write_text(json.dumps(info | {"threshold": 0.5}))
    (folder / "report.html").write_text("done")
    return roc_auc_score(truth, probability)


def test_the_difference_is_paired_by_seed_and_of_finished_pairs_only(
    table, tmp_path, prepared_folder, monkeypatch, capsys
):
    prepared = load_prepared(prepared_folder)
    ours = [submit(tmp_path / f"from_phantoms_{seed}", prepared, seed, 0.2) for seed in range(3)]
    random = [submit(tmp_path / f"random_{seed}", prepared, seed + 10, 0.0) for seed in range(2)]
    submit(tmp_path / "phantoms_2", prepared, 5, 0.1)
    monkeypatch.setattr(sys, "argv", ["table.py", str(prepared_folder), str(tmp_path)])
    table.main()
    shown = capsys.readouterr().out
    gaps = [one - other for one, other in zip(ours, random, strict=False)]
    for seed, (one, other, gap) in enumerate(zip(ours[:2], random, gaps, strict=True)):
        assert f"| {seed} | auroc | {other:.4f} | {one:.4f} | {table.signed(gap)} |" in shown
    assert (
        f"| mean | auroc | {np.mean(random):.4f} | {np.mean(ours[:2]):.4f} | {table.signed(np.mean(gaps))} (" in shown
    )
    assert "| 2 |" not in shown
    assert "start from phantoms minus random start" in shown


def test_a_folder_without_a_finished_pair_is_refused(table, tmp_path, prepared_folder, monkeypatch):
    submit(tmp_path / "random_0", load_prepared(prepared_folder), 0, 0.1)
    monkeypatch.setattr(sys, "argv", ["table.py", str(prepared_folder), str(tmp_path)])
    with pytest.raises(SystemExit, match="no seed whose two runs have finished"):
        table.main()
