"""Fifty steps of the real recipe on real radiographs stay as close to PyTorch as PyTorch is to itself."""

import os
from pathlib import Path

import pytest

from keras_pneumo.parity import backends, real_steps
from keras_pneumo.parity.inputs import LadderPlan, write_inputs

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared")) / "siim_more"

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not REAL.is_dir(), reason=f"there are no real radiographs in {REAL}")
def test_keras_is_no_further_from_pytorch_than_pytorch_is_from_itself(torch_python, run_reference, tmp_path):
    folder = tmp_path / "ladder"
    folder.mkdir()
    write_inputs(folder, REAL, LadderPlan(encoder="resnet18", size=64, networks=("classifier",)))
    task = backends.read_task(folder)
    assert task["real_steps"] == {"steps": 50, "controls": 4}
    backend = backends.Backend(folder, backends.KERAS, task, backends.read_arrays(folder / backends.INPUTS))
    real_steps.real_steps(backend)
    run_reference("real_steps", tmp_path, {})
    reference = backends.read_arrays(folder / backends.TORCH / "real_steps.npz")
    own = real_steps.own_distances(reference)
    print("PyTorch from itself:", own, "Keras:", real_steps.distances(folder, backends.KERAS))
    assert len(own) == 4
    assert min(own) > 0, "the last bit of one weight tells"
    losses = backends.read_arrays(backend.own / "real_steps.npz")["losses"]
    assert losses[0] == pytest.approx(reference["losses"][0], rel=1e-5), "the first step is from equal weights"
    assert real_steps.distances(folder, backends.KERAS)[real_steps.DISTANCE] <= 2 * max(own)
