"""Runs whose weights are random, for tests of heat maps."""

import pandas as pd
import pytest

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.inference.run import FORMAT, WEIGHTS, build, read_run, versions
from keras_pneumo.storage.files import write_json


def untrained(folder, experiment, prepared, **more):
    """A run folder as a training writes it, but with random weights."""
    folder.mkdir(parents=True)
    model = build(experiment)
    model.save_weights(folder / WEIGHTS)
    record = {
        "format": FORMAT,
        "experiment": experiment.model_dump(mode="json"),
        "split_sha256": prepared.manifest["split_sha256"],
        "versions": versions(),
        "hardware": "none",
        **more,
    }
    write_json(folder / "experiment.json", record)
    log = pd.DataFrame([{"epoch": 1, "phase": "whole", "loss": 0.7, "validation_loss": 0.7, "validation_auroc": 0.5,
                         "learning_rate": 1e-3}])  # fmt: skip
    log.to_csv(folder / "log.csv", index=False)
    return read_run(folder)


@pytest.fixture(scope="module")
def prepared(prepared_folder):
    """The prepared phantoms that runs are explained on."""
    return load_prepared(prepared_folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, prepared):
    """A classifier that has learnt nothing."""
    experiment = CLASSIFIER.replace(name="tiny", encoder="resnet18", weights="random", image_size=64)
    return untrained(tmp_path_factory.mktemp("runs") / "tiny", experiment, prepared, threshold=0.5)
