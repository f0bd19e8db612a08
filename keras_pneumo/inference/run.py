"""The files of a finished run: the experiment, its networks and their weights; training writes them.

``experiment.json`` holds the experiment and everything that is needed to repeat it and to refuse a mix-up: versions,
the command, and the hashes of the split and of the prepared images.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import tensorflow as tf

from keras_pneumo import __version__
from keras_pneumo.config import Experiment, validated
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.postprocess import FILE as POSTPROCESS
from keras_pneumo.inference.postprocess import read_threshold
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor, MicroBatchPredictor, Predictor
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.folding import fold_batch_norm
from keras_pneumo.models.imagenet import IMAGENET, UNKNOWN
from keras_pneumo.models.unet import build_unet
from keras_pneumo.storage.files import fits_content_hash, read_json, sha256_file

FORMAT = 1
WEIGHTS = "best.weights.h5"
CHECKPOINTS = "checkpoints"
"""Folder of the best epochs' weights, where more than one is kept."""
TORCH_WEIGHTS = "best.safetensors"
"""The same weights under PyTorch's names."""
HASHES = "weights_sha256"
"""In the record of a finished run: the SHA-256 of each file of weights that it predicts with."""

POSTPROCESS_SHA256 = "postprocess_sha256"
"""In the same record: the SHA-256 of the ``postprocess.json`` that was fitted last, with the run's report."""

SYNTHETIC = "Trained on synthetic radiographs (phantoms)"
"""What stands at the top of every answer of a network that was."""

LIBRARIES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "pydicom", "scikit-learn", "pandas")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a finished training."""

    folder: Path
    experiment: Experiment
    record: dict[str, Any]
    """All of ``experiment.json``."""

    @property
    def weights(self) -> Path:
        """The file of the best weights."""
        return self.folder / WEIGHTS

    def load_weights(self, model: keras.Model, path: Path | None = None) -> None:
        """Set the model's weights from one of the run's files, the best ones by default.

        Raises:
            PneumoError: as :func:`load_weights`; or the file is not the one that the training wrote.
        """
        path = path or self.weights
        hashes = self.record.get(HASHES)  # runs of earlier versions have none
        name = path.relative_to(self.folder).as_posix()
        if hashes is not None and (not isinstance(hashes, dict) or hashes.get(name) != sha256_file(path)):
            raise PneumoError(
                f"{path} was changed after the training: its hash is not the one in experiment.json. Copy the run "
                "again, or train again."
            )
        load_weights(model, path)

    def check_postprocessing(self) -> None:
        """Refuse a ``postprocess.json`` that is not the one whose hash the record has; earlier versions recorded none.

        Raises:
            PneumoError: it is another one, or cannot be read.
        """
        path, recorded = self.folder / POSTPROCESS, self.record.get(POSTPROCESS_SHA256)
        try:
            changed = recorded is not None and sha256_file(path) != recorded
        except OSError as error:
            raise PneumoError(f"{path} cannot be read: {error.strerror}. Copy the run again, or train again.") from None
        if changed:
            raise PneumoError(
                f"{path} was changed after the run's report: its hash is not the one in experiment.json. Copy the run "
                "again, or train again."
            )

    @property
    def threshold(self) -> float | None:
        """The operating threshold on the probability, fitted on validation; None until it was fitted."""
        threshold = self.record.get("threshold")
        return threshold if threshold is not None else read_threshold(self.folder)

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on phantoms: then its answers say nothing of real radiographs."""
        return self.record.get("synthetic") is True

    @property
    def pretraining(self) -> str:
        """The images that the weights learnt from before the run's own, through all that it was started from."""
        start = self.record.get("start_from") or self.record.get("weights_file")
        if start:
            return str(start["pretraining"])
        return "none" if self.experiment.weights == "random" else IMAGENET

    @property
    def unlisted_images(self) -> str:
        """The images that the weights learnt from before the run's own of which only the data sets' names are known.

        They are those of a file of weights whose training is not at hand. Blank for none, and for ImageNet's.
        """
        start, file = self.record.get("start_from"), self.record.get("weights_file")
        if start:
            return str(start.get("unlisted", ""))
        return str(file["pretraining"]) if file and file["pretraining"] not in ("none", IMAGENET) else ""

    @property
    def images_seen(self) -> str:
        """All images that the weights learnt from, the run's own the last."""
        own = str(self.record.get("trained_on", f"{UNKNOWN} of {self.experiment.name}"))
        return own if self.pretraining == "none" else f"{self.pretraining}, {own}"


def build(experiment: Experiment, synchronized: bool = False) -> keras.Model:
    """The experiment's network, from a random start that depends on its seed alone.

    Args:
        experiment: whose network is built.
        synchronized: whether BatchNorm takes its batch statistics over all replicas of a training.
    """
    keras.utils.set_random_seed(experiment.seed)
    if experiment.task == "segmenter":
        return build_unet(
            experiment.encoder,
            attention=experiment.attention,
            image_head=experiment.image_head,
            dropout=experiment.dropout,
            synchronized=synchronized,
        )
    return build_classifier(experiment.encoder, dropout=experiment.dropout, synchronized=synchronized)


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that decide a result."""
    own = {"keras_pneumo": __version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in LIBRARIES}


def hardware() -> str:
    """The devices that TensorFlow has, in words; no name of a host or a user."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        return f"{len(gpus)} x {name}"
    return f"{psutil.cpu_count(logical=False) or 1} CPU cores ({platform.machine()})"


def read_run(folder: Path) -> RunFolder:
    """Read a run folder and check that it is a finished one.

    Raises:
        PneumoError: the folder or one of its files is missing, or written by a later version of this program.
    """
    record_path = folder / "experiment.json"
    if not record_path.is_file():
        raise PneumoError(
            f"{folder} is not a run folder: experiment.json is missing. Name the folder that train printed."
        )
    try:
        record = read_json(record_path)
    except (OSError, ValueError) as error:
        raise PneumoError(f"{record_path} could not be read: {error}. Train again into a new folder.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise PneumoError(
            f"{record_path} is not of format {FORMAT}, the one this version reads. "
            "Use the version that wrote it, or train again."
        )
    if not fits_content_hash(record):
        raise PneumoError(
            f"{record_path} was changed after it was written: its hash does not match. Copy the run again, or train "
            "again."
        )
    if not (folder / WEIGHTS).is_file():
        raise PneumoError(f"{folder} has no {WEIGHTS}: its training did not finish an epoch. Train again.")
    experiment = validated(Experiment, record.get("experiment", {}), str(record_path))
    micro_batches, threshold = record.get("slices", 1), record.get("threshold")
    if type(micro_batches) is not int or micro_batches < 1:
        raise PneumoError(f"{record_path}: slices is {micro_batches!r:.40}, but must be a whole number from 1 up.")
    if threshold is not None and not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise PneumoError(f"{record_path}: threshold is {threshold!r:.40}, but must be a number from 0 to 1.")
    return RunFolder(folder, experiment, record)


def run_of_weights(path: Path) -> RunFolder | None:
    """The finished run whose training wrote this file of weights into its folder; None where the file is another.

    Raises:
        PneumoError: as :func:`read_run`.
    """
    try:
        hashes = read_json(path.parent / "experiment.json")[HASHES]
        own = hashes[path.name] == sha256_file(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return read_run(path.parent) if own else None


def load_model(run: RunFolder) -> keras.Model:
    """The run's network with its best weights, float32 whatever it was trained in.

    Weights are read into our own architecture; no object is ever made from what a file says.

    Raises:
        PneumoError: the weights do not fit the experiment, or cannot be read.
    """
    keras.config.set_dtype_policy("float32")
    model = build(run.experiment)
    run.load_weights(model)
    return model


def load_predictors(
    run: RunFolder, distributed: DistributedPredictor = SINGLE_DEVICE, models: Sequence[keras.Model] | None = None
) -> list[Predictor]:
    """The predictors of a run, one for each of its :func:`checkpoints_of`, with BatchNorm folded into convolutions.

    None predicts more images at once than the batches that the run learnt from hold: those of a micro-batch, where
    there were any (``slices`` in its record). Where the memory is too small even so, they predict fewer. ``models`` are
    the run's models where they are loaded already. They are folded too, so that a training that goes on after a stop
    writes the very predictions of an unbroken one, and ``predict`` those of the training.

    Raises:
        PneumoError: as :func:`load_model`.
    """
    on_halved = _refuse_smaller if distributed.workers > 1 else lambda size: None
    micro_batches = int(run.record.get("slices", 1))
    size = max(-(-run.experiment.global_batch_size // micro_batches), distributed.devices)
    with distributed.scope():
        return [
            MicroBatchPredictor(distributed.distribute(fold_batch_norm(model)), size, distributed.devices, on_halved)
            for model in (_each_model(run) if models is None else models)
        ]


def _refuse_smaller(size: int) -> None:
    raise PneumoError(
        f"Out of memory: only {size} images or fewer can be predicted at once here, and the other workers have begun "
        "with more. Run keras-pneumo predict with --strategy one, which then takes fewer at once."
    )


def checkpoints_of(run: RunFolder) -> list[Path]:
    """The weight files that the run predicts with: those of its best epochs where it keeps several, else the best."""
    kept = sorted((run.folder / CHECKPOINTS).glob("epoch_*.weights.h5"))
    return kept if run.experiment.top_k > 1 and len(kept) > 1 else [run.weights]


def load_models(run: RunFolder) -> list[keras.Model]:
    """The run's network once for each of the checkpoints that it predicts with; see ``Experiment.top_k``.

    Raises:
        PneumoError: as :func:`load_model`.
    """
    return list(_each_model(run))


def _each_model(run: RunFolder) -> Iterator[keras.Model]:
    """The run's networks one after the other, so that a caller need not hold all of them."""
    for path in checkpoints_of(run):
        keras.config.set_dtype_policy("float32")
        model = build(run.experiment)
        run.load_weights(model, path)
        yield model


def load_weights(model: keras.Model, path: Path) -> None:
    """Set the model's weights from a run's file.

    Raises:
        PneumoError: the weights do not fit the model, cannot be read, or are not finite.
    """
    # Keras 3.15 only warns of parts that a damaged file lacks, and leaves them as they were: so that is no number.
    for variable in model.weights:
        variable.assign(np.full(variable.shape, np.nan))
    try:
        model.load_weights(path)
    except PneumoError:
        raise
    except Exception as error:  # of a damaged HDF5 file h5py raises errors of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PneumoError(
            f"{path} does not hold the weights of its experiment: {reason}. Copy the run again, or train again."
        ) from None
    for variable in model.weights:
        if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
            raise PneumoError(
                f"{path} holds weights that are not finite numbers ({variable.path}). Copy the run again, or train "
                "again."
            )
