"""Files that torch.save wrote, read without PyTorch."""

import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.torch_archive import load_torch_archive
from keras_pneumo.models.weights import load_safetensors


def test_archives_of_torch_itself(reference):
    folder = reference("archives", {})
    for name in ("mixed", "resnet18"):
        tensors, expected = load_torch_archive(folder / f"{name}.pth"), load_safetensors(folder / f"{name}.safetensors")
        assert tensors.keys() == expected.keys()
        for key in expected:
            assert tensors[key].dtype == expected[key].dtype
            np.testing.assert_array_equal(tensors[key], expected[key])
    with pytest.raises(PneumoError, match="could run code"):
        load_torch_archive(folder / "hostile.pth")
    assert not (folder / "executed").exists()
    with pytest.raises(PneumoError, match=r"older than 1\.6"):
        load_torch_archive(folder / "legacy.pth")
