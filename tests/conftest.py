"""Phantoms and a prepared folder, made once for all tests that only read them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Before NumPy is imported: two processes of tests whose products each take all cores wait for each other, spinning. A
# board of 40 patients took twice the CPU time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
from filelock import FileLock

os.environ.setdefault("MPLBACKEND", "Agg")

IMAGES = 40

# A timing never decides a test: on busy cores an example of a property takes many times as long as on others.
hypothesis.settings.register_profile("steady", deadline=None)
hypothesis.settings.load_profile("steady")


def _once(tmp_path_factory, name, make):
    """The folder ``name``, made by the first of pytest's processes that needs it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A folder of 40 phantoms as SIIM's, with pneumothoraces four times SIIM's size. Read only."""
    from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms

    return _once(
        tmp_path_factory,
        "phantoms",
        lambda folder: write_phantoms(
            folder, PhantomSettings(images=IMAGES, seed=5, positive_rate=0.5, size_scale=4.0), workers=2
        ),
    )


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory, phantoms) -> Path:
    """The phantoms prepared at 64 and 128. Read only."""
    from keras_pneumo.data.prepared.prepare import prepare

    return _once(
        tmp_path_factory,
        "prepared",
        lambda folder: prepare(phantoms, folder, [64, 128], patients=phantoms / "patients.csv", workers=2),
    )


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A cache of the test's own, so that trainings use no memory size that was measured before."""
    monkeypatch.setenv("KERAS_PNEUMO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prepared_copy(tmp_path, prepared_folder) -> Path:
    """A copy of the prepared phantoms that the test may damage."""
    return Path(shutil.copytree(prepared_folder, tmp_path / "prepared"))


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory, prepared_folder) -> Path:
    """Two run folders, ``classifier`` and ``segmenter``, with random weights. Read only."""
    return _once(tmp_path_factory, "tiny_runs", lambda folder: _write_tiny_runs(folder, prepared_folder))


def _write_tiny_runs(folder, prepared_folder):
    from keras_pneumo.config import CLASSIFIER, SEGMENTER
    from keras_pneumo.data.prepared.folder import load_prepared
    from keras_pneumo.inference.run import FORMAT, build, versions
    from keras_pneumo.storage.files import write_json

    split = load_prepared(prepared_folder).manifest["split_sha256"]
    for name, base in (("classifier", CLASSIFIER), ("segmenter", SEGMENTER)):
        experiment = base.replace(name=name, encoder="resnet18", weights="random", image_size=64, frozen_epochs=0)
        run_folder = folder / name
        run_folder.mkdir(parents=True)
        build(experiment).save_weights(run_folder / "best.weights.h5")
        record = {"format": FORMAT, "experiment": experiment.model_dump(mode="json"), "versions": versions()}
        more = {"split_sha256": split, "hardware": "a test", "training_seconds": 0.0, "command": "keras-pneumo train"}
        write_json(run_folder / "experiment.json", record | more)


@pytest.fixture(scope="session")
def tiny_detector(tmp_path_factory, tiny_runs, prepared_folder) -> Path:
    """A detector folder joined from the tiny runs. Read only."""
    from keras_pneumo.data.prepared.folder import load_prepared
    from keras_pneumo.detector.fitting import fit_detector
    from keras_pneumo.inference.run import read_run

    def make(folder):
        runs = [read_run(tiny_runs / name) for name in ("classifier", "segmenter")]
        fit_detector(runs[:1], runs[1:], load_prepared(prepared_folder), folder, name="tiny", resamples=100)

    return _once(tmp_path_factory, "tiny_detector", make)


@pytest.fixture(scope="session")
def step_lab(tmp_path_factory):
    """What ``step_lab.py`` writes about the step of two logical devices: a dictionary, with BatchNorm's ``arrays``."""
    from worker_lab import environment_of

    def make(folder):
        folder.mkdir()
        command = [sys.executable, Path(__file__).parent / "step_lab.py", folder / "step.json", folder / "step.npz"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment_of())
        assert done.returncode == 0, done.stderr[-3000:]

    folder = _once(tmp_path_factory, "step_lab", make)
    return json.loads((folder / "step.json").read_text()) | {"arrays": np.load(folder / "step.npz")}
