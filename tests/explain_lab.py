"""Runs whose weights are random, for tests of heat maps."""

import pandas as pd

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
