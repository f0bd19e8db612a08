import json
import shutil

import numpy as np
import pytest

from keras_pneumo.data.batches.images import images_of, open_source
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.ensemble import held_out_images, predict_classifiers, predict_map_set
from keras_pneumo.inference.predictor import sigmoid
from keras_pneumo.inference.run import build, load_model, read_run
from keras_pneumo.inference.submission import predict_subset
from keras_pneumo.storage.files import write_json


@pytest.fixture
def prepared(prepared_folder):
    return load_prepared(prepared_folder)


def variant(run, folder, **changes):
    """A copy of a run with other settings and the weights of another seed."""
    copy = read_run(shutil.copytree(run.folder, folder))
    experiment = copy.experiment.replace(**changes)
    build(experiment.replace(seed=experiment.seed + 1)).save_weights(copy.folder / "best.weights.h5")
    write_json(copy.folder / "experiment.json", copy.record | {"experiment": experiment.model_dump(mode="json")})
    return read_run(copy.folder)


def test_row_38_an_image_that_was_replaced_is_not_predicted(tiny_runs, prepared_copy):
    prepared = load_prepared(prepared_copy)
    first, second = prepared.subset("test")[:2]
    prepared.image_path(first, 64).write_bytes(prepared.image_path(second, 64).read_bytes())
    for name, predict in (("classifier", predict_classifiers), ("segmenter", predict_map_set)):
        with pytest.raises(PneumoError, match=f"missing or damaged .images_64/{first}.png"):
            predict([read_run(tiny_runs / name)], prepared, "test")


@pytest.mark.parametrize("batch_size", [2, 3, 50])
def test_every_image_is_predicted_in_order_whatever_the_batch(tmp_path, tiny_runs, prepared, batch_size):
    run = variant(read_run(tiny_runs / "classifier"), tmp_path / "run", global_batch_size=batch_size)
    done = []
    table = predict_classifiers([run], prepared, "test", lambda *now: done.append(now))
    assert table["image_id"].tolist() == prepared.subset("test")
    assert done[-1] == (len(table), len(table))
    held_out = prepared.subset("test")
    images = images_of(open_source(prepared, held_out, 64), range(len(held_out))).astype(np.float32) / np.float32(255)
    model = load_model(run)
    passes = [sigmoid(np.asarray(model.predict_on_batch(some))[:, 0]) for some in (images, images[:, :, ::-1])]
    np.testing.assert_allclose(table["probability"], np.mean(passes, axis=0), rtol=1e-5)
    assert table["probability"].nunique() > 1


def test_the_mean_is_over_all_networks_and_mirror_images(tmp_path, tiny_runs, prepared):
    """What a loop that is written out gives, but for what folded BatchNorm rounds otherwise."""
    first = read_run(tiny_runs / "classifier")
    second = variant(first, tmp_path / "second", image_size=128)
    image_ids = prepared.subset("test")
    means = []
    for run in (first, second):
        model, source = load_model(run), open_source(prepared, image_ids, run.experiment.image_size)
        pixels = images_of(source, range(len(source)))
        images = pixels.astype(np.float32) / np.float32(255)
        logits = [np.asarray(model.predict_on_batch(some))[:, 0] for some in (images, images[:, :, ::-1])]
        means.append((sigmoid(logits[0]) + sigmoid(logits[1])) / 2)
    table = predict_classifiers([first, second], prepared, "test")
    np.testing.assert_allclose(table["probability"], (means[0] + means[1]) / 2, rtol=1e-5)


def test_two_runs_are_the_mean_of_their_maps(tiny_runs, prepared):
    run = read_run(tiny_runs / "segmenter")
    single = predict_map_set([run], prepared, "test")
    double = predict_map_set([run, run], prepared, "test")
    for first, second in zip(single.maps, double.maps, strict=True):
        np.testing.assert_allclose(first.unpack().astype(int), second.unpack().astype(int), atol=1)
    np.testing.assert_allclose(single.image_probability, double.image_probability, rtol=1e-5)


def test_validation_images_are_predicted_by_the_runs_that_held_them_out(tmp_path, tiny_runs, prepared):
    first = read_run(tiny_runs / "classifier")
    second = variant(first, tmp_path / "second", fold=1)
    groups = held_out_images([second, first], prepared, "validation")
    assert groups == [
        ([first], prepared.subset("validation", fold=0)),
        ([second], prepared.subset("validation", fold=1)),
    ]
    assert held_out_images([second, first], prepared, "test") == [([second, first], prepared.subset("test"))]
    with pytest.raises(PneumoError, match="no training images in common"):
        held_out_images([second, first], prepared, "train")


def test_runs_that_do_not_fit_are_refused(tmp_path, tiny_runs, prepared):
    run = read_run(tiny_runs / "segmenter")
    with pytest.raises(PneumoError, match="not a classifier"):
        predict_subset([run], prepared, gate=[run])
    other = shutil.copytree(run.folder, tmp_path / "other")
    record = json.loads((other / "experiment.json").read_text())
    write_json(other / "experiment.json", record | {"split_sha256": "0" * 64})
    with pytest.raises(PneumoError, match="split"):
        predict_subset([run, read_run(other)], prepared)
