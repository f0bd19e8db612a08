"""The backends' processes and files, without PyTorch."""

import sys
from pathlib import Path

import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.parity import backends


def test_without_an_environment_of_pytorchs_it_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    monkeypatch.setattr(backends, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PneumoError, match="make setup-torch"):
        backends.torch_python()
    with pytest.raises(PneumoError, match=r"experiments/torch_team/ladder\.py"):
        backends.torch_script()
    monkeypatch.setenv(backends.ENVIRONMENT, str(tmp_path / "absent"))
    with pytest.raises(PneumoError, match="There is no Python"):
        backends.torch_python()
    monkeypatch.setenv(backends.ENVIRONMENT, sys.executable)
    assert backends.torch_python() == Path(sys.executable)
    assert backends.torch_python(Path(sys.executable).parent) == Path(sys.executable).parent, "an option goes first"


def test_the_python_of_jax_is_named_or_left_out(tmp_path, monkeypatch):
    monkeypatch.delenv(backends.JAX_ENVIRONMENT, raising=False)
    assert backends.jax_python() is None
    monkeypatch.setenv(backends.JAX_ENVIRONMENT, sys.executable)
    assert backends.jax_python() == Path(sys.executable)
    monkeypatch.setenv(backends.JAX_ENVIRONMENT, str(tmp_path / "absent"))
    with pytest.raises(PneumoError, match="KERAS_PNEUMO_JAX_PYTHON names"):
        backends.jax_python()


def test_a_process_that_fails_is_quoted(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('torch is not installed')")
    process = backends.start_torch(Path(sys.executable), script, tmp_path)
    assert backends.wait_for(process, tmp_path, backends.TORCH) == "torch is not installed"
    script.write_text("")
    process = backends.start_torch(Path(sys.executable), script, tmp_path)
    assert backends.wait_for(process, tmp_path, backends.TORCH) == ""


def test_arrays_keep_their_order_on_the_way(tmp_path):
    names = ["b/c", "a", "layer1.0.conv1", "file 0 (dcm) at 128"]
    backends.write_arrays(tmp_path / "x" / "y.npz", {name: np.ones(2) for name in names})
    assert list(backends.read_arrays(tmp_path / "x" / "y.npz")) == names
