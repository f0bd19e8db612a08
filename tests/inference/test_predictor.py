import shutil

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.cli.predict import predict_command
from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.predictor import predict_probabilities, probabilities_of
from keras_pneumo.inference.run import read_run
from keras_pneumo.inference.submit import predict_folder


def left_minus_right():
    """A network whose answer is known: mean of the left half minus mean of the right half."""
    pixels = keras.Input((None, None, 1))
    kernel = np.concatenate([np.ones((4, 2)), -np.ones((4, 2))], axis=1)[:, :, None, None] / 8
    features = keras.layers.Conv2D(1, 4, use_bias=False)(pixels)
    model = keras.Model(pixels, keras.layers.Reshape((1,))(features))
    model.set_weights([kernel])
    return model


def source(images):
    n = len(images)
    return ImageSet(tuple(map(str, range(n))), np.zeros(n, int), 4, ("",) * n, ("",) * n, images, None)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_every_image_is_answered_in_order_whatever_the_batch(batch_size):
    images = np.zeros((7, 4, 4, 1), np.uint8)
    images[:, :, :2] = (np.arange(7) * 30)[:, None, None, None]
    found = predict_probabilities(left_minus_right(), source(images), batch_size, flip_averaging=False)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.arange(7) * 30 / 255)), rtol=1e-6)


def test_flip_averaging_is_the_mean_of_both_probabilities():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    images[0, :, :2] = 255
    told = []
    found = predict_probabilities(
        left_minus_right(), source(images), 2, flip_averaging=True, progress=lambda *now: told.append(now)
    )
    sigmoid = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(found, [(sigmoid + (1 - sigmoid)) / 2, 0.5], rtol=1e-6)
    assert told == [(2, 4), (4, 4)]


@given(st.floats(-1e6, 1e6))
def test_probabilities_never_overflow(logit):
    with np.errstate(all="raise", under="ignore"):
        found = probabilities_of(np.array([logit]))[0]
    assert 0 <= found <= 1
    if abs(logit) < 30:
        assert found == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-9)


def test_raw_files_and_prepared_images_get_the_same_answer(tmp_path, phantoms, prepared_folder):
    """The way from a DICOM file and the way through a prepared folder are one."""
    from keras_pneumo.config import CLASSIFIER
    from keras_pneumo.data.batches.images import open_source
    from keras_pneumo.data.prepared.folder import load_prepared
    from keras_pneumo.inference.files import predict_files
    from keras_pneumo.inference.run import FORMAT, RunFolder, build, versions

    experiment = CLASSIFIER.replace(name="x", encoder="resnet18", weights="random", image_size=64)
    model = build(experiment)
    model.save_weights(tmp_path / "best.weights.h5")
    run = RunFolder(tmp_path, experiment, {"format": FORMAT, "versions": versions()})
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(phantoms.rglob("*.dcm"))[:5]:
        (few / path.name).write_bytes(path.read_bytes())
    (few / "broken.dcm").write_bytes(b"no dicom at all")
    predictions, refused = predict_files([run], few)
    assert len(predictions) == 5
    assert [str(file) for file in refused["file"]] == ["broken.dcm"]
    assert refused["reason"].str.len().gt(10).all()
    prepared = load_prepared(prepared_folder)
    ids = predictions["image_id"].tolist()
    expected = predict_probabilities(model, open_source(prepared, ids, 64), 4, experiment.flip_averaging)
    np.testing.assert_allclose(predictions["probability"], expected, rtol=1e-5)
    assert isinstance(predictions, pd.DataFrame)


def test_options_that_would_count_for_nothing_are_refused(tmp_path, tiny_runs, prepared_folder, phantoms):
    from keras_pneumo.cli.train import open_data
    from keras_pneumo.config import CLASSIFIER

    run, segmenter = tiny_runs / "classifier", tiny_runs / "segmenter"
    for options in ({"gate": [run]}, {"rule_file": tmp_path / "rule.json"}):
        with pytest.raises(PneumoError, match="are for segmenters' masks"):
            predict_command([run], data=phantoms, out_folder=tmp_path / "out", **options)
    with pytest.raises(PneumoError, match="--postprocess would count for nothing"):
        predict_command([segmenter], data=prepared_folder, out_folder=tmp_path, rule_file=tmp_path / "rule.json")
    table = tmp_path / "patients.csv"
    with pytest.raises(PneumoError, match="so --labels and --patients would count for nothing"):
        open_data(prepared_folder, CLASSIFIER, None, table, table)
    with pytest.raises(PneumoError, match="so --prepared would count for nothing"):
        open_data(prepared_folder, CLASSIFIER, tmp_path, None, None)
    assert open_data(prepared_folder, CLASSIFIER, None, None, None).folder == prepared_folder


@pytest.fixture
def nothing_is_predicted(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a prediction was begun")

    for name in ("predict_subset", "predict_folder"):
        monkeypatch.setattr(f"keras_pneumo.inference.submit.{name}", fail)


def test_a_folder_of_other_files_is_refused_before_anything_is_predicted(
    tmp_path, tiny_runs, prepared_folder, nothing_is_predicted
):
    (tmp_path / "thesis.txt").write_text("three years")
    for out in (tmp_path, tmp_path / "thesis.txt", tiny_runs / "segmenter"):
        with pytest.raises(PneumoError, match="nothing was changed"):
            predict_command([tiny_runs / "classifier"], data=prepared_folder, out_folder=out)
    assert (tmp_path / "thesis.txt").read_text() == "three years"
    assert (tiny_runs / "segmenter" / "best.weights.h5").exists()


def test_an_out_that_cannot_be_written_is_refused_before_anything_is_predicted(
    tmp_path, tiny_runs, prepared_folder, phantoms, nothing_is_predicted
):
    (tmp_path / "file").write_text("mine")
    run = tiny_runs / "classifier"
    with pytest.raises(PneumoError, match="is a file, but a folder is to be written there"):
        predict_command([run], data=phantoms, out_folder=tmp_path / "file")
    with pytest.raises(PneumoError, match="file"):
        predict_command([run], data=prepared_folder, out_folder=tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_names_are_no_formulas_in_the_table_and_an_old_quarantine_goes(tmp_path, tiny_runs, prepared_folder):
    """A file's name is anybody's; a spreadsheet would run one that begins as a formula does."""
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    out.mkdir()
    shutil.copy(next((prepared_folder / "images_64").glob("*.png")), films / "=1+1.png")
    (out / "quarantine.csv").write_text("file,reason\n")
    predict_folder([read_run(tiny_runs / "classifier")], films, out)
    (row,) = pd.read_csv(out / "predictions.csv").to_dict("records")
    assert (row["image_id"], row["file"]) == ("'=1+1", "'=1+1.png")
    assert [path.name for path in out.iterdir()] == ["predictions.csv"]
