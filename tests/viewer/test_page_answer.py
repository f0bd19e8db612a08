"""Tests of the answer for the page: its heat maps, and the sentences about its sources."""

from dataclasses import replace

import numpy as np
import pytest
from detector_lab import known_detector

from keras_pneumo.detector.detector import open_detector
from keras_pneumo.explain.gradcam import heat_maps
from keras_pneumo.inference.files import pixels_at
from keras_pneumo.viewer.page_answer import heat_map_method, heat_map_sentences, mean_heat

NO_PART = "not from the classifier of this heat map"
SEGMENTER_ALONE = "The outline comes from the segmenter alone."


def test_heat_maps_are_those_selected_on_validation(tiny_detector):
    detector = open_detector(tiny_detector, heat_maps=True)
    method, stage = heat_map_method(detector)
    selected = detector.record["heat"]
    assert (selected["method"], selected["stage"]) == (method, stage)
    image = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    ((model,),) = detector.heat_map_models
    expected = heat_maps(model, pixels_at([image], 64), method, stage)
    assert mean_heat(detector, [image]).mean() == pytest.approx(expected.mean(), abs=5e-3)
    assert heat_map_method(known_detector()) == ("gradcam", 5)


def test_the_heat_map_sentences_give_method_and_pointing():
    detector = known_detector()
    heat = {"method": "hirescam", "stage": 1, "pointing": 0.5, "chance": 0.06, "images": 30}
    detector = replace(detector, record={"heat": heat})
    assert heat_map_sentences(detector) == (
        "Heat map of the classifier: HiResCAM of stage 1. Its hottest point lies in the pneumothorax in 50% of 30 "
        "validation positives (6% by chance). The probability comes from the classifier. The outline comes from the "
        "segmenter alone."
    )
    ((run, models),) = detector.classifiers
    both = heat_map_sentences(replace(detector, classifiers=[(run, models * 2)]))
    assert "HiResCAM of stage 1, mean of 2 networks. The first network's hottest point lies in" in both


@pytest.mark.parametrize(
    ("source", "gate", "gate_source", "words"),
    [
        ("classifier", 0, "", f"The probability comes from the classifier. {SEGMENTER_ALONE}"),
        ("outline", 0, "", f"The probability comes from the segmenter, {NO_PART}. {SEGMENTER_ALONE}"),
        ("own head", 0.4, "own head", f"from the segmenter, {NO_PART}. {SEGMENTER_ALONE}"),
        ("outline", 0, "classifier", f"from the segmenter, {NO_PART}. {SEGMENTER_ALONE}"),
        (
            "outline",
            0.4,
            "classifier",
            "the segmenter, where the probability of the classifier is at least 0.400.",
        ),
        ("classifier and outline", 0, "", "The probability comes from the classifier and the segmenter. The outline"),
        (
            "classifier, own head and outline",
            0.4,
            "classifier and own head",
            "The probability comes from the classifier and the segmenter. The outline comes from the segmenter, where "
            "the probability of the classifier and the segmenter is at least 0.400.",
        ),
    ],
)
def test_the_members_behind_probability_and_outline_are_named(source, gate, gate_source, words):
    detector = known_detector()
    parameters = replace(detector.postprocessing, gate=gate, gate_source=gate_source)
    sentence = heat_map_sentences(replace(detector, probability_source=source, postprocessing=parameters))
    assert words in sentence
    assert (NO_PART in sentence) == ("classifier" not in source)
