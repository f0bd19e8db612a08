"""Tests of the summary of an answer: its source, and the exact error rates."""

import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from detector_lab import checked_detector, drawn_hand, known_detector

from keras_pneumo.data.radiographs.reading import read_radiograph
from keras_pneumo.detector.detect import detect
from keras_pneumo.detector.summary import caption, error_rate_of


@pytest.mark.parametrize(("gate", "written"), [(0.25, {"source": "outline", "from": 0.25}), (0.0, None)])
def test_a_summary_names_the_sources_of_the_answer(few, tmp_path, gate, written):
    (path,) = sorted(few.iterdir())[:1]
    detector = known_detector(probability=0.7)
    parameters = replace(detector.postprocessing, gate=gate, gate_source="outline")
    detector = replace(detector, postprocessing=parameters, probability_source="classifier and outline")
    detect(detector, [path], tmp_path)
    summary = json.loads((tmp_path / f"{path.stem}.json").read_text())
    assert summary["probability_source"] == "classifier and outline"
    assert summary["gate"] == written
    assert summary["classifier_probability"] == pytest.approx(0.7, abs=1e-6)
    assert summary["own_head_probability"] is None
    assert summary["probability"] == detector.answer([read_radiograph(path).pixels])[0].probability


def test_what_was_trained_on_phantoms_says_so_first_and_gives_no_error_rate(few, tmp_path):
    real = known_detector()
    synthetic = replace(real, record={"synthetic": True})
    for detector, out in ((real, tmp_path / "real"), (synthetic, tmp_path / "synthetic")):
        detect(detector, [min(few.iterdir())], out)
    with_rate, without = (
        json.loads(next((tmp_path / name).glob("*.json")).read_text()) for name in ("real", "synthetic")
    )
    assert "Of 100 images with the answer yes" in with_rate["meaning"]
    assert "synthetic" not in with_rate
    assert "It says nothing of real ones" in without["synthetic"]
    assert "not known" in without["meaning"]
    assert not re.search(r"of 100|[0-9]%", without["meaning"], re.IGNORECASE)
    pictures = [cv2.imread(str(next((tmp_path / name).glob("*.png")))) for name in ("real", "synthetic")]
    rows = np.flatnonzero((pictures[0] != pictures[1]).any(axis=(1, 2)))
    assert rows.size, "the overlay says it too"
    assert rows.min() > 0.85 * len(pictures[0])


def test_the_caption_of_an_image_without_an_answer_gives_neither_answer_nor_probability():
    detector = checked_detector([np.tile(np.arange(256, dtype=np.uint8), (256, 1))])
    (answer,) = detector.answer([drawn_hand()])
    assert answer.unlike
    assert caption(detector, answer) == [
        "Not like the training images: no answer", "keras-pneumo bright 0.1.0+test. Research use only"]  # fmt: skip
    # The mask would contradict the answer, but there is no answer to contradict.
    synthetic = replace(detector, record={"synthetic": True}, threshold=0.9)
    assert caption(synthetic, answer)[0].startswith("Trained on synthetic radiographs")
    assert len(caption(synthetic, answer)) == 3


def test_error_rates_are_exact():
    counts = known_detector().counts  # 30 right and 10 wrong yes, 152 right and 8 wrong no; 38 of 200 positive
    yes, no = error_rate_of(counts, True), error_rate_of(counts, False)
    assert (yes.wrong, yes.answers, no.wrong, no.answers) == (10, 40, 8, 160)
    assert "about 25 have no pneumothorax" in yes.sentence
    assert "about 5 have a pneumothorax" in no.sentence
    assert "19% of 200" in yes.sentence
    assert yes.low < 0.25 < yes.high
