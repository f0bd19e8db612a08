"""The converter of PyTorch's weight files, in PyTorch's own environment."""

import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from warm_lab import PYTORCH, warm

from keras_pneumo.models.fastai import build_fastai_classifier
from keras_pneumo.models.weights import from_torch, load_safetensors, to_torch

SCRIPT = Path(__file__).resolve().parents[3] / "experiments" / "torch_team" / "to_safetensors.py"


@pytest.fixture
def convert(torch_python):
    def run(source, target):
        command = [*warm(torch_python, PYTORCH), str(SCRIPT), str(source), str(target)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def refused(convert, source, *words):
    target = source.with_suffix(".out")
    done = convert(source, target)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not target.exists()


def test_files_of_torch_save_keep_every_bit(reference, convert):
    folder = reference("archives", {})
    for name in ("mixed", "legacy", "resnet18"):
        done = convert(folder / f"{name}.pth", folder / f"{name}.new.safetensors")
        assert done.returncode == 0, done.stderr
        tensors = load_safetensors(folder / f"{name}.new.safetensors")
        expected = load_safetensors(folder / f"{'resnet18' if name == 'resnet18' else 'mixed'}.safetensors")
        assert tensors.keys() == expected.keys()
        for key, array in expected.items():
            assert tensors[key].dtype == array.dtype
            np.testing.assert_array_equal(tensors[key], array)
    refused(convert, folder / "hostile.pth", "posix.system", "would run code")
    assert not (folder / "executed").exists()
    (folder / "half.pth").write_bytes((folder / "resnet18.pth").read_bytes()[:5000])
    refused(convert, folder / "half.pth", "not a whole file")
    refused(convert, folder / "absent.pth", "There is no")
    there = convert(folder / "mixed.pth", folder / "resnet18.safetensors")
    assert there.returncode == 2
    assert "exists already" in there.stderr


@pytest.mark.slow
def test_a_saved_fastai_learner_loads_here(reference, convert):
    folder = reference("learner_file", {"encoder": "resnet18"})
    done = convert(folder / "learner.pth", folder / "learner.safetensors")
    assert done.returncode == 0, done.stderr
    keras.utils.set_random_seed(1)
    model = build_fastai_classifier("resnet18")
    from_torch(model, load_safetensors(folder / "learner.safetensors"))
    expected = load_safetensors(folder / "expected.safetensors")
    state = to_torch(model)
    assert state.keys() == expected.keys()
    assert all(state[name].tobytes() == expected[name].tobytes() for name in expected)
