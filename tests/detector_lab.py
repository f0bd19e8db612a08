"""A detector with known answers: it outlines bright pixels, and always gives the same probability.

A test can compute the expected mask from the file's pixels with pydicom and cv2, without this package.
"""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from keras_pneumo.config import CLASSIFIER, SEGMENTER
from keras_pneumo.detector.calibration import Calibration
from keras_pneumo.detector.detector import Detector, ValidationCounts
from keras_pneumo.detector.likeness import Likeness, edge_features
from keras_pneumo.inference.postprocess import PostprocessingParameters
from keras_pneumo.inference.run import FORMAT, RunFolder, versions

BRIGHT = 0.45
DCIODVFY = shutil.which("dciodvfy")
"""The validator of DICOM files in Debian's dicom3tools, where it is installed."""


def bright_model():
    """A segmenter that is sure of a pneumothorax wherever a pixel is brighter than BRIGHT."""
    image = keras.Input((None, None, 1))
    model = keras.Model(image, keras.layers.Conv2D(1, 1)(image))
    model.set_weights([np.full((1, 1, 1, 1), 40.0), np.array([-40.0 * BRIGHT])])
    return model


def constant_model(probability):
    """A classifier that always gives this probability."""
    image = keras.Input((None, None, 1))
    logits = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(image))
    model = keras.Model(image, logits)
    model.set_weights([np.zeros((1, 1)), np.array([np.log(probability / (1 - probability))])])
    return model


def known_detector(size=128, probability=0.8, top=0.5, classifier_model=None):
    """An opened detector; with ``top`` above 1 it outlines nothing.

    A ``classifier_model`` gives it heat maps; the calibrated probability is ``probability`` with it, too.
    """
    record = {"format": FORMAT, "versions": versions()}
    classifier = RunFolder(Path(), CLASSIFIER.replace(name="sure", image_size=size), record)
    segmenter = RunFolder(Path(), SEGMENTER.replace(name="bright", image_size=size), record)
    return Detector(
        folder=Path(),
        name="bright",
        version="0.1.0+test",
        classifiers=[(classifier, [classifier_model or constant_model(probability)])],
        heat_map_models=[[classifier_model]] if classifier_model else [],
        segmenters=[(segmenter, [bright_model()])],
        postprocessing=PostprocessingParameters(min(top, 1.0), 1 if top <= 1 else 2**30, 0.5),
        outline_area=1,
        calibration=Calibration("isotonic", knots=((0.0, probability), (1.0, probability))),
        probability_source="classifier",
        threshold=0.5,
        counts=ValidationCounts(200, 150, 30, 10, 8, 152),
        record={},
    )


def checked_detector(images, limit=0.3, **settings):
    """A detector as :func:`known_detector` that gives no answer for what is not like these images, uint8 (H, W)."""
    small = [cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA) for image in images]
    likeness = Likeness(edge_features(small).astype(np.float16), 64, limit)
    return replace(known_detector(**settings), likeness=likeness)


def drawn_hand(side=512):
    """A hand as on a radiograph: five fingers of three bones each, a palm and a wrist, bright on black."""
    image = np.zeros((512, 512), np.uint8)
    cv2.ellipse(image, (256, 340), (95, 85), 0, 0, 360, 90, -1)
    cv2.rectangle(image, (205, 400), (305, 511), 90, -1)
    for x, y, angle, length in ((120, 330, -55, 60), (175, 265, -14, 75), (235, 245, -3, 85), (295, 250, 8, 78),
                                (350, 280, 20, 62)):  # fmt: skip
        turn = np.deg2rad(angle)
        for bone in range(3):
            far = np.array([x + np.sin(turn) * length * bone, y - np.cos(turn) * length * bone])
            end = far + np.array([np.sin(turn), -np.cos(turn)]) * length * 0.8
            ends = [tuple(round(value) for value in point) for point in (far, end)]
            cv2.line(image, *ends, 90, 40)
            cv2.line(image, *ends, 190, 16)
    return cv2.resize(cv2.GaussianBlur(image, (0, 0), 3), (side, side), interpolation=cv2.INTER_AREA)


def expected_mask(pixels, size=128):
    """The expected mask in the rows and columns of the file, from its decoded pixels (uint8, white = dense)."""
    rows, columns = pixels.shape
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    square = np.pad(pixels, ((top, side - rows - top), (left, side - columns - left)))
    small = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return (cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR) > BRIGHT)[top:, left:][:rows, :columns]


def cut_dicom(path, target, rows, columns):
    """Write the part of a DICOM file that these two slices give as a file of its own; returns ``target``."""
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array[rows, columns]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(target, enforce_file_format=True)
    return target


def dice(first, second):
    return 2 * np.logical_and(first, second).sum() / (first.sum() + second.sum())


def check_valid(out):
    """dciodvfy finds no error in any object."""
    made = sorted(path for path in (out / "dicom").rglob("*.dcm") if path.name != "source.dcm")
    assert made
    for path in made:
        validation = subprocess.run([DCIODVFY, "-new", path], capture_output=True, text=True)
        assert "Error" not in validation.stderr + validation.stdout, f"{path.name}: {validation.stderr}"
