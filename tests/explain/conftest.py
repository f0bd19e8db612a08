"""A run that has learnt nothing, and the prepared phantoms that it is explained on."""

import pytest
from explain_lab import untrained

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.prepared.folder import load_prepared


@pytest.fixture(scope="module")
def prepared(prepared_folder):
    return load_prepared(prepared_folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, prepared):
    experiment = CLASSIFIER.replace(name="tiny", encoder="resnet18", weights="random", image_size=64)
    return untrained(tmp_path_factory.mktemp("runs") / "tiny", experiment, prepared, threshold=0.5)
