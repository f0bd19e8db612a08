"""The rows of prediction: what is measured against what, and our side of them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from keras_pneumo.inference.run import load_model, read_run

BENCHMARKS = Path(__file__).parents[2] / "experiments/benchmarks"
NAMES = ("inference", "inference_worker", "lab", "measuring", "worker")


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


def test_both_networks_and_batches_are_measured_against_three_others(benchmarks, tmp_path):
    import inference
    from lab import Lab

    rows = list(inference.rows(Lab(tmp_path, torch_python=None, quiet=True)))
    assert len({row.name for row in rows}) == len(rows) == 10
    for row in rows:
        assert row.ours.argv[2] == "ours"
        assert row.ours.argv[-1] == row.theirs.argv[-1] == ("16" if "batch 16" in row.name else "1")
        if "PyTorch" in row.name:
            assert row.unmeasurable.startswith("no environment with torch")
        else:
            assert row.theirs.argv[2:4] == ["onnx", row.ours.argv[3]], "an export of the same run"
    assert not list(tmp_path.iterdir()), "nothing is made before a row is asked for"


def test_our_side_predicts_with_the_run(benchmarks, tiny_runs, monkeypatch):
    import inference_worker

    from keras_pneumo.inference import run as module

    predicted, load = [], module.load_predictors

    def watched(run):
        (network,) = load(run)
        predict = network.predict_on_batch
        monkeypatch.setattr(network, "predict_on_batch", lambda x: predicted.append(predict(x)))
        return [network]

    monkeypatch.setattr(module, "load_predictors", watched)
    assert inference_worker.ours(tiny_runs / "classifier", 64, 3)(2) == 6
    expected = load_model(read_run(tiny_runs / "classifier")).predict_on_batch(inference_worker._images(64, 3))
    assert len(predicted) == 2
    np.testing.assert_allclose(predicted[1], expected, atol=1e-5)
