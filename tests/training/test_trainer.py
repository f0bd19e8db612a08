import contextlib
import json

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from crash_lab import QUICK, tiny
from safetensors.numpy import load_file
from tensorflow.python.framework import config

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.metrics import auroc
from keras_pneumo.inference.run import build, load_model, read_run
from keras_pneumo.models.resnet import depth_groups
from keras_pneumo.training.optimizers import make_optimizer
from keras_pneumo.training.trainer import (
    TrainingOptions,
    phases_of,
    run_training,
    set_determinism,
    set_precision,
    starting_point,
    train,
)

TINY = CLASSIFIER.replace(
    name="tiny",
    encoder="resnet18",
    weights="random",
    image_size=64,
    frozen_epochs=1,
    epochs=1,
    global_batch_size=8,
    positive_rate=((0, 0.5),),
    label_smoothing=0.1,
    ema=0.5,
    depth_decay=0.5,
    dropout=0.2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared_folder):
    """A tiny run, made once; read only."""
    folder = tmp_path_factory.mktemp("run")
    calls, rows = [], []
    result = train(
        TINY,
        load_prepared(prepared_folder),
        folder,
        TrainingOptions(
            command="keras-pneumo train tiny",
            on_epoch=rows.append,
            show_progress=lambda title: contextlib.nullcontext(lambda *now: calls.append(now)),
        ),
    )
    return folder, result, rows, calls


def test_a_run_leaves_its_record_log_weights_and_curves(finished, prepared_folder):
    folder, result, rows, calls = finished
    record = json.loads((folder / "experiment.json").read_text())
    manifest = load_prepared(prepared_folder).manifest
    assert record["experiment"] == json.loads(TINY.model_dump_json())
    assert record["split_sha256"] == manifest["split_sha256"]
    assert record["prepared_sha256"] == manifest["prepared_sha256"]
    assert record["versions"]["keras"] == keras.__version__
    assert record["parameters"] == build(TINY).count_params()
    assert record["command"] == "keras-pneumo train tiny"
    log = pd.read_csv(folder / "log.csv")
    assert log["epoch"].tolist() == [1, 2] == [row.epoch for row in rows]
    assert log["phase"].tolist() == ["frozen", "whole"]
    assert log["best"].iloc[0] == 1
    assert np.isfinite(log[["loss", "validation_loss", "learning_rate", "images_per_second"]]).all(axis=None)
    assert result.best.epoch == record["best_epoch"] == log[log["best"] == 1]["epoch"].iloc[-1]
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert calls[-1][0] == calls[-1][1] == 2 * record["training_images"]
    assert not list(folder.glob("writing*"))
    predictions = pd.read_csv(folder / "predictions_by_epoch.csv", dtype={"image_id": str})
    assert sorted(predictions["image_id"]) == sorted(load_prepared(prepared_folder).subset("validation"))
    for epoch, expected in zip(log["epoch"], log["validation_auroc"], strict=True):
        positive = predictions["pneumothorax"] == 1
        assert auroc(positive.to_numpy(), predictions[f"epoch_{epoch}"].to_numpy()) == pytest.approx(expected, abs=0.01)


def test_the_same_seed_gives_the_same_weights(finished, tmp_path, prepared_folder):
    folder, *_ = finished
    train(TINY, load_prepared(prepared_folder), tmp_path)
    first, second = load_file(folder / "best.safetensors"), load_file(tmp_path / "best.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_weights_come_back_and_both_files_hold_the_same(finished):
    folder, *_ = finished
    from keras_pneumo.models.weights import from_torch

    model, other = load_model(read_run(folder)), build(TINY)
    from_torch(other, load_file(folder / "best.safetensors"))
    images = np.random.default_rng(0).random((2, 64, 64, 1)).astype("float32")
    logits = model.predict_on_batch(images)
    np.testing.assert_allclose(logits, other.predict_on_batch(images), rtol=1e-5)
    assert not np.allclose(logits, build(TINY).predict_on_batch(images)), "training changed the network"


def test_the_report_gets_the_network_that_would_be_loaded_again(finished):
    folder, result, *_ = finished
    images = np.random.default_rng(0).random((3, 64, 64, 1)).astype("float32")
    loaded = load_model(read_run(folder))
    np.testing.assert_allclose(result.model.predict_on_batch(images), loaded.predict_on_batch(images), rtol=1e-5)
    for own, again in zip(result.model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(own, again)


def test_validation_and_all_phases_share_one_graph(finished):
    _, result, *_ = finished
    model, images = result.model, np.zeros((3, 64, 64, 1), "float32")
    for some in (images, images[:1]):
        model.predict_on_batch(some)
    assert model.predict_function.__self__.function.experimental_get_tracing_count() == 1


@pytest.mark.slow
def test_a_frozen_encoder_keeps_weights_and_statistics(tmp_path, prepared_folder):
    frozen_only = TINY.replace(frozen_epochs=1, epochs=1, learning_rate=1e-12, weight_decay=0, ema=0, dropout=0)
    saved = {}

    def remember(row):
        saved[row.phase] = load_file(tmp_path / "best.safetensors")

    train(frozen_only, load_prepared(prepared_folder), tmp_path, TrainingOptions(on_epoch=remember))
    from keras_pneumo.models.weights import to_torch

    start = to_torch(build(frozen_only))
    for name in ("conv1.weight", "bn1.running_mean", "layer4.1.bn2.running_var"):
        np.testing.assert_array_equal(saved["frozen"][name], start[name])


@pytest.mark.slow
def test_a_run_goes_from_the_prepared_folder_to_its_report_without_the_command_line(tmp_path, prepared_folder):
    """As in a notebook. The same call again is refused, and a lost report is written again."""
    prepared, messages, shown, trained = load_prepared(prepared_folder), [], [], []
    experiment = TINY.replace(frozen_epochs=0, ema=0, depth_decay=1)

    def show_progress(title):
        shown.append(title)
        return contextlib.nullcontext(None)

    options = TrainingOptions(say=messages.append, on_trained=trained.append, show_progress=show_progress)
    finished = run_training(experiment, prepared, tmp_path / "run", options)
    assert finished.path == tmp_path / "run/report.html"
    assert finished.path.is_file()
    assert finished.sentences
    assert (tmp_path / "run/submission/predictions.csv").is_file()
    assert messages == [f"Training tiny: resnet18 at 64, on one device, into {tmp_path / 'run'}"]
    assert shown == ["training", "prediction"]
    assert [result.best.epoch for result in trained] == [1]
    with pytest.raises(PneumoError, match="finished training"):
        run_training(experiment, prepared, tmp_path / "run", options)
    finished.path.unlink()
    again = run_training(experiment, prepared, tmp_path / "run", options, must_resume=True)
    assert again.path.is_file()
    assert len(trained) == 1, "the training itself was done"
    assert "is an unfinished run" in messages[-1]


def test_phases_and_their_rates():
    experiment = TINY.replace(frozen_epochs=2, epochs=3, learning_rate=1e-4, frozen_learning_rate=1e-3)
    frozen, whole = phases_of(experiment)
    assert (frozen.first_epoch, frozen.epochs, frozen.encoder_learns, frozen.learning_rate) == (0, 2, False, 1e-3)
    assert (whole.first_epoch, whole.epochs, whole.encoder_learns, whole.learning_rate) == (2, 3, True, 1e-4)
    assert [phase.name for phase in phases_of(experiment.replace(frozen_epochs=0))] == ["whole"]


def test_rates_fall_towards_the_stem_and_the_cycle_is_torchs():
    model = build(TINY)
    optimizer = make_optimizer(TINY, model, 1e-2, 100)
    optimizer.build(model.trainable_variables)
    groups = depth_groups(model)
    by_path = {path: 0.5 ** (5 - group) for path, group in groups.items()}
    assert by_path[model.get_layer("fc").kernel.path] == 1
    assert min(by_path.values()) == 0.5**5
    assert float(optimizer.learning_rate) == pytest.approx(1e-2 / 25)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "warm_restarts", "plateau", "constant"])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_every_optimizer_and_schedule_takes_a_step(schedule, kind):
    pixels = keras.Input((8, 8, 1))
    model = keras.Model(pixels, keras.layers.Dense(1)(keras.layers.Flatten()(pixels)))
    experiment = TINY.replace(schedule=schedule, optimizer=kind, clip_norm=1.0, ema=0)
    model.compile(make_optimizer(experiment, model, 1e-2, 10), keras.losses.BinaryCrossentropy(from_logits=True))
    before = model.get_weights()[0].copy()
    model.train_on_batch(np.ones((2, 8, 8, 1), "float32"), np.array([[1.0], [1.0]]))
    assert not np.array_equal(before, model.get_weights()[0])


def test_float32_on_a_cpu():
    set_precision(TINY)
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.slow
def test_mixed_precision_runs_and_is_kept_in_the_record(tmp_path, prepared_folder):
    try:
        experiment = TINY.replace(precision="mixed_bfloat16", frozen_epochs=0)
        train(experiment, load_prepared(prepared_folder), tmp_path)
    finally:
        keras.config.set_dtype_policy("float32")
    assert json.loads((tmp_path / "experiment.json").read_text())["precision"] == "mixed_bfloat16"
    assert load_model(read_run(tmp_path)).get_layer("fc").kernel.dtype == "float32"


@pytest.mark.slow
def test_a_loss_that_explodes_stops_with_a_sentence(tmp_path, prepared_folder):
    with pytest.raises(PneumoError, match=r"(loss|norm) is (nan|inf) at epoch"):
        train(
            TINY.replace(learning_rate=1e6, optimizer="sgd", schedule="constant", frozen_epochs=0, epochs=3),
            load_prepared(prepared_folder),
            tmp_path,
        )


def test_a_missing_image_is_found_before_training(tmp_path, prepared_copy):
    prepared = load_prepared(prepared_copy)
    victim = prepared.subset("train")[0]
    prepared.image_path(victim, 64).unlink()
    with pytest.raises(PneumoError, match=victim):
        train(TINY, prepared, tmp_path)
    assert not (tmp_path / "experiment.json").exists()


def test_a_flipped_bit_is_found_before_training(tmp_path, prepared_copy):
    prepared = load_prepared(prepared_copy)
    path = prepared.image_path(prepared.subset("train")[3], 64)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(PneumoError, match=path.stem):
        train(TINY, prepared, tmp_path)


def test_a_size_that_was_not_prepared_is_refused(tmp_path, prepared_folder):
    with pytest.raises(PneumoError, match="--size 256"):
        train(TINY.replace(image_size=256), load_prepared(prepared_folder), tmp_path)


def test_a_patient_in_two_subsets_is_refused(tmp_path, prepared_copy):
    prepared = load_prepared(prepared_copy)
    split = prepared.split.copy()
    counts = split["patient_id"].value_counts()
    rows = split.index[split["patient_id"] == counts.index[0]]
    assert len(rows) > 1
    split.loc[rows[0], ["subset", "fold"]] = ["test", -1]
    split.loc[rows[1], ["subset", "fold"]] = ["train", 1]
    leaky = type(prepared)(**{**prepared.__dict__, "split": split})
    with pytest.raises(PneumoError, match="patient"):
        train(TINY, leaky, tmp_path)


@pytest.fixture
def determinism():
    """What TensorFlow is set to: deterministic operations, and whether the arithmetic optimizer is off."""

    def now():
        options = tf.config.optimizer.get_experimental_options()
        return config.is_op_determinism_enabled(), options.get("arithmetic_optimization") is False

    yield now
    set_determinism(QUICK)


def test_determinism_is_a_setting_of_the_experiment(determinism, prepared_folder):
    prepared = load_prepared(prepared_folder)
    starting_point(QUICK, prepared, None, build=tiny)
    assert determinism() == (True, True)
    starting_point(QUICK.replace(deterministic=False), prepared, None, build=tiny)
    assert determinism() == (False, False), "also after another training of the same process"
    starting_point(QUICK, prepared, None, build=tiny)
    assert determinism() == (True, True)
