"""The PyTorch team (experiments/torch_team): its functions against ours, and both teams end to end."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from keras_pneumo.config import CLASSIFIER, SEGMENTER, Augmentation
from keras_pneumo.data.batches.augmentation import augment, augment_masks, crop, draw_parameters
from keras_pneumo.data.batches.order import epoch_order, repeats_of
from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.arrays import open_arrays
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.evaluation.board.verdict import verdict
from keras_pneumo.evaluation.compare import compare
from keras_pneumo.evaluation.inputs.submission import read_submission
from keras_pneumo.evaluation.scoring.metrics import auroc, fit_threshold
from keras_pneumo.inference.ensemble import predict_map_set
from keras_pneumo.inference.export import export_network
from keras_pneumo.inference.postprocess import PostprocessingParameters, postprocess_maps
from keras_pneumo.inference.run import read_run
from keras_pneumo.models.fastai import build_fastai_classifier
from keras_pneumo.models.weights import from_torch, load_safetensors
from keras_pneumo.training.losses import ClassificationLoss, SegmentationLoss
from keras_pneumo.training.report import report_run
from keras_pneumo.training.trainer import starting_network, train

TEAM = Path(__file__).resolve().parents[3] / "experiments" / "torch_team"
RECIPES = ["bce", "2.7 bce + 0.9 dice", "3 BCE + 1 Dice + 4 * focal", "lovasz"]


def test_functions_compute_the_same(reference):
    random = np.random.default_rng(7)
    ranges = Augmentation(flip=0.5, shift=0.05, scale=0.1, rotate=10, brightness=0.1, contrast=0.2, gamma=0.2)
    keys = [(4, 2, 0), (7, 2, 1), (0, 2, 0), (9, 2, 3)]  # image, epoch, repeat
    images = random.integers(0, 256, (4, 64, 64, 1), np.uint8)
    images = np.asarray(tf.image.resize(images[:, ::8, ::8], (64, 64), "bicubic")).clip(0, 255).astype(np.uint8)
    outlines = (images > 140).astype(np.uint8)
    mask = random.random((1024, 1024)) > 0.7
    label = random.integers(0, 2, 50).astype(np.float32)
    given = {
        "logits": random.normal(0, 4, (3, 1, 16, 16)).astype(np.float32),
        "masks": (random.random((3, 1, 16, 16)) > [[[[0.5]]], [[[0.9]]], [[[1.0]]]]).astype(np.float32),
        "label": label,
        "labels": (np.arange(30) < 7).astype(np.float32),
        "logit": random.normal(0, 3, 50).astype(np.float32),
        "score": np.round(random.random(50) * 0.6 + 0.2 * label, 1),  # many ties
        "images": images,
        "outlines": outlines,
        "mask": mask,
    }
    text = "0 5 1019 3 20 1"
    arguments = {
        "team": str(TEAM),
        "recipes": RECIPES,
        "keys": keys,
        "seed": 6,
        "augmentation": ranges.model_dump(),
        "text": text,
    }
    folder = reference("team_pieces", arguments, arrays=given)
    torch_values = np.load(folder / "out.npz")
    for number, recipe in enumerate(RECIPES):
        values = SegmentationLoss(recipe, reduction=None)(given["masks"], given["logits"])
        np.testing.assert_allclose(torch_values[f"loss{number}"], np.array(values), rtol=2e-5)
    weighted = ClassificationLoss(0.1, 3.0, reduction=None)(label[:, None], given["logit"][:, None])
    np.testing.assert_allclose(torch_values["cross_entropy"], np.array(weighted), rtol=1e-5)
    assert torch_values["auroc"] == pytest.approx(auroc(label, given["score"]), abs=1e-12)
    assert torch_values["threshold"] == pytest.approx(fit_threshold(label, given["score"]), abs=1e-12)
    drawn, repeats = np.array([key[0] for key in keys]), np.array([key[2] for key in keys])
    parameters, noise_seeds = draw_parameters(ranges, 6, 2, drawn, repeats)
    assert set(parameters[:, 0]) == {0, 1}, "some are mirrored, others not"
    augmented = augment(ranges, images, parameters, noise_seeds)
    np.testing.assert_allclose(torch_values["images"], augmented, atol=2e-4)
    moved = augment_masks(ranges, outlines, parameters)
    assert (torch_values["outlines"] != moved).mean() < 1e-3, "but for pixels that are half in"
    np.testing.assert_array_equal(torch_values["cropped"], crop(outlines > 0, noise_seeds, 32))
    np.testing.assert_array_equal(torch_values["decoded"], rle.decode(text).astype(bool))
    assert json.loads((folder / "out.json").read_text()) == [text, "-1", rle.encode(mask)]
    for epoch, rate, positives in ((0, 0.75, 22), (2, 0.5, 15)):
        order = epoch_order(given["labels"], 3, epoch, rate)
        keys = torch_values[f"keys{epoch}"]
        np.testing.assert_array_equal(keys[:, 0], order)
        assert (keys[:, 1] == epoch).all()
        np.testing.assert_array_equal(keys[:, 2], repeats_of(order))
        assert torch_values[f"sizes{epoch}"].tolist() == [8, 8, 7, 7]
        assert (order < 7).sum() == positives


@pytest.mark.parametrize("damage", [None, "images_64.npy", "arrays_64.json"])
def test_the_other_team_maps_valid_arrays_and_sees_the_same_pixels(reference, prepared_copy, damage):
    assert open_arrays(load_prepared(prepared_copy), 64, make=True) is not None
    if damage:
        path = prepared_copy / damage
        path.write_bytes(path.read_bytes()[:-2])
    values = np.load(reference("team_arrays", {"team": str(TEAM), "prepared": str(prepared_copy)}) / "out.npz")
    assert values["mapped"] == (damage is None)
    for kind in ("images", "masks"):
        assert values[f"{kind} files"].any()
        np.testing.assert_array_equal(values[f"{kind} arrays"], values[f"{kind} files"])


@pytest.fixture
def other_team(torch_python):
    """``other_team(script, *arguments)`` runs one of the other team's programs in its own environment."""

    def run(script, *arguments):
        return subprocess.run(
            [str(torch_python), str(TEAM / script), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},  # as the Makefile has it
        )

    return run


@pytest.fixture
def both_teams(other_team, prepared_folder, tmp_path):
    """``both_teams(experiment)``: both teams' submissions, from the same starting weights."""

    def run(experiment):
        start = export_network(starting_network(experiment), experiment, "torch", tmp_path / "start.safetensors").path
        keras_run = tmp_path / "runs" / "keras"
        keras_run.mkdir(parents=True)
        prepared = load_prepared(prepared_folder)
        train(experiment, prepared, keras_run)
        report_run(read_run(keras_run), prepared, resamples=200)
        torch_run = tmp_path / "runs" / "torch"
        paths = ["--data", prepared_folder, "--out", torch_run]
        done = other_team(f"{experiment.task}.py", "--experiment", start, "--init", start, *paths)
        assert done.returncode == 0, done.stderr[-3000:]
        return read_submission(keras_run / "submission"), read_submission(torch_run / "submission")

    return run


STANDING = {
    "name": "standing",
    "encoder": "resnet18",
    "weights": "random",
    "image_size": 64,
    "frozen_epochs": 0,
    "epochs": 1,
    "learning_rate": 1e-12,
    "weight_decay": 0,
    "frozen_batchnorm": True,
}
"""A training in which nothing is learnt, so both teams' networks keep their start weights."""


@pytest.mark.slow
def test_classifiers_that_learn_nothing_give_the_same_probabilities(both_teams, tmp_path, prepared_folder):
    """Everything but the learning, end to end: start, pixels, network, mirror images, threshold, file."""
    keras_team, torch_team = both_teams(CLASSIFIER.replace(**STANDING))
    assert keras_team.info.split_sha256 == torch_team.info.split_sha256
    assert keras_team.info.threshold == pytest.approx(torch_team.info.threshold, abs=1e-5)
    for here, there in (
        (keras_team.predictions, torch_team.predictions),
        (keras_team.validation, torch_team.validation),
    ):
        pair = here.merge(there, on="image_id", suffixes=("", "_torch"))
        assert len(pair) == len(here) == len(there)
        np.testing.assert_allclose(pair["probability"], pair["probability_torch"], atol=1e-5)
        assert pair["probability"].std() > 1e-3, "else a constant would pass"


@pytest.mark.slow
def test_segmenters_that_learn_nothing_give_the_same_masks(both_teams, tmp_path, prepared_folder):
    """The PyTorch team's postprocessing on our maps gives that team's masks."""
    _, torch_team = both_teams(SEGMENTER.replace(**STANDING))
    maps = predict_map_set([read_run(tmp_path / "runs" / "keras")], load_prepared(prepared_folder), "test")
    fitted = json.loads((tmp_path / "runs" / "torch" / "rule.json").read_text())
    cut = fitted["cut"] / 255
    parameters = PostprocessingParameters(top=cut, area=fitted["area"], bottom=cut, gate=fitted["gate"])
    pair = postprocess_maps(maps, parameters, maps.image_probability).merge(torch_team.predictions, on="image_id")
    assert len(pair) == len(maps.image_ids) == len(torch_team.predictions)
    # Quantised probabilities are whole numbers of 255, enlarged by two libraries.
    np.testing.assert_allclose(pair["probability_x"], pair["probability_y"], atol=2 / 255)
    assert pair["probability_x"].std() > 1e-3, "else a constant would pass"
    for mask, other in zip(pair["encoded_pixels_x"], pair["encoded_pixels_y"], strict=True):
        assert (rle.decode(mask) != rle.decode(other)).mean() < 0.01


@pytest.mark.slow
def test_from_the_same_start_and_budget_the_board_cannot_tell_them_apart(both_teams, tmp_path, prepared_folder):
    experiment = CLASSIFIER.replace(
        name="tiny",
        encoder="resnet18",
        weights="random",
        image_size=64,
        frozen_epochs=1,
        epochs=2,
        global_batch_size=8,
        positive_rate=((0, 0.5),),
        clip_norm=1.0,
        depth_decay=0.8,
    )
    both_teams(experiment)
    keras_loss, torch_loss = (pd.read_csv(tmp_path / "runs" / team / "log.csv")["loss"] for team in ("keras", "torch"))
    assert keras_loss[0] == pytest.approx(torch_loss[0], rel=1e-4), "the head alone learns, from the same pixels"
    assert keras_loss[1] == pytest.approx(torch_loss[1], rel=0.05), "all learn; rounding has begun to tell"
    board, _ = compare(tmp_path / "runs", prepared_folder, tmp_path / "board", resamples=500)
    assert {"keras-pneumo tiny", "torch tiny"} <= set(board.table["team"])
    assert "cannot be told apart" in verdict(board).headline
    assert "cannot be told apart" in (tmp_path / "board" / "report.html").read_text()


@pytest.mark.slow
def test_the_fastai_team_submits_and_its_learner_runs_here(other_team, tmp_path, prepared_folder):
    experiment = CLASSIFIER.replace(name="tiny", weights="random", image_size=64, frozen_epochs=0, epochs=1)
    record = tmp_path / "experiment.json"
    record.write_text(json.dumps({"experiment": experiment.model_dump(mode="json")}))
    paths = ["--data", prepared_folder, "--out", tmp_path / "run"]
    done = other_team("fastai_classifier.py", "--experiment", record, *paths)
    assert done.returncode == 0, done.stderr[-3000:]
    submission = read_submission(tmp_path / "run" / "submission")
    assert submission.info.framework.startswith("fastai 2.8.12")
    pretrained = submission.info.pretraining.images != "none"
    model = build_fastai_classifier("resnet50", normalised=pretrained)
    from_torch(model, load_safetensors(tmp_path / "run" / "learner.safetensors"))
    prepared = load_prepared(prepared_folder)
    images = [
        tf.io.decode_png(prepared.image_path(name, 64).read_bytes()) for name in submission.predictions["image_id"]
    ]
    logits = np.array(model(np.stack(images).astype(np.float32) / 255, training=False), np.float64)
    probability = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    np.testing.assert_allclose(probability, submission.predictions["probability"], atol=1e-4)
    again = other_team("fastai_classifier.py", "--experiment", record, *paths)
    assert again.returncode == 2
    assert "holds a submission already" in again.stderr


@pytest.mark.slow
def test_the_other_team_refuses_in_sentences(other_team, tmp_path, prepared_folder):
    def refused(experiment, *words, data=prepared_folder, more=()):
        record = tmp_path / "experiment.json"
        record.write_text(json.dumps({"experiment": experiment.model_dump(mode="json")}))
        done = other_team("classifier.py", "--experiment", record, "--data", data, "--out", tmp_path / "out", *more)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert all(word in done.stderr for word in words), done.stderr
        assert not (tmp_path / "out").exists()

    small = CLASSIFIER.replace(name="small", encoder="resnet18", weights="random", image_size=64)
    refused(SEGMENTER.replace(name="other"), "of a segmenter")
    refused(small.replace(ema=0.9), "ema=0.9")
    refused(small.replace(augmentation={"clahe": 0.5}), "clahe")
    refused(small, "not a prepared folder", data=tmp_path)
    refused(small.replace(image_size=96), "Prepare size 96")
    refused(small.replace(fold=9), "no fold 9")
    refused(small, "do not fit this network", more=("--init", tmp_path / "experiment.json"))
