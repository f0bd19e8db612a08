"""What a training starts with: images that were checked, the precision, and a network with its first weights."""

from __future__ import annotations

from pathlib import Path

import keras
import tensorflow as tf

from keras_pneumo.config import Experiment
from keras_pneumo.data.batches.images import ImageSet, open_source
from keras_pneumo.data.prepared.folder import PreparedFolder, verify_files
from keras_pneumo.data.prepared.split import check_split
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.run import RunFolder, build, load_weights
from keras_pneumo.models.imagenet import load_pretrained
from keras_pneumo.training.distributed.strategy import ONE, Engine


def start(
    experiment: Experiment,
    prepared: PreparedFolder,
    weights: Path | None,
    start_from: RunFolder | None = None,
    engine: Engine = ONE,
) -> tuple[keras.Model, ImageSet, ImageSet]:
    """The network as it starts, and the training and validation images, all checked.

    Raises:
        PneumoError: as :func:`keras_pneumo.training.fit.train`.
    """
    if start_from is not None:
        _check_start(experiment, prepared, start_from)
    training, validation = _sources(experiment, prepared)
    set_precision(experiment)
    # Same seed, same weights: without this, threads add the same numbers in another order from run to run.
    tf.config.experimental.enable_op_determinism()
    if start_from is None:
        return starting_network(experiment, weights, engine), training, validation
    with engine.scope():
        model = build(experiment, synchronized=engine.replicas > 1)
    load_weights(model, start_from.weights)
    return model, training, validation


def starting_network(experiment: Experiment, weights: Path | None = None, engine: Engine = ONE) -> keras.Model:
    """The experiment's network with its first weights: random ones by its seed, the encoder's perhaps ImageNet's.

    Args:
        experiment: says which.
        weights: as in :func:`keras_pneumo.training.fit.train`.
        engine: where its variables live.

    Raises:
        PneumoError: the ImageNet weights cannot be had.
    """
    with engine.scope():
        model = build(experiment, synchronized=engine.replicas > 1)
    if experiment.weights != "random":
        load_pretrained(model, experiment.encoder, experiment.weights, weights)
    return model


def _check_start(experiment: Experiment, prepared: PreparedFolder, origin: RunFolder) -> None:
    other = origin.experiment
    differing = [
        f"{name} {getattr(other, name)} instead of {getattr(experiment, name)}"
        for name in ("task", "encoder", "attention", "image_head", "fold")
        if getattr(other, name) != getattr(experiment, name)
    ]
    if differing:
        raise PneumoError(
            f"{origin.folder} cannot be started from: it has {', '.join(differing)}. The network and the validation "
            "fold must be the same; only the image size and the training may differ."
        )
    if origin.record.get("split_sha256") != prepared.manifest["split_sha256"]:
        raise PneumoError(
            f"{origin.folder} was trained on another split than {prepared.folder} has: it may have learnt from "
            "patients that are held out here. Prepare all sizes from the same data, into one folder."
        )


def _sources(experiment: Experiment, prepared: PreparedFolder) -> tuple[ImageSet, ImageSet]:
    check_split(prepared.split)
    size = experiment.image_size
    sizes = [int(known) for known in prepared.manifest["sizes"]]
    if size not in sizes:
        raise PneumoError(
            f"{prepared.folder} holds sizes {', '.join(map(str, sizes))}, but the experiment needs {size}. "
            f"Run prepare on the same data and folder with --size {size}."
        )
    found = []
    for subset in ("train", "validation"):
        image_ids = prepared.subset(subset, fold=experiment.fold)
        labels = prepared.cases.set_index("image_id")["pneumothorax"].astype(int).loc[image_ids]
        if labels.nunique() < 2:
            raise PneumoError(
                f"The {subset} subset of {prepared.folder} has {int(labels.sum())} positive and "
                f"{int((labels == 0).sum())} negative images; training needs both. Prepare more images."
            )
        verify_files(prepared, size, image_ids)
        found.append(open_source(prepared, image_ids, size, with_masks=experiment.task == "segmenter"))
    return found[0], found[1]


def set_precision(experiment: Experiment) -> None:
    """Set Keras's dtype policy: the experiment's, or for ``auto`` what the device gains from."""
    policy = experiment.precision
    if policy == "auto":
        gpus = tf.config.list_physical_devices("GPU")
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
        # Tensor cores came with compute capability 7.0 (Volta); before it, and on CPUs, float16 is slower.
        policy = "mixed_float16" if details.get("compute_capability", (0, 0)) >= (7, 0) else "float32"
    keras.config.set_dtype_policy(policy)
