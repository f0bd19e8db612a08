"""Masks predicted from the real DICOM files lie where the radiograph says: a network whose answer is known.

It answers yes where the radiograph is bright, so its mask can be made from the file's own pixels, read here with
pydicom and resized with cv2 and nothing of ours. A mirrored, turned, shifted or wrongly scaled mask would not fit.
"""

import os
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pydicom
import pytest

from keras_pneumo.config import SEGMENTER
from keras_pneumo.data.labels import rle
from keras_pneumo.inference import ensemble
from keras_pneumo.inference.files import predict_files
from keras_pneumo.inference.postprocess import PostprocessingParameters
from keras_pneumo.inference.run import FORMAT, RunFolder, versions
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[3] / "shared")) / "siim_mini" / "dicom"
BRIGHT = 0.45


def bright_model():
    """A segmenter without weights to learn: sure of a pneumothorax wherever a pixel is brighter than BRIGHT."""
    image = keras.Input((None, None, 1))
    logits = keras.layers.Conv2D(1, 1, name="bright")(image)
    model = keras.Model(image, logits)
    model.set_weights([np.full((1, 1, 1, 1), 40.0), np.array([-40.0 * BRIGHT])])
    return model


def dice(first, second):
    return 2 * np.logical_and(first, second).sum() / (first.sum() + second.sum())


@pytest.fixture
def bright_run(monkeypatch, tmp_path):
    monkeypatch.setattr(ensemble, "load_predictors", lambda run, distributed: [bright_model()])

    def run_at(size):
        return RunFolder(
            tmp_path, SEGMENTER.replace(name="x", image_size=size), {"format": FORMAT, "versions": versions()}
        )

    return run_at


def check_folder(folder, run):
    table, refused = predict_files([run], folder, parameters=PostprocessingParameters(0.5, 1, 0.5))
    assert not len(refused)
    assert isinstance(table, pd.DataFrame)
    for row in table.itertuples():
        pixels = pydicom.dcmread(folder / row.file).pixel_array
        size = run.experiment.image_size
        small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        expected = cv2.resize(small, (1024, 1024), interpolation=cv2.INTER_LINEAR) > BRIGHT
        mask = rle.decode(row.encoded_pixels) > 0
        assert mask.shape == expected.shape
        right = dice(mask, expected)
        assert right > 0.95, row.file
        for wrong in (mask[:, ::-1], mask[::-1], mask.T, np.roll(mask, 32, axis=1)):
            assert dice(wrong, expected) < right - 0.02
    return len(table)


@pytest.mark.parametrize("size", [128, 512])
@pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM files are not here")
def test_masks_of_real_files_line_up_with_the_radiographs(bright_run, size):
    assert check_folder(REAL, bright_run(size)) == 10


def test_masks_of_phantoms_line_up_with_the_radiographs(bright_run, tmp_path):
    write_phantoms(tmp_path / "raw", PhantomSettings(images=3, seed=1, positive_rate=0.5), workers=1)
    few = tmp_path / "few"
    few.mkdir()
    for path in list((tmp_path / "raw").rglob("*.dcm"))[:3]:
        (few / path.name).write_bytes(path.read_bytes())
    assert check_folder(few, bright_run(128)) == 3
