import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.cli.predict import predict_command
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.ensemble import mean_probability
from keras_pneumo.inference.files import predict_folder
from keras_pneumo.inference.predictor import predict_passes, sigmoid
from keras_pneumo.inference.run import read_run


def left_minus_right():
    """A network whose answer is known: mean of the left half minus mean of the right half."""
    pixels = keras.Input((None, None, 1))
    kernel = np.concatenate([np.ones((4, 2)), -np.ones((4, 2))], axis=1)[:, :, None, None] / 8
    features = keras.layers.Conv2D(1, 4, use_bias=False)(pixels)
    model = keras.Model(pixels, keras.layers.Reshape((1,))(features))
    model.set_weights([kernel])
    return model


def test_every_image_is_predicted_in_order():
    images = np.zeros((7, 4, 4, 1), np.float32)
    images[:, :, :2] = (np.arange(7) * 30)[:, None, None, None] / np.float32(255)
    (once,) = predict_passes(left_minus_right(), images, flip_averaging=False)
    np.testing.assert_allclose(once.image, 1 / (1 + np.exp(-np.arange(7) * 30 / 255)), rtol=1e-6)
    assert once.maps is None


def test_flip_averaging_predicts_the_mirror_image_too():
    images = np.zeros((2, 4, 4, 1), np.float32)
    images[0, :, :2] = 1
    passes = list(predict_passes(left_minus_right(), images, flip_averaging=True))
    left = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose([one.image for one in passes], [[left, 0.5], [1 - left, 0.5]], rtol=1e-6)
    run = SimpleNamespace(experiment=SimpleNamespace(image_size=4, flip_averaging=True))
    mean = mean_probability([(run, [left_minus_right()])], lambda size: images)
    np.testing.assert_allclose(mean, [0.5, 0.5], rtol=1e-6)


def test_maps_of_mirror_images_are_turned_back():
    images = np.random.default_rng(0).random((2, 4, 6, 1)).astype(np.float32)
    pixels = keras.Input((None, None, 1))
    same = keras.Model(pixels, keras.layers.Activation("linear")(pixels))
    first, second = predict_passes(same, images, flip_averaging=True)
    np.testing.assert_array_equal(first.maps, second.maps)
    np.testing.assert_allclose(first.maps, 1 / (1 + np.exp(-images[..., 0])), rtol=1e-6)
    assert first.image is None


@given(st.floats(-1e6, 1e6))
def test_probabilities_never_overflow(logit):
    with np.errstate(all="raise", under="ignore"):
        found = sigmoid(np.array([logit]))[0]
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
    pixels = open_source(prepared, ids, 64).images.astype(np.float32) / np.float32(255)
    expected = np.mean([one.image for one in predict_passes(model, pixels, experiment.flip_averaging)], axis=0)
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

    monkeypatch.setattr("keras_pneumo.inference.submission.predict_subset", fail)
    monkeypatch.setattr("keras_pneumo.inference.files.predict_folder", fail)


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
