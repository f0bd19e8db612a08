"""Tests of the evaluation on an external test set: what is predicted, scored, left out and said."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.prepared.split import is_test_only
from keras_pneumo.detector.detector import Detector, open_detector
from keras_pneumo.detector.external import evaluate
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.compare import compare
from keras_pneumo.inference.postprocess import PostprocessingParameters, PostprocessingSearch, write_postprocessing
from keras_pneumo.inference.provenance import LEARNED, LEARNED_SHA256, used_images
from keras_pneumo.inference.run import read_run
from keras_pneumo.inference.submission import predict_subset
from keras_pneumo.storage.files import write_table


@pytest.fixture
def run(tmp_path, tiny_runs, prepared_folder):
    """The tiny classifier with the table of what it has learned from, and a threshold."""
    return own_run(tmp_path, tiny_runs / "classifier", prepared_folder)


def own_run(tmp_path, source, prepared_folder, **record):
    folder = tmp_path / "home" / source.name
    shutil.copytree(source, folder)
    digest = write_table(folder / LEARNED, used_images(load_prepared(prepared_folder), 0))
    path = folder / "experiment.json"
    own = {LEARNED_SHA256: digest, "threshold": 0.4, "synthetic": True, **record}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Phantoms that no run has seen, half of them positive."""
    from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms

    folder = tmp_path_factory.mktemp("other") / "elsewhere"
    write_phantoms(folder, PhantomSettings(images=24, seed=77, positive_rate=0.5, size_scale=4.0), workers=2)
    return folder


def test_every_image_is_predicted_scored_and_reported(tmp_path, run, other):
    out = tmp_path / "out"
    result = evaluate(run, other, out, resamples=100)
    prepared = load_prepared(out / "prepared")
    assert is_test_only(prepared.split)
    assert result.prepared.images == len(result.contamination) == len(result.board.truth.cases) == 24
    assert not result.contamination["left_out"].any()
    assert result.cautions == []
    submission = pd.read_csv(out / "submission/predictions.csv").set_index("image_id")["probability"]
    # The same submission, scored by the referee as it is, has the same scores.
    table = compare(out / "submission", out / "prepared", subset="all", resamples=100).table
    row = table[table["kind"] == "submission"].iloc[0]
    for name in ("auroc", "sensitivity", "specificity", "brier", "calibration_error"):
        assert row[name] == pytest.approx(result.scores.loc[name, "value"], abs=1e-12)
        assert row[f"{name}_low"] == pytest.approx(result.scores.loc[name, "low"], abs=1e-12)
    assert row["threshold"] == 0.4
    # And the same predictor: what predict says of these images.
    direct = predict_subset([read_run(run)], replace_split(prepared, run), "test").predictions.set_index("image_id")
    np.testing.assert_allclose(submission[direct.index], direct["probability"], atol=1e-6)
    page = result.report.read_text()
    for text in ("An external test set", "Scores by subgroup", "sex: female", "chest tube: yes", "phantoms"):
        assert text in page
    groups = pd.read_csv(out / "subgroups.csv")
    assert {"sex", "age", "view", "chest tube", "mask size"} <= set(groups["attribute"])
    assert groups.loc[groups["attribute"] == "sex", "images"].sum() == 24
    sizes = groups[groups["attribute"] == "mask size"]
    assert (sizes["images"] - sizes["positives"]).nunique() == 1  # all negatives beside each size


def replace_split(prepared, run):
    """The folder with a validation subset and the split of a run, so that it is predicted as its own."""
    from dataclasses import replace

    split = prepared.split.copy()
    both = [split.index[split["pneumothorax"] == label][0] for label in (0, 1)]
    split.loc[both, ["subset", "fold"]] = ["validation", 0]
    home = json.loads((run / "experiment.json").read_text())["split_sha256"]
    return replace(prepared, split=split, manifest=prepared.manifest | {"split_sha256": home})


def test_what_was_learned_from_is_left_out_or_said_on_top(tmp_path, run, prepared_folder):
    prepared = load_prepared(prepared_folder)
    used = len(prepared.subset("train")) + len(prepared.subset("validation"))
    result = evaluate(run, prepared_folder, tmp_path / "out", resamples=100)
    assert result.prepared is None
    assert set(result.board.truth.cases["image_id"]) == set(prepared.subset("test"))
    assert result.cautions == [
        f"{used} images of {len(prepared.cases)} that the network has or may have learned from were left out; "
        "contamination.csv names them."
    ]
    assert result.cautions[0] in result.report.read_text()
    written = pd.read_csv(tmp_path / "out/contamination.csv")
    assert written["same_file"].sum() == used
    kept = evaluate(run, prepared_folder, tmp_path / "kept", keep_contaminated=True, resamples=100)
    assert len(kept.board.truth.cases) == len(prepared.cases)
    assert kept.cautions[0].startswith(f"The scores are too good: {used} scored images")
    info = json.loads((tmp_path / "kept/submission/submission.json").read_text())
    assert len(info["pretraining"]["image_ids"]) == used  # the board says it of this submission


def test_nothing_left_is_refused(tmp_path, run, prepared_folder):
    prepared = load_prepared(prepared_folder)
    learned = used_images(prepared, 0)
    test = learned.iloc[:1].assign(image_id=prepared.subset("test")[0])
    every = pd.concat([learned, *[test.assign(image_id=name) for name in prepared.subset("test")]])
    path = run / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {LEARNED_SHA256: write_table(run / LEARNED, every)}))
    with pytest.raises(PneumoError, match=r"Nothing is left to score: 40 of 40 images.*--keep-contaminated"):
        evaluate(run, prepared_folder, tmp_path / "out", resamples=100)


def test_phantoms_and_radiographs_are_not_confused(tmp_path, tiny_runs, prepared_folder, other):
    real = own_run(tmp_path, tiny_runs / "classifier", prepared_folder, synthetic=False)
    result = evaluate(real, other, tmp_path / "out", resamples=100)
    assert result.cautions[0].startswith("These images are synthetic phantoms, and the network was trained on radio")
    unmarked = shutil.copytree(other, tmp_path / "unmarked")
    (unmarked / "phantom.json").unlink()
    (real / "experiment.json").write_text(
        (real / "experiment.json").read_text().replace('thetic": false', 'thetic": true')
    )
    result = evaluate(real, unmarked, tmp_path / "other", resamples=100)
    assert result.cautions[0].startswith("The network was trained on synthetic phantoms, and these are real")
    assert result.report.read_text().index(result.cautions[0]) < result.report.read_text().index("Scores of")


def test_one_class_is_scored_as_far_as_it_goes(tmp_path, run, other):
    labels = pd.read_csv(other / "train-rle.csv", skipinitialspace=True)
    column = next(name for name in labels if "Pixels" in name)
    negatives = labels[labels[column].astype(str).str.strip() == "-1"]
    negatives.to_csv(tmp_path / "negatives.csv", index=False)
    result = evaluate(run, other, tmp_path / "out", labels=tmp_path / "negatives.csv", resamples=100)
    assert np.isnan(result.scores.loc["auroc", "value"])
    assert np.isfinite(result.scores.loc["specificity", "value"])
    assert "needs both classes" in result.report.read_text()
    assert any(sentence.startswith("All") and "negative" in sentence for sentence in result.sentences)


def test_a_segmenter_and_a_detector_are_evaluated_as_they_answer(
    tmp_path, tiny_runs, tiny_detector, prepared_folder, other
):
    segmenter = own_run(tmp_path, tiny_runs / "segmenter", prepared_folder)
    parameters = PostprocessingParameters(top=0.5, area=100, bottom=0.4)
    write_postprocessing(segmenter, PostprocessingSearch(parameters, 1.0, 1.0, 1, np.zeros(1), (), ()))
    result = evaluate(segmenter, other, tmp_path / "out", resamples=100)
    assert "dice_positives" in result.scores.index
    assert result.board.headline == "dice"
    result = evaluate(tiny_detector, other, tmp_path / "joined", resamples=100)
    detector = open_detector(tiny_detector)
    path = sorted(other.rglob("*.dcm"))[0]
    (alone,) = detector.predict(path)
    predicted = pd.read_csv(tmp_path / "joined/submission/predictions.csv").set_index("image_id")
    assert predicted.loc[alone.image_id, "probability"] == pytest.approx(alone.probability, abs=1e-6)
    assert result.board.teams[0].threshold == detector.threshold
    assert "At home" in result.report.read_text()


def test_images_unlike_the_training_images_are_counted_on_top(tmp_path, tiny_detector, other, monkeypatch):
    answers = Detector.answer_prepared

    def unlike(self, prepared, image_ids, progress=None):
        for number, (image_id, answer) in enumerate(answers(self, prepared, image_ids, progress)):
            yield image_id, dataclasses.replace(answer, unlike=number < 2)

    monkeypatch.setattr(Detector, "answer_prepared", unlike)
    result = evaluate(tiny_detector, other, tmp_path / "out", resamples=100)
    (caution,) = [text for text in result.cautions if "not like the training images" in text]
    assert caution.startswith("2 of ")
    assert "not like the training images" in result.report.read_text()


@pytest.mark.parametrize("name", ["experiment.json", "detector.json", "manifest.json"])
def test_a_folder_of_something_else_is_refused(tmp_path, run, other, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(PneumoError, match="holds something else"):
        evaluate(run, other, tmp_path / "out")


def test_a_detector_that_is_not_there_is_said_so(tmp_path, other):
    with pytest.raises(PneumoError, match=r"There is no folder .*nowhere. Name the folder of a run, or of a detector"):
        evaluate(tmp_path / "nowhere", other, tmp_path / "out")
