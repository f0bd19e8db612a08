"""The golden values of schedules and optimizers are still those of the installed PyTorch."""

import json
from pathlib import Path

import numpy as np
import pytest
from make_golden import OPTIMIZERS, optimizer_inputs, plans

GOLDEN = Path(__file__).parent / "golden"

pytestmark = pytest.mark.slow


def test_schedules(reference):
    folder = reference("schedules", {"plans": plans()})
    live, kept = json.loads((folder / "out.json").read_text()), json.loads((GOLDEN / "schedules.json").read_text())
    for now, then in zip(live, kept, strict=True):
        assert now["arguments"] == then["arguments"]
        np.testing.assert_allclose(now["rates"], then["rates"], rtol=1e-12, atol=1e-18)
        np.testing.assert_allclose(now["momenta"], then["momenta"], rtol=1e-12)


def test_optimizers(reference):
    folder = reference("optimizers", {"plans": OPTIMIZERS}, arrays=optimizer_inputs())
    live, kept = np.load(folder / "out.npz"), json.loads((GOLDEN / "optimizers.json").read_text())
    assert set(live) == set(kept)
    for name in kept:
        np.testing.assert_allclose(live[name], np.float32(kept[name]), rtol=1e-6, atol=1e-8)
