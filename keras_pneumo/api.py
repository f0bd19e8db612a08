"""The functions and classes of the front door; ``import keras_pneumo as kp`` gives them by name.

Each is thin: it takes paths as ``str`` or ``Path``, imports what it needs when it is called, and hands the work to the
room that does it. What cannot be used is refused with a :class:`~keras_pneumo.errors.PneumoError` whose message is a
sentence.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from keras_pneumo.config import Augmentation, Experiment, read_experiment
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import import_tensorflow

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from keras_pneumo.data.prepared.folder import PreparedFolder
    from keras_pneumo.data.radiographs.radiograph import Radiograph
    from keras_pneumo.detector.detector import Detector
    from keras_pneumo.detector.external import Evaluation
    from keras_pneumo.evaluation.compare import Comparison, Scores
    from keras_pneumo.inference.ensemble import OpenedRuns
    from keras_pneumo.inference.run import RunFolder
    from keras_pneumo.training.log import EpochRow

PathLike = str | Path


def read_radiograph(path: PathLike) -> Radiograph:
    """Read one DICOM, PNG or JPEG file.

    Returns:
        The radiograph: ``.pixels`` uint8 (H, W), white is dense; ``.image_id``, ``.pixel_spacing_mm``, ``.view``,
        ``.sex``, ``.age``, and ``.notes``, sentences on what is odd or missing.

    Raises:
        PneumoError: the file is not one usable grey radiograph; the message is the reason.

    Example:
        >>> radiograph = kp.read_radiograph("radiograph.dcm")
        >>> radiograph.pixels.shape, radiograph.pixels.dtype
        ((1024, 1024), dtype('uint8'))
        >>> radiograph.view in ("PA", "AP", "")
        True
    """
    from keras_pneumo.data.radiographs.radiograph import UnreadableImage
    from keras_pneumo.data.radiographs.reading import read_radiograph as read

    try:
        return read(Path(path))
    except UnreadableImage as error:
        raise PneumoError(f"{path} cannot be read: {error}. Give another file.") from None


def write_phantoms(
    folder: PathLike,
    images: int = 400,
    seed: int = 0,
    positive_rate: float = 0.22,
    size_scale: float = 1.0,
    workers: int | None = 1,
) -> Path:
    """Write phantoms: synthetic chest radiographs, as a folder like that of SIIM-ACR.

    Phantoms are made to try everything without real data. A network that was trained on them knows nothing of real
    radiographs.

    Args:
        folder: where to write; a new or empty folder. A folder that holds these phantoms already is left as it is.
        images: how many radiographs.
        seed: the same seed gives the same bytes.
        positive_rate: share of radiographs with a pneumothorax; 0.22 is that of SIIM-ACR.
        size_scale: multiplies the areas of the pneumothoraces; 1 gives the sizes of SIIM-ACR.
        workers: processes; None: one for each core. A script that starts more than one needs the usual
            ``if __name__ == "__main__":``.

    Returns:
        The folder: DICOM files, ``train-rle.csv``, ``patients.csv``, and what is known of phantoms only.

    Example:
        >>> folder = kp.write_phantoms("few", images=2)
        >>> len(list(folder.rglob("*.dcm")))
        2
    """
    from keras_pneumo.phantoms.cohort import PhantomSettings
    from keras_pneumo.phantoms.folder import write_phantoms as write

    settings = PhantomSettings(images=images, seed=seed, positive_rate=positive_rate, size_scale=size_scale)
    write(Path(folder), settings, workers)
    return Path(folder)


def prepare(
    folder: PathLike | Sequence[PathLike],
    out: PathLike,
    sizes: int | Sequence[int] = (256, 512),
    labels: PathLike | Sequence[PathLike] | None = None,
    patients: PathLike | Sequence[PathLike] | None = None,
    seed: int = 0,
    workers: int | None = 1,
    uncertain: str = "ignore",
    blank: str | None = None,
    readers: int = 2,
    image_column: str | None = None,
    label_column: str | None = None,
    any_view: bool = False,
    mask_size: str | None = None,
    pseudonym_key: PathLike | None = None,
) -> Prepared:
    """Prepare a folder of radiographs: check, decode and resize them, and split them by patient.

    Called again, it goes on where it stopped, adds sizes, or does nothing. What the user must know, such as files that
    were set aside, comes as a warning.

    Args:
        folder: DICOM, PNG or JPEG files at any depth, with their labels; several folders are prepared together.
        out: the prepared folder; made where it does not exist.
        sizes: sides in pixels, 32 to 1024.
        labels: the label csv, COCO json or folder of masks, where ``folder`` does not hold it; of several folders one
            each.
        patients: table of image and patient; by default ``patients.csv`` or ``nih_id.csv`` in ``folder``.
        seed: of the split.
        workers: processes; None: one for each core. A script that starts more than one needs the usual
            ``if __name__ == "__main__":``.
        uncertain: what an uncertain label means: ``"ignore"`` (the image is left out), ``"positive"``, ``"negative"``.
        blank: what it means that a label is blank or an image has no mask: ``"negative"`` or ``"ignore"``; None: as
            the data set says, and a refusal where it does not.
        readers: how many readers must see a pneumothorax, where several read each image.
        image_column: the image's column in a table that is not known.
        label_column: the label's column in a table that is not known.
        any_view: whether images that the table calls lateral are let in.
        mask_size: ``ROWSxCOLUMNS`` that run-length masks refer to, where it is not 1024x1024.
        pseudonym_key: the key of another prepared folder, or that folder, so that the pseudonyms of patients are the
            same in both; None: the key in ``out``, and a new one where there is none.

    Raises:
        PneumoError: nothing can be prepared, or ``out`` holds something else.

    Example:
        >>> prepared = kp.prepare("phantoms", "prepared", sizes=[64, 128])
        >>> prepared.sizes
        [64, 128]
    """
    from keras_pneumo.data.labels.known import options_of
    from keras_pneumo.data.prepared.folder import load_prepared as load
    from keras_pneumo.data.prepared.prepare import paths_of
    from keras_pneumo.data.prepared.prepare import prepare as prepare_folder

    wanted = [sizes] if isinstance(sizes, int) else list(sizes)
    summary = prepare_folder(
        paths_of(folder),
        Path(out),
        wanted,
        paths_of(labels),
        paths_of(patients),
        seed=seed,
        workers=workers,
        options=options_of(uncertain, blank, readers, image_column, label_column, any_view, mask_size),
        pseudonym_key=None if pseudonym_key is None else Path(pseudonym_key),
    )
    for note in summary.notes:
        warnings.warn(note, stacklevel=2)
    if summary.set_aside:
        warnings.warn(
            f"{summary.set_aside} files or rows were set aside; {summary.folder / 'quarantine.csv'} says why.",
            stacklevel=2,
        )
    return Prepared(load(Path(out)))


def load_prepared(folder: PathLike) -> Prepared:
    """Load a prepared folder.

    Raises:
        PneumoError: it is none, is unfinished or was changed, or a patient stands in two subsets.

    Example:
        >>> prepared = kp.load_prepared("prepared")
        >>> sorted(prepared.split["subset"].unique())
        ['test', 'train', 'validation']
    """
    from keras_pneumo.data.prepared.folder import load_prepared as load

    return Prepared(load(Path(folder)))


class Prepared:
    """A prepared folder: its tables, and its images as a ``tf.data.Dataset``.

    Example:
        >>> prepared = kp.load_prepared("prepared")
        >>> prepared.cases[["image_id", "pneumothorax"]].shape
        (40, 2)
        >>> validation = prepared.dataset("validation", image_size=64, batch_size=4)
        >>> images, labels = next(iter(validation))
        >>> images.shape, labels.shape
        (TensorShape([4, 64, 64, 1]), TensorShape([4, 1]))
    """

    def __init__(self, prepared: PreparedFolder) -> None:
        """Wrap an opened folder; :func:`load_prepared` opens one."""
        self.prepared_folder = prepared

    def __repr__(self) -> str:
        """Name the folder and say what it holds."""
        return f"Prepared({str(self.folder)!r}, {len(self.cases)} images, sizes {self.sizes})"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.prepared_folder.folder

    @property
    def cases(self) -> pd.DataFrame:
        """A row per image: ``image_id``, ``patient_id``, ``sex``, ``age``, ``view``, ``pneumothorax``, ..."""
        return self.prepared_folder.cases.copy()

    @property
    def split(self) -> pd.DataFrame:
        """A row per image: ``image_id``, ``patient_id``, ``pneumothorax``, ``subset``, ``fold``."""
        return self.prepared_folder.split.copy()

    @property
    def sizes(self) -> list[int]:
        """Sides of the prepared images, in pixels."""
        return sorted(int(size) for size in self.prepared_folder.manifest["sizes"])

    def image_ids(self, subset: str, fold: int = 0) -> list[str]:
        """Ids of the images of ``train``, ``validation`` or ``test``, in the order of :meth:`dataset` without shuffle.

        Args:
            subset: which.
            fold: which fold is the validation set; the experiments' default is 0.
        """
        subsets = ("train", "validation", "test")
        if subset not in subsets:
            raise PneumoError(f"There is no subset {subset!r}. Choose one of {', '.join(subsets)}.")
        return self.prepared_folder.subset(subset, fold=fold)

    def dataset(
        self,
        subset: Literal["train", "validation", "test"],
        image_size: int | None = None,
        batch_size: int = 16,
        masks: bool = False,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        shuffle: bool = False,
        fold: int = 0,
    ) -> tf.data.Dataset:
        """The images of a subset with their targets, for ``model.fit``, ``model.evaluate`` and ``model.predict``.

        It can be iterated any number of times and knows its cardinality. Each new pass is the next epoch: order and
        augmentation are the same functions of (seed, epoch, image) that ``kp.train`` uses.

        Args:
            subset: ``train``, ``validation`` or ``test``.
            image_size: one of :attr:`sizes`; may be left out where there is only one.
            batch_size: images in a batch, at most.
            masks: whether the target is the mask; else it is the label.
            augmentation: how images and masks are changed, such as ``kp.Augmentation()``; None: not at all.
            seed: of order and augmentation.
            shuffle: whether each pass has an order of its own; else images come in the order of :meth:`image_ids`.
            fold: which fold is the validation set.

        Returns:
            Dataset of (image, target): float32 (B, S, S, 1) in [0, 1]; target float32 (B, 1), 0 or 1, or with
            ``masks`` the mask, float32 (B, S, S, 1), 0 or 1.

        Raises:
            PneumoError: there is no such subset or size, or a file is missing or damaged.
        """
        image_ids = self.image_ids(subset, fold)
        size = self._one_size(image_size)
        if batch_size < 1:
            raise PneumoError(f"batch_size is {batch_size}; it must be at least 1.")
        if not image_ids:
            raise PneumoError(f"{self.folder} has no {subset} images. Choose another subset.")
        import_tensorflow()
        from keras_pneumo.data.batches.images import open_source
        from keras_pneumo.data.batches.pipeline import labelled_batches

        if masks:
            self.prepared_folder.require_masks()
        source = open_source(self.prepared_folder, image_ids, size, with_masks=masks, verify=True)
        return labelled_batches(source, batch_size, masks, augmentation, seed, shuffle)

    def _one_size(self, image_size: int | None) -> int:
        if image_size in self.sizes:
            return int(image_size or 0)
        known = ", ".join(map(str, self.sizes))
        if image_size is None:
            if len(self.sizes) == 1:
                return self.sizes[0]
            raise PneumoError(f"{self.folder} holds images of several sizes ({known}). Give one as image_size.")
        raise PneumoError(
            f"{self.folder} holds no images of {image_size} pixels, only {known}. Prepare that size too, or give "
            "another image_size."
        )


def build_classifier(encoder: str = "resnet50", weights: PathLike | None = None, dropout: float = 0.0) -> keras.Model:
    """Build the classifier: torchvision's ResNet with one logit.

    Args:
        encoder: ``resnet18``, ``resnet34`` or ``resnet50``.
        weights: None: random; ``"imagenet_v1"`` or ``"imagenet_v2"``: the encoder's; or a safetensors file with
            torchvision's names for the whole network.
        dropout: share of the pooled features set to 0 in training.

    Returns:
        A Keras model from (B, S, S, 1) in [0, 1] to logits (B, 1).

    Example:
        >>> model = kp.build_classifier("resnet18")
        >>> model.output_shape
        (None, 1)
    """
    import_tensorflow()
    from keras_pneumo.models.classifier import build_classifier as build

    return build(encoder, weights, dropout=dropout)


def build_unet(
    encoder: str = "resnet50",
    weights: PathLike | None = None,
    attention: Literal["scse"] | None = None,
    image_head: bool = False,
    dropout: float = 0.2,
) -> keras.Model:
    """Build the segmenter: the U-Net of ``segmentation_models_pytorch``.

    Args:
        encoder: ``resnet18``, ``resnet34`` or ``resnet50``.
        weights: None: random; ``"imagenet_v1"`` or ``"imagenet_v2"``: the encoder's; or a safetensors file with the
            names of ``segmentation_models_pytorch`` for the whole network.
        attention: ``"scse"``, or None.
        image_head: whether there is a second output, one logit for each image.
        dropout: share of the pooled features set to 0 before that logit in training.

    Returns:
        A Keras model from (B, S, S, 1) in [0, 1] to mask logits (B, S, S, 1), or with ``image_head`` to
        ``{"mask": (B, S, S, 1), "image": (B, 1)}``; S divides by 32.

    Example:
        >>> model = kp.build_unet("resnet18")
        >>> model.output_shape
        (None, None, None, 1)
    """
    import_tensorflow()
    from keras_pneumo.models.unet import build_unet as build

    return build(encoder, weights, attention=attention, image_head=image_head, dropout=dropout)


def load_run(folder: PathLike) -> Run:
    """Open a finished training.

    Args:
        folder: the run folder; or a zip that ``export --format zip`` wrote; or ``hf://OWNER/NAME``, on a model hub,
            with ``@REVISION`` one commit of it. A zip and a hub's package are checked by their hashes, and kept in
            this user's cache; ``.address`` has the commit.

    Raises:
        PneumoError: it is no finished run, or was changed on the way.

    Example:
        >>> run = kp.load_run("runs/segmenter")
        >>> run.experiment.encoder
        'resnet18'
        >>> list(run.predict("radiograph.dcm").columns)
        ['image_id', 'probability', 'encoded_pixels']
    """
    from keras_pneumo.sharing.hub import received

    found, address = received(folder)
    if not (found / "experiment.json").is_file():  # said without waiting for TensorFlow
        raise PneumoError(
            f"{folder} is not a run folder: it has no experiment.json. Name the folder that train printed."
        )
    import_tensorflow()
    from keras_pneumo.inference.run import read_run

    return Run(read_run(found), address)


class Run:
    """A finished training: its network, its predictions, heat maps and scores.

    Example:
        >>> run = kp.load_run("runs/classifier")
        >>> heat = run.heat_map("radiograph.dcm")
        >>> heat.shape, heat.dtype
        ((1024, 1024), dtype('float32'))
    """

    def __init__(self, run: RunFolder, address: str = "") -> None:
        """Wrap a run folder that was read; :func:`load_run` reads one."""
        self._run = run
        self.address = address
        """Where it was fetched from, with its commit (``hf://OWNER/NAME@COMMIT``); blank for a folder or a zip."""
        self._opened: OpenedRuns = {}  # loaded by the first prediction

    def __repr__(self) -> str:
        """Name the folder and the network."""
        experiment = self.experiment
        return f"Run({str(self.folder)!r}, {experiment.task} {experiment.encoder} at {experiment.image_size} pixels)"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._run.folder

    @property
    def experiment(self) -> Experiment:
        """The experiment that was trained."""
        return self._run.experiment

    @cached_property
    def model(self) -> keras.Model:
        """The network with its best weights: from (B, S, S, 1) in [0, 1] to logits; a sigmoid makes probabilities."""
        from keras_pneumo.inference.run import load_model

        return load_model(self._run)

    @property
    def log(self) -> pd.DataFrame:
        """A row per epoch of the training: ``epoch``, ``loss``, ``validation_loss``, ``validation_auroc``, ..."""
        return pd.read_csv(self._file("log.csv"))

    @property
    def scores(self) -> pd.DataFrame:
        """The scores on the test patients: a row per score with ``value``, ``low`` and ``high`` (95%, by patient).

        Raises:
            PneumoError: the run was not scored.
        """
        row = pd.read_csv(self._file("board.csv")).iloc[0]
        names = [name for name in row.index if f"{name}_low" in row.index and pd.notna(row[name])]
        columns = {"value": names, "low": [f"{name}_low" for name in names], "high": [f"{name}_high" for name in names]}
        return pd.DataFrame({kind: row[listed].astype(float).to_numpy() for kind, listed in columns.items()}, names)

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on phantoms: then its answers say nothing of real radiographs."""
        return self._run.synthetic

    def predict(
        self, images: PathLike | np.ndarray | Sequence[PathLike | np.ndarray], any_view: bool = False
    ) -> pd.DataFrame:
        """Predict radiographs, as ``keras-pneumo predict`` does.

        Args:
            images: one radiograph, one folder of them, or several of either. A radiograph is a file, or an array (H, W)
                or (H, W, 1), white is dense: uint8, or floats in [0, 1].
            any_view: whether files are taken that say that they are no frontal radiographs of the chest.

        Returns:
            A row per radiograph: ``image_id``, ``probability``, and by segmenters ``encoded_pixels``, on the grid of
            1024x1024, ``-1`` for no pneumothorax. Files that cannot be read are left out, and a warning names them.

        Raises:
            PneumoError: there is no radiograph, or an array holds something else, such as floats above 1.
        """
        from keras_pneumo.inference.files import predict_images

        return predict_images([self._run], images, opened=self._opened, any_view=any_view)

    def heat_map(self, image: PathLike | np.ndarray, method: str | None = None, stage: int | None = None) -> np.ndarray:
        """Draw where the network looks: how much each pixel speaks for a pneumothorax.

        Args:
            image: a file, or an array as for :meth:`predict`.
            method: ``gradcam``, ``gradcam++`` or ``hirescam``; None: that of the run's saliency check, or Grad-CAM.
            stage: 1 (fine, shallow) to 5 (coarse, deep), which of the encoder's feature maps; None: as the method.

        Returns:
            float32 (H, W) of the image, 0 to 1, where 1 is the image's highest; all 0 where nothing speaks for it.

        Raises:
            PneumoError: the image cannot be read, or there is no such method or stage.
        """
        from keras_pneumo.explain.files import heat_map

        return heat_map(self._run, image, method, stage, self.model)

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise PneumoError(f"{self.folder} has no {name}. Train again, or give the same command again to go on.")
        return path


def train(
    experiment: Experiment | PathLike,
    prepared: Prepared | PathLike,
    out: PathLike | None = None,
    weights: PathLike | None = None,
    verbose: bool = True,
    start_from: PathLike | None = None,
    log_to: str | Sequence[str] = (),
) -> Run:
    """Train, predict the test patients, score them and write the report, as ``keras-pneumo train`` does.

    An unfinished training of the same experiment in the folder is continued; the result is that of an unbroken one.

    Args:
        experiment: such as ``kp.CLASSIFIER.replace(name="mine", epochs=3)``, or a file of ``experiments/``.
        prepared: from :func:`prepare` or :func:`load_prepared`, or its folder.
        out: the run folder; by default ``runs/NAME``, or ``runs/NAME-2`` and so on.
        weights: a file or folder with ImageNet weights, where the experiment starts from them and they are not in the
            cache yet; or a safetensors file with PyTorch's names to start from.
        verbose: whether to print a line for each epoch, and the result.
        start_from: a run of the same network, as for :func:`load_run`, whose best weights are the start; it may be of
            other data, unless it has learned from what is held out here.
        log_to: ``"mlflow"``, ``"wandb"`` or both: trackers that get the rows of the log, the test scores and curves.

    Raises:
        PneumoError: experiment and data do not fit together, or ``out`` holds something else; the message says what to
            do.

    Example:
        >>> smallest = kp.CLASSIFIER.replace(
        ...     name="smallest", encoder="resnet18", weights="random", image_size=64, frozen_epochs=0, epochs=1
        ... )
        >>> run = kp.train(smallest, "prepared", out="runs/smallest", verbose=False)
        >>> list(run.scores.columns)
        ['value', 'low', 'high']
        >>> len(run.log)
        1
    """
    chosen = experiment if isinstance(experiment, Experiment) else read_experiment(Path(experiment))
    opened = prepared if isinstance(prepared, Prepared) else load_prepared(prepared)
    import_tensorflow()
    from keras_pneumo.inference.run import read_run
    from keras_pneumo.sharing.hub import received
    from keras_pneumo.training.logs.tracking import chosen_trackers
    from keras_pneumo.training.trainer import TrainingOptions, run_training

    def say(message: str) -> None:
        if verbose:
            print(message, flush=True)

    def say_epoch(row: EpochRow) -> None:
        segmenter = chosen.task == "segmenter"
        score = f"Dice {row.validation_dice:.3f}" if segmenter else f"AUROC {row.validation_auroc:.3f}"
        say(f"epoch {row.epoch}: loss {row.loss:.4f}, validation loss {row.validation_loss:.4f}, validation {score}")

    start = None if start_from is None else received(start_from)[0]
    options = TrainingOptions(
        command="kp.train",
        notify=lambda message: warnings.warn(message, stacklevel=2),
        say=say,
        on_epoch=say_epoch,
        log_to=chosen_trackers(log_to),
    )
    report = run_training(chosen, opened.prepared_folder, _path(out), options, weights=_path(weights), start_from=start)
    assert report is not None  # one process writes its own report
    for sentence in report.sentences:
        say(sentence)
    say(f"Report: {report.path}")
    return Run(read_run(report.path.parent))


def load_detector(folder: PathLike) -> Detector:
    """Open a detector: runs joined into one by ``keras-pneumo join``.

    Args:
        folder: its folder, a zip of it, or ``hf://OWNER/NAME``, as for :func:`load_run`.

    Returns:
        The detector. ``.predict(images)`` takes what :meth:`Run.predict` takes and gives a list with, for each
        radiograph, ``.image_id``, ``.probability`` (calibrated), ``.pneumothorax`` (yes or no) and ``.mask``, uint8
        (H, W), 0 or 1, on the radiograph's own rows and columns.

    Raises:
        PneumoError: it is no detector, or one of its files is missing or was changed.

    Example:
        >>> detector = kp.load_detector("detector")
        >>> (prediction,) = detector.predict("radiograph.dcm")
        >>> prediction.mask.shape, 0 <= prediction.probability <= 1
        ((1024, 1024), True)
    """
    from keras_pneumo.detector.record import read_detector_record
    from keras_pneumo.sharing.hub import received

    found, _ = received(folder)

    read_detector_record(found)  # what is no detector is refused without waiting for TensorFlow
    import_tensorflow()
    from keras_pneumo.detector.detector import open_detector

    return open_detector(found)


def evaluate(
    model: Run | PathLike,
    data: PathLike | Sequence[PathLike],
    out: PathLike,
    labels: PathLike | Sequence[PathLike] | None = None,
    patients: PathLike | Sequence[PathLike] | None = None,
    keep_contaminated: bool = False,
    seed: int = 0,
    resamples: int = 10_000,
) -> Evaluation:
    """Evaluate a run or a detector on an external test set, as ``keras-pneumo evaluate`` does.

    Every image is predicted, nothing is fitted, and images that were learned from are found and left out.

    Args:
        model: a run; or a run's or a detector's folder, zip or ``hf://OWNER/NAME``, as for :func:`load_run`.
        data: a folder of labelled radiographs; several are scored apart, too. Or a prepared folder.
        out: where to write the report and the tables.
        labels: label file or folder of masks, where ``data`` does not hold it.
        patients: patient table, or NIH's names.
        keep_contaminated: whether images that were learned from are scored too.
        seed: of the bootstrap.
        resamples: how often the patients are drawn anew.

    Returns:
        The evaluation: ``.scores`` with intervals by patient, ``.subgroups``, ``.contamination``, ``.cautions``,
        ``.sentences`` and ``.report``, the page.

    Raises:
        PneumoError: ``model`` is neither a run nor a detector, the data cannot be prepared, or nothing is left to
            score.

    Example:
        >>> other = kp.write_phantoms("other", images=12, seed=7, positive_rate=0.5)
        >>> evaluation = kp.evaluate("runs/classifier", other, "evaluation", resamples=200)
        >>> list(evaluation.scores.columns)
        ['value', 'low', 'high']
        >>> "age" in set(evaluation.subgroups["attribute"])
        True
    """
    import_tensorflow()
    from keras_pneumo.data.prepared.prepare import paths_of
    from keras_pneumo.detector.external import evaluate as evaluate_folder
    from keras_pneumo.sharing.hub import received

    return evaluate_folder(
        model.folder if isinstance(model, Run) else received(model)[0],
        paths_of(data),
        Path(out),
        labels=paths_of(labels) or None,
        patients=paths_of(patients) or None,
        keep_contaminated=keep_contaminated,
        seed=seed,
        resamples=resamples,
        workers=1,
    )


def score(
    truth: Prepared | PathLike | pd.DataFrame,
    submission: Run | PathLike | pd.DataFrame,
    subset: str = "test",
    threshold: float | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> Scores:
    """Score predictions: every score with its 95% interval by patient.

    Args:
        truth: a prepared folder, a label file, or a table with ``image_id`` and ``pneumothorax`` (0 or 1) and/or
            ``encoded_pixels``; a column ``patient_id`` makes the intervals those of patients.
        submission: a run, a submission's folder, a bare Kaggle file, or a table with ``image_id`` and ``probability``
            and/or ``encoded_pixels``.
        subset: which images of the truth are scored, where it has subsets.
        threshold: for a table: the probability from which on the answer counts as yes; 0.5 by default.
        seed: of the bootstrap.
        resamples: how often the patients are drawn anew.

    Returns:
        The scores: ``scores.dice``, ``scores.auroc`` and so on, each with ``.value``, ``.low`` and ``.high``, and
        ``scores.table`` with all of them.

    Raises:
        PneumoError: truth or submission is refused; the message names file, row and reason.

    Example:
        >>> import pandas as pd
        >>> truth = pd.DataFrame({"image_id": list("abcdef"), "pneumothorax": [1, 1, 1, 0, 0, 0]})
        >>> answers = truth.assign(probability=[0.9, 0.8, 0.3, 0.4, 0.2, 0.1]).drop(columns="pneumothorax")
        >>> scores = kp.score(truth, answers)
        >>> round(scores.auroc.value, 3)
        0.889
        >>> scores.auroc.low < scores.auroc.value <= scores.auroc.high
        True
    """
    from keras_pneumo.evaluation.compare import score as score_submission

    return score_submission(
        truth.folder if isinstance(truth, Prepared) else truth,
        submission.folder / "submission" if isinstance(submission, Run) else submission,
        subset=subset,
        threshold=threshold,
        seed=seed,
        resamples=resamples,
    )


def compare(
    folder: PathLike,
    truth: Prepared | PathLike,
    out: PathLike | None = None,
    subset: str = "test",
    seed: int = 0,
    resamples: int = 10_000,
) -> Comparison:
    """Compare all submissions of a folder, beside the baselines that use only metadata.

    Args:
        folder: holds a folder for each team, run folders, or bare csv files.
        truth: a prepared folder, its ``truth.csv``, or a label file.
        out: where to write the board and ``report.html``; without it nothing is written.
        subset: which images of the truth are scored.
        seed: of the bootstrap.
        resamples: how often the patients are drawn anew.

    Returns:
        The comparison: ``.table`` with a row per team, ``.pairs`` with every pair and its p values, ``.verdict``.

    Raises:
        PneumoError: there is nothing to score, or truth or a submission is refused.

    Example:
        >>> comparison = kp.compare("submissions", "prepared", resamples=200)
        >>> comparison.table["team"].iloc[0]
        'Test team'
    """
    from keras_pneumo.evaluation.compare import compare as compare_submissions

    where = truth.folder if isinstance(truth, Prepared) else truth
    return compare_submissions(folder, where, out, subset=subset, seed=seed, resamples=resamples)


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)
