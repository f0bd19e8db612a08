"""Whole trainings by both teams at equal inputs: each setting of a recipe does the same in the PyTorch team.

The networks have some hundred weights, so a training takes a second; everything else is what ``keras-pneumo train`` and
the PyTorch team's programs run. One setting or a few at a time differ from a plain recipe. With so few weights and a
smooth loss the two frameworks' rounding hardly grows: the losses agree to 1e-4, the weights, of size 0.1, to 1e-3.
"""

import json
import shlex
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from crash_lab import tiny
from safetensors.numpy import load_file, save_file

from keras_pneumo.config import CLASSIFIER, SEGMENTER, Augmentation
from keras_pneumo.data.batches.images import open_source
from keras_pneumo.data.batches.pipeline import evaluation_batches
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.inference.maps import quantise
from keras_pneumo.inference.predictor import predict_passes
from keras_pneumo.models.preprocessing import Normalise
from keras_pneumo.models.weights import to_torch
from keras_pneumo.training.trainer import TrainingOptions, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

ROOT = Path(__file__).resolve().parents[3]
TEAM = ROOT / "experiments" / "torch_team"

PLAIN = CLASSIFIER.replace(
    name="plain", encoder="resnet18", weights="random", image_size=64, frozen_epochs=1, epochs=3, global_batch_size=8,
    schedule="constant", learning_rate=2e-2, positive_rate=((0, 0.5), (2, 0.4)),
)  # fmt: skip
STILL = PLAIN.replace(learning_rate=1e-12, weight_decay=0, frozen_batchnorm=True, epochs=5)
"""Nothing is learnt, so no score rises."""

CLASSIFIERS = [
    PLAIN,
    PLAIN.replace(
        name="one_cycle", schedule="one_cycle", warmup_fraction=0.4, start_divisor=10, final_divisor=100, ema=0.7,
    ),
    PLAIN.replace(
        name="sgd", optimizer="sgd", schedule="cosine", clip_norm=0.1, weight_decay=0.1, depth_decay=0.5,
        learning_rate=0.2,
    ),
    PLAIN.replace(name="swa", swa_epochs=2, ema=0.5, top_k=2, frozen_learning_rate=0.1),
    PLAIN.replace(name="swa_frozen_batchnorm", swa_epochs=3, frozen_batchnorm=True, frozen_epochs=0),
    PLAIN.replace(name="accumulation", accumulation=3, clip_norm=1.0, label_smoothing=0.1, positive_weight=3.0),
    PLAIN.replace(name="accumulation_of_single_images", accumulation=8, frozen_batchnorm=True),
    PLAIN.replace(name="top_k", top_k=3, flip_averaging=False, learning_rate=0.2),
    PLAIN.replace(name="restarts", schedule="warm_restarts", restart_epochs=1, restart_factor=2, depth_decay=0.8),
    STILL.replace(name="patience", patience=2, frozen_epochs=2, top_k=2),  # of equal scores the earlier epochs stay
    STILL.replace(name="plateau", schedule="plateau", plateau_factor=0.5, plateau_patience=1, learning_rate=1e-5),
    PLAIN.replace(name="compiled", ema=0.5, accumulation=2),
    PLAIN.replace(name="noise", augmentation=Augmentation(noise=0.3, clahe=0.5)),
]  # fmt: skip
PLAIN_SEGMENTER = SEGMENTER.replace(
    **{name: getattr(PLAIN, name) for name in PLAIN.model_fields_set - {"task", "image_head", "augmentation"}}
)
SEGMENTERS = [
    PLAIN_SEGMENTER.replace(
        name="crops", image_head=True, crop=32, loss="1 bce + 2 dice + 0.5 lovasz", image_loss_weight=0.5, ema=0.5,
        accumulation=2,
    ),
    PLAIN_SEGMENTER.replace(
        name="albunet", image_head=False, top_k=3, schedule="plateau", plateau_patience=0, clip_norm=0.1,
        positive_rate=((0, 0.8),),
    ),
]  # fmt: skip


def tiny_segmenter(experiment, synchronized=False):
    """A segmenter of some hundred weights, whose parts have the names of the real networks' parts."""
    keras.utils.set_random_seed(experiment.seed)
    inner = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 4, strides=4, use_bias=False, name="conv1")(inner)
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=synchronized, name="bn1")(x)
    encoder = keras.Model(inner, keras.layers.ReLU()(x), name="encoder")
    image = keras.Input((None, None, 1))
    x = encoder(Normalise(name="normalise")(image))
    mask = keras.layers.UpSampling2D(4)(keras.layers.Conv2D(1, 1, name="segmentation_head")(x))
    if not experiment.image_head:
        return keras.Model(image, mask, name="tiny")
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    head = keras.layers.Dense(1, name="classification_head")(pooled)
    return keras.Model(image, {"mask": mask, "image": head}, name="tiny")


def network_of(experiment):
    return (tiny if experiment.task == "classifier" else tiny_segmenter)(experiment)


@pytest.fixture(scope="module")
def torch_runs(tmp_path_factory, run_reference, prepared_folder):
    """The folder in which the PyTorch team has carried out all recipes, from our starting weights."""
    folder = tmp_path_factory.mktemp("torch")
    for experiment in CLASSIFIERS + SEGMENTERS:
        (folder / f"{experiment.name}.json").write_text(experiment.model_dump_json())
        save_file(to_torch(network_of(experiment)), folder / f"{experiment.name}.safetensors")
    masks = f"{shlex.quote(sys.executable)} -m keras_pneumo masks"
    task = {"team": str(TEAM), "data": str(prepared_folder), "masks": masks, "compiled": ["compiled"]}
    task["plans"] = {experiment.name: experiment.task for experiment in CLASSIFIERS + SEGMENTERS}
    run_reference("team_trainings", folder, task)
    return folder


@pytest.fixture
def both(torch_runs, tmp_path, prepared_folder):
    """``both(experiment)``: the folders of our training and of the PyTorch team's."""

    def run(experiment):
        options = TrainingOptions(build=lambda experiment, synchronized=False: network_of(experiment))
        train(experiment, load_prepared(prepared_folder), tmp_path, options)
        return tmp_path, torch_runs / experiment.name

    return run


def compare_logs(experiment, ours, theirs):
    """Epochs, phases, losses, scores, rates and the choice of the best epoch."""
    here, there = pd.read_csv(ours / "log.csv"), pd.read_csv(theirs / "log.csv")
    for column in ("epoch", "phase", "best"):
        assert here[column].tolist() == there[column].tolist(), column
    np.testing.assert_allclose(here["loss"], there["loss"], rtol=1e-4)
    np.testing.assert_allclose(here["validation_loss"], there["validation_loss"], rtol=1e-3)
    goes_on = here["phase"] == here["phase"].shift(-1)  # the rate after a phase's last step is used by none
    assert goes_on.any()
    np.testing.assert_allclose(here["learning_rate"][goes_on], there["learning_rate"][goes_on], rtol=1e-5)
    score = "validation_auroc" if experiment.task == "classifier" else "validation_dice"
    np.testing.assert_allclose(here[score], there["score"], atol=1e-3 if experiment.task == "segmenter" else 1e-9)
    return here


def compare_weights(ours, theirs):
    here, there = load_file(ours / "best.safetensors"), load_file(theirs / "best.safetensors")
    assert here.keys() == there.keys()
    for name, value in here.items():
        if "num_batches" not in name:
            # PyTorch keeps the unbiased variance: n / (n - 1) times ours, for n >= 256 pixels of a micro-batch.
            bounds = {"rtol": 1e-2} if name.endswith("running_var") else {"rtol": 1e-3, "atol": 1e-3}
            np.testing.assert_allclose(value, there[name], **bounds, err_msg=name)


def kept_networks(experiment, folder):
    """Our networks that predict together."""
    files = sorted((folder / "checkpoints").glob("epoch_*.weights.h5"))
    files = files if experiment.top_k > 1 else [folder / "best.weights.h5"]
    networks = [network_of(experiment) for _ in files]
    for network, file in zip(networks, files, strict=True):
        network.load_weights(file)
    return networks


def mean_predictions(experiment, folder, prepared, subset):
    """By our kept networks: each image's id with its probability (or None) and map (or None)."""
    image_ids = prepared.subset(subset, fold=experiment.fold)
    batches = evaluation_batches(open_source(prepared, image_ids, experiment.image_size), 8)
    networks = kept_networks(experiment, folder)
    rows = []
    for images in batches:
        passes = [p for n in networks for p in predict_passes(n, images.numpy(), experiment.flip_averaging)]
        image = [None] * len(images) if passes[0].image is None else np.mean([p.image for p in passes], axis=0)
        maps = [None] * len(images) if passes[0].maps is None else np.mean([p.maps for p in passes], axis=0)
        rows += zip(image, maps, strict=True)
    return dict(zip(image_ids, rows, strict=True))


@pytest.mark.parametrize("experiment", CLASSIFIERS, ids=lambda experiment: experiment.name)
def test_classifiers(both, experiment, prepared_folder):
    ours, theirs = both(experiment)
    log = compare_logs(experiment, ours, theirs)
    compare_weights(ours, theirs)
    expected = mean_predictions(experiment, ours, load_prepared(prepared_folder), "test")
    given = pd.read_csv(theirs / "submission/predictions.csv").set_index("image_id")["probability"]
    assert list(given.index) == list(expected)
    # 5e-4 and not 1e-5 because of the two kinds of running variance; with BatchNorm frozen they are equal.
    bound = 1e-5 if experiment.frozen_batchnorm else 5e-4
    np.testing.assert_allclose(given, [float(image) for image, _ in expected.values()], atol=bound)
    kept = {path.name[:9] for path in (ours / "checkpoints").glob("epoch_*")}
    assert kept == ({path.stem for path in theirs.glob("epoch_*")} if experiment.top_k > 1 else set())
    if experiment.name == "patience":
        assert log["phase"].tolist() == ["frozen"] * 2 + ["whole"] * 2, "it ends a phase, and waits anew in each"
    if experiment.name == "plateau":
        assert log["learning_rate"].nunique() == 2, "the rate was lowered"
    if experiment.swa_epochs:
        assert log["phase"].iloc[-1] == "average"


@pytest.mark.parametrize("experiment", SEGMENTERS, ids=lambda experiment: experiment.name)
def test_segmenters(both, experiment, prepared_folder):
    ours, theirs = both(experiment)
    compare_logs(experiment, ours, theirs)
    compare_weights(ours, theirs)
    for image_id, (image, probability) in mean_predictions(
        experiment, ours, load_prepared(prepared_folder), "test"
    ).items():
        level = cv2.imread(str(theirs / f"maps/test/{image_id}.png"), cv2.IMREAD_UNCHANGED)
        assert np.abs(level.astype(int) - quantise(probability)).max() <= 1
        assert (image is None) == (not experiment.image_head)
    declared = json.loads((theirs / "submission/submission.json").read_text())
    assert declared["deterministic"] is True
    assert (theirs / "submission/predictions.csv").is_file()
