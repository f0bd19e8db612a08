"""A training that is gone on with is the one that was begun: its average, its origin, its slices, its signals."""

import json
import os
import signal

import crash_lab
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from keras_pneumo.data.prepared import load_prepared
from keras_pneumo.errors import Stopped
from keras_pneumo.training import start
from keras_pneumo.training.fit import Manner, train

BRIEF = crash_lab.SHORT.replace(frozen_epochs=1, epochs=2, swa_epochs=0, top_k=1)


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(start, "build", crash_lab.tiny)
    monkeypatch.setenv("KERAS_PNEUMO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prepared(prepared_folder):
    return load_prepared(prepared_folder)


def begin(prepared, folder, experiment=BRIEF, signal_after=0, number=signal.SIGTERM, **options):
    """Train, or go on; with ``signal_after`` a signal comes in that epoch's validation."""
    resume = folder.exists()
    folder.mkdir(exist_ok=True)
    said = []

    def on_epoch(row):
        if row.epoch == signal_after:
            os.kill(os.getpid(), number)

    train(experiment, prepared, folder, on_epoch=on_epoch, manner=Manner(resume=resume, tell=said.append), **options)
    return said


def same_weights(one, other):
    first, second = (load_file(folder / "best.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def record_of(folder):
    return json.loads((folder / "experiment.json").read_text())


@pytest.mark.parametrize("frozen_batchnorm", [True, False])
def test_stopped_after_the_last_phase_the_average_is_that_of_an_unbroken_run(tmp_path, prepared, frozen_batchnorm):
    experiment = BRIEF.replace(swa_epochs=2, frozen_batchnorm=frozen_batchnorm)
    begin(prepared, tmp_path / "whole", experiment)
    with pytest.raises(Stopped):
        begin(prepared, tmp_path / "broken", experiment, signal_after=3)
    begin(prepared, tmp_path / "broken", experiment)
    same_weights(tmp_path / "whole", tmp_path / "broken")
    columns = ["epoch", "phase", "loss", "validation_loss", "validation_auroc"]
    logs = [pd.read_csv(tmp_path / name / "log.csv")[columns] for name in ("whole", "broken")]
    pd.testing.assert_frame_equal(*logs, check_exact=True)
    assert logs[0]["phase"].tolist()[-1] == "average"
