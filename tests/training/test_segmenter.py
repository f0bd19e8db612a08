"""Tests of a segmenter from training to report, and of trainings that start from other runs, on tiny networks."""

import json

import keras
import numpy as np
import pandas as pd
import pytest

from keras_pneumo.config import SEGMENTER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.postprocess import read_postprocessing
from keras_pneumo.inference.run import load_model, load_models, read_run
from keras_pneumo.storage.files import LOCK_NAME
from keras_pneumo.training.report import report_run
from keras_pneumo.training.trainer import TrainingOptions, train

TINY = SEGMENTER.replace(
    name="tiny",
    encoder="resnet18",
    weights="random",
    image_size=64,
    frozen_epochs=0,
    epochs=1,
    positive_rate=(),
    learning_rate=3e-3,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared_folder):
    """A tiny run with its report; read only."""
    folder = tmp_path_factory.mktemp("segmenter")
    prepared = load_prepared(prepared_folder)
    trained = train(TINY, prepared, folder)
    done = report_run(read_run(folder), prepared, resamples=200)
    return folder, trained, done


def test_a_run_holds_masks_their_postprocessing_and_a_report(finished, prepared_folder):
    folder, trained, done = finished
    log = pd.read_csv(folder / "log.csv")
    assert log.loc[0, "validation_dice"] == pytest.approx(trained.best.validation_dice)
    assert 0 <= log.loc[0, "validation_dice"] <= 1
    rows = pd.read_csv(folder / "submission" / "predictions.csv", dtype=str)
    assert set(rows.columns) == {"image_id", "probability", "encoded_pixels"}
    assert sorted(rows["image_id"]) == sorted(load_prepared(prepared_folder).subset("test"))
    assert json.loads((folder / "submission" / "submission.json").read_text())["task"] == "joint"
    parameters = read_postprocessing(folder / "postprocess.json")
    assert parameters.bottom <= parameters.top
    for name in ("postprocess.png", "submission/postprocess.png", "curves.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    board = pd.read_csv(folder / "board.csv").set_index("team")
    assert board.loc["All empty", "dice"] == pytest.approx(1 - board["positives"].iloc[0] / board["images"].iloc[0])
    assert 0 < board["pixel_auprc"].iloc[0] <= 1
    page = done.path.read_text()
    assert "Scores of the masks" in page
    assert "Empty masks" in page
    assert "Pixel AUPRC" in page
    assert "What keras-pneumo" in page
    assert "It learned from synthetic phantoms" in page
    for heading in ("Scores by subgroup", "Errors by kind"):
        assert f">{heading}</h2>" in page
    assert "False negatives (" in page
    assert "Lowest Dice of the positives with a mask (" in page
    by_sex = pd.read_csv(folder / "subgroups.csv").query("attribute == 'sex'")
    assert by_sex["images"].sum() == board["images"].iloc[0]


def test_the_reported_validation_dice_is_the_one_training_watched(finished, prepared_folder):
    """Early stopping and checkpoints use the reported score; the report only adds mirror images and component sizes."""
    folder, trained, _ = finished
    fitted = json.loads((folder / "postprocess.json").read_text())["fitted_on_validation"]
    assert fitted["dice"] == pytest.approx(trained.best.validation_dice, abs=0.1)


@pytest.mark.slow
def test_a_start_from_a_smaller_run_begins_with_its_weights_and_dice(finished, tmp_path, prepared_folder):
    folder, trained, _ = finished
    prepared = load_prepared(prepared_folder)
    smaller = read_run(folder)
    same, larger = tmp_path / "same", tmp_path / "larger"
    same.mkdir()
    larger.mkdir()
    train(TINY.replace(name="same", learning_rate=1e-9, weight_decay=0), prepared, same, start_from=smaller)
    first = pd.read_csv(same / "log.csv").iloc[0]
    assert (first["epoch"], first["phase"]) == (0, "start")
    assert first["validation_dice"] == pytest.approx(trained.best.validation_dice, abs=1e-6)
    assert first["validation_loss"] == pytest.approx(trained.best.validation_loss, rel=1e-4)

    seen = []
    train(
        TINY.replace(name="larger", image_size=128),
        prepared,
        larger,
        start_from=smaller,
        options=TrainingOptions(on_epoch=seen.append),
    )
    assert seen[0].epoch == 0
    assert np.isfinite(seen[0].validation_dice)
    record = json.loads((larger / "experiment.json").read_text())
    assert record["start_from"]["image_size"] == 64
    assert read_run(larger).pretraining == "none"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"image_head": False}, "image_head"), ({"fold": 1}, "fold"), ({"encoder": "resnet34"}, "encoder")],
)
def test_a_start_from_another_network_or_fold_is_refused(finished, tmp_path, prepared_folder, changes, words):
    with pytest.raises(PneumoError, match=words):
        train(TINY.replace(**changes), load_prepared(prepared_folder), tmp_path, start_from=read_run(finished[0]))
    assert {path.name for path in tmp_path.iterdir()} <= {LOCK_NAME}


@pytest.mark.slow
def test_averaged_weights_checkpoints_and_accumulation_in_one_run(tmp_path, prepared_folder):
    experiment = TINY.replace(
        epochs=2, swa_epochs=2, top_k=2, accumulation=2, schedule="plateau", crop=32, image_head=False, attention="scse"
    )
    rows = []
    train(experiment, load_prepared(prepared_folder), tmp_path, options=TrainingOptions(on_epoch=rows.append))
    assert [row.phase for row in rows] == ["whole", "whole", "average"]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("epoch_*"))
    assert len(kept) == 2
    run = read_run(tmp_path)
    assert len(load_models(run)) == 2
    best = max(rows, key=lambda row: row.score)
    assert f"epoch_{best.epoch:03d}.weights.h5" in kept
    assert isinstance(load_model(run), keras.Model)


@pytest.mark.slow
def test_patience_ends_the_training(tmp_path, prepared_folder):
    rows = []
    still = TINY.replace(epochs=5, patience=1, learning_rate=1e-12, weight_decay=0, frozen_batchnorm=True)
    train(still, load_prepared(prepared_folder), tmp_path, options=TrainingOptions(on_epoch=rows.append))
    assert len(rows) < 5


@pytest.mark.slow
def test_a_batch_that_makes_nan_is_named_and_the_best_weights_come_back(tmp_path, prepared_folder):
    prepared = load_prepared(prepared_folder)
    explosive = TINY.replace(epochs=2, learning_rate=1e6, optimizer="sgd", schedule="constant")
    with pytest.raises(PneumoError, match=r"(loss|norm) is (nan|inf) at epoch") as refusal:
        train(explosive, prepared, tmp_path)
    named = [image_id for image_id in prepared.subset("train") if image_id in str(refusal.value)]
    assert 1 <= len(named) <= explosive.global_batch_size
