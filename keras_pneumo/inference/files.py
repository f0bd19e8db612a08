"""Predictions for radiographs that need no labels and no prepared folder: files, folders of them, or arrays.

In: finished runs of one task, and radiographs. Out: a table with the probability of each and, by segmenters, the mask.
Radiographs are decoded and resized as prepared images are, so an image gets the same numbers on both ways. They are
read and predicted a batch at a time, so memory does not grow with their number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from keras_pneumo.data.prepared.scanning import check_decoders
from keras_pneumo.data.radiographs.geometry import resize_image, shape_fault, size_note, without_padding
from keras_pneumo.data.radiographs.radiograph import Radiograph
from keras_pneumo.data.radiographs.reading import find_files, read_or_reason
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.ensemble import (
    OpenedRuns,
    check_together,
    joined_names,
    mean_maps,
    mean_probability,
    open_members,
)
from keras_pneumo.inference.maps import enlarge, quantise
from keras_pneumo.inference.postprocess import (
    FILE,
    OWN_HEAD,
    PostprocessingParameters,
    postprocess_map,
    read_postprocessing,
)
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor
from keras_pneumo.inference.run import SYNTHETIC, RunFolder
from keras_pneumo.storage.files import replacing_contents, write_table
from keras_pneumo.storage.tables import listed, safe_columns, set_aside_sentences, write_quarantine
from keras_pneumo.storage.workers import FILE_FAILED, Progress, map_files

ANY_VIEW = "--any-view (any_view=True)"
"""How a file that is no frontal radiograph of the chest by its header is let in."""

Image = str | Path | np.ndarray
"""A radiograph: a file, a folder of them, or grey pixels (H, W): uint8, or floats in [0, 1]."""

Source = tuple[str, Path | np.ndarray]
"""A radiograph's name with its file or its pixels, uint8 (H, W)."""

PredictImages = Callable[[Sequence[np.ndarray]], list[dict[str, object]]]
"""From uint8 radiographs (H, W) of any size to the predicted columns of each."""


def predict_images(
    runs: Sequence[RunFolder],
    images: Image | Sequence[Image],
    parameters: PostprocessingParameters | None = None,
    gate: Sequence[RunFolder] = (),
    progress: Progress | None = None,
    opened: OpenedRuns | None = None,
    any_view: bool = False,
) -> pd.DataFrame:
    """Predict radiographs given as paths, arrays or a folder.

    Args:
        runs: finished runs of one task, which predict together.
        images: one radiograph, one folder of them, or several of either. An array is (H, W) or (H, W, 1), white =
            dense: uint8, or floats in [0, 1], which are rounded to 256 grey values as a file's are.
        parameters: how segmenters' maps become masks; None: a single run's own.
        gate: classifiers whose probability gates the masks, where it is not the segmenters' own head.
        progress: called with radiographs done and in all.
        opened: networks that are loaded already; those that are loaded here are added, for the next call.
        any_view: whether files are taken that say that they are no frontal radiographs of the chest.

    Returns:
        A row for each radiograph in the order given, those of a folder by name: ``image_id, probability`` and, by
        segmenters, ``encoded_pixels`` on the grid of 1024x1024, which for an image that is not square is that of the
        square it is padded to. An array's id is its number, from 0. Files that cannot be read are left out, and a
        warning names them. ``attrs["synthetic"]`` says whether a run was trained on phantoms.

    Raises:
        PneumoError: an array is not an image as above, there is no radiograph, or none that can be read; the runs
            cannot predict together; parameters or a gate are missing.
    """
    sources, refused = image_sources(images)
    if parameters is None:
        parameters = own_postprocessing(runs)
    rows = _predict(runs, sources, refused, parameters, gate, SINGLE_DEVICE, progress, opened, any_view)
    check_readable(len(rows), refused)
    table = pd.DataFrame(rows).drop(columns=["file", "notes"])
    table.attrs["synthetic"] = any(run.synthetic for run in [*runs, *gate])
    return table


def image_sources(images: Image | Sequence[Image]) -> tuple[list[Source], list[dict[str, object]]]:
    """One radiograph, one folder of them or several of either, each with the name that it has in messages.

    Returns:
        The radiographs, and ``file, reason`` of links out of a folder, which are not followed.

    Raises:
        PneumoError: an array is not an image (:func:`grey_pixels`), a path does not exist, or there is no radiograph.
    """
    given = [images] if isinstance(images, str | Path | np.ndarray) else list(images)
    sources: list[Source] = []
    refused: list[dict[str, object]] = []
    for number, image in enumerate(given):
        if isinstance(image, np.ndarray):
            sources.append((str(number), grey_pixels(image)))
        else:
            found = find_files([Path(image)])
            sources += [(name, path) for path, name in found.files]
            refused += found.refused
    if not sources:
        raise PneumoError("There is no radiograph to predict: the list is empty. Give at least one.")
    return sources, refused


def grey_pixels(image: np.ndarray) -> np.ndarray:
    """An array as uint8 pixels (H, W).

    Raises:
        PneumoError: it has another shape or type, or floats outside of [0, 1].
    """
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim != 2 or not image.size:
        raise PneumoError(f"An image must be grey with the shape (H, W); this one has the shape {image.shape}.")
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise PneumoError(f"An image must be uint8, or floats from 0 to 1; this one is {image.dtype}.")
    if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise PneumoError(
            f"Floats must be from 0 to 1; this image has values from {image.min():g} to {image.max():g}. Divide it by "
            "255, or give uint8."
        )
    return np.rint(image * 255).astype(np.uint8)


class LoadedImage(NamedTuple):
    """A radiograph that a network can take."""

    name: str
    """Its name in messages and in the column ``file``."""
    image_id: str
    """SOPInstanceUID of a DICOM file, name of another file, number of an array."""
    pixels: np.ndarray
    """uint8 (H, W), white = dense."""
    notes: tuple[str, ...] = ()
    """Sentences on what a person should know of the file."""


def read_batches(
    sources: Sequence[Source],
    batch_size: int,
    refused: list[dict[str, object]],
    any_view: bool = False,
    isolated: bool = False,
) -> Iterator[list[LoadedImage]]:
    """Read radiographs one batch at a time, in their order.

    Args:
        sources: names, each with a file or with pixels.
        batch_size: radiographs read at once.
        refused: gets ``file, reason`` of each that cannot be read, or that no network can take.
        any_view: whether files are taken that say that they are no frontal radiographs of the chest.
        isolated: whether files are read in processes of their own, within limits of time and memory, as every command
            does. In this process, a hostile one can end it.

    Yields:
        Full batches of those that can be predicted; the last may be smaller, and is empty where there is none left.
    """
    paths = [source for _, source in sources if isinstance(source, Path)]
    read: Iterator[Radiograph | str]
    if isolated:
        in_order = map_files(read_or_reason, paths, in_order=True)
        read = (FILE_FAILED if radiograph is None else radiograph for _, radiograph in in_order)
    else:
        read = map(read_or_reason, paths)
    batch: list[LoadedImage] = []
    for name, source in sources:
        image_id, pixels, notes = name, source, tuple[str, ...]()
        if isinstance(source, Path):
            radiograph = next(read)
            if isinstance(radiograph, str):
                refused.append({"file": name, "reason": radiograph})
                continue
            if radiograph.other_view and not any_view:
                refused.append({"file": name, "reason": f"{radiograph.other_view}; {ANY_VIEW} lets it in"})
                continue
            image_id, pixels, notes = radiograph.image_id, radiograph.pixels, radiograph.notes
        assert isinstance(pixels, np.ndarray)
        if reason := shape_fault(pixels):
            refused.append({"file": name, "reason": reason})
            continue
        batch.append(LoadedImage(name, image_id, pixels, notes))
        if len(batch) == batch_size:
            yield batch
            batch = []
    yield batch  # empty or not: what was refused after the last full batch is counted with it


def check_readable(predicted: int, refused: Sequence[dict[str, object]]) -> None:
    """Warn of radiographs that were left out, beside so many that were predicted.

    Raises:
        PneumoError: all were.
    """
    if not refused:
        return
    if not predicted:
        first = refused[0]
        raise PneumoError(
            f"None of the {len(refused)} radiographs can be predicted; the first, {first['file']}: {first['reason']}. "
            "Give others."
        )
    texts = " ".join(set_aside_sentences(refused, most=3))
    warnings.warn(f"{len(refused)} of {predicted + len(refused)} files were left out. {texts}", stacklevel=3)


@dataclass(frozen=True)
class FilesSummary:
    """What :func:`predict_folder` wrote."""

    path: Path
    predicted: int
    set_aside: list[dict[str, object]]
    """``file, reason`` of what was not predicted, as quarantine.csv has them."""
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Sentences on what a person should know of the radiographs -> the files of which each is true."""
    synthetic: bool = False
    """Whether a run was trained on phantoms."""

    def remarks(self, most: int = 8) -> Iterator[str]:
        """Sentences to show to the user: on phantoms, what was set aside, and the rarest notes with their files."""
        if self.synthetic:
            yield f"{SYNTHETIC}. These answers say nothing of real radiographs."
        yield from set_aside_sentences(self.set_aside)
        for text, files in sorted(self.notes.items(), key=lambda item: len(item[1]))[:most]:
            yield f"{listed(files, 2)}: {text}"
        if len(self.notes) > most:
            yield f"{len(self.notes) - most} further notes are in {self.path}, column notes."

    def __str__(self) -> str:
        """A sentence for the user."""
        text = f"{self.predicted} radiographs predicted: {self.path}"
        count = len(self.set_aside)
        return f"{text}; {count:,} set aside: {self.path.with_name('quarantine.csv')}" if count else text


def predict_folder(
    runs: Sequence[RunFolder],
    data: Path,
    folder: Path,
    progress: Progress | None = None,
    parameters_file: Path | None = None,
    gate: Sequence[RunFolder] = (),
    distributed: DistributedPredictor = SINGLE_DEVICE,
    any_view: bool = False,
) -> FilesSummary:
    """Predict every radiograph under ``data``, which needs no labels; write predictions.csv and quarantine.csv.

    ``predictions.csv`` has the notes on each file, and where a run was trained on phantoms a column that says so.

    Args:
        runs: finished runs of one task.
        data: the folder.
        folder: where to write.
        progress: called with files done and in all.
        parameters_file: the postprocessing of masks; by default a single run's own.
        gate: classifiers whose probability gates the masks.
        distributed: where the networks predict.
        any_view: whether files are taken that say that they are no frontal radiographs of the chest.

    Raises:
        PneumoError: there is no radiograph, or none that can be read; or segmenters have no postprocessing.
    """
    parameters = None
    threshold = runs[0].threshold if len(runs) == 1 else None
    if runs[0].experiment.task == "classifier" and (gate or parameters_file is not None):
        raise PneumoError(
            "--gate and --postprocess are for segmenters' masks; these runs are classifiers. Leave them out."
        )
    if runs[0].experiment.task == "segmenter":
        parameters = read_postprocessing(parameters_file) if parameters_file else own_postprocessing(runs)
        threshold = parameters.threshold if parameters else None
    predictions, refused = predict_files(runs, data, progress, parameters, gate, distributed, any_view)
    notes: dict[str, list[str]] = {}
    for file, texts in zip(predictions["file"], predictions["notes"], strict=True):
        for text in texts:
            notes.setdefault(text, []).append(file)
    predictions["notes"] = predictions["notes"].map(" ".join)
    synthetic = any(run.synthetic for run in [*runs, *gate])
    if synthetic:
        predictions["trained_on"] = "phantoms"
    if threshold is not None:
        predictions["above_threshold"] = (predictions["probability"] >= threshold).astype(int)
    predictions["probability"] = np.round(predictions["probability"], 6)
    set_aside = [{"file": file, "reason": reason} for file, reason in refused[["file", "reason"]].to_numpy()]
    with replacing_contents(folder, ("quarantine.csv", "predictions.csv")) as new:
        write_quarantine(new, set_aside)
        write_table(new / "predictions.csv", safe_columns(predictions, "image_id", "file"))
    return FilesSummary(folder / "predictions.csv", len(predictions), set_aside, notes, synthetic)


def own_postprocessing(runs: Sequence[RunFolder]) -> PostprocessingParameters | None:
    """The postprocessing that a single segmenter run keeps; None for classifiers, and for several runs.

    Raises:
        PneumoError: the run's file is missing, damaged, or not the one that its report was made with.
    """
    if runs[0].experiment.task == "classifier" or len(runs) > 1:
        return None
    runs[0].check_postprocessing()
    return read_postprocessing(runs[0].folder / FILE)


def require_postprocessing(
    parameters: PostprocessingParameters | None, gate: Sequence[RunFolder]
) -> PostprocessingParameters:
    """The parameters that segmenters' maps become masks by, checked against the gate.

    Raises:
        PneumoError: there are none, or they were fitted with another gate.
    """
    if parameters is None:
        raise PneumoError(
            "Masks need postprocessing parameters: name the postprocess.json that predicting a prepared folder wrote."
        )
    fitted_with = parameters.gate_source if parameters.gate > 0 else ""
    given = joined_names(gate) if gate else OWN_HEAD
    if fitted_with and fitted_with != given:
        raise PneumoError(
            f"The postprocessing was fitted with the gate {fitted_with!r}; name those runs with --gate, and no others."
        )
    return parameters


def predict_files(
    runs: Sequence[RunFolder],
    data: Path,
    progress: Progress | None = None,
    parameters: PostprocessingParameters | None = None,
    gate: Sequence[RunFolder] = (),
    distributed: DistributedPredictor = SINGLE_DEVICE,
    any_view: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict every radiograph under a folder.

    Args:
        runs: finished runs of one task, which predict together.
        data: folder of DICOM, PNG or JPEG files; no labels are needed.
        progress: called with files done and in all.
        parameters: how segmenters' maps become masks.
        gate: classifiers whose probability gates the masks, where it is not the segmenters' own head.
        distributed: where the networks predict.
        any_view: whether files are taken that say that they are no frontal radiographs of the chest.

    Returns:
        ``image_id, file, probability`` (and ``encoded_pixels``, on the grid of 1024x1024, of segmenters) and ``notes``,
        a tuple of sentences, of those that could be read, and ``file, reason`` of those that could not or are set
        aside; files are named relative to ``data``.

    Raises:
        PneumoError: there is no radiograph under ``data``, or none that can be read; a decoder, parameters or a gate
            are missing; the runs cannot predict together.
    """
    found = find_files([data])
    check_decoders(found.files)
    sources: list[Source] = [(name, path) for path, name in found.files]
    refused = found.refused
    rows = _predict(runs, sources, refused, parameters, gate, distributed, progress, any_view=any_view, isolated=True)
    if not rows:
        raise PneumoError(
            f"None of the {len(refused)} files of {data} can be read; the first: {refused[0]['reason']}. "
            "Give other files."
        )
    return pd.DataFrame(rows), pd.DataFrame(refused, columns=["file", "reason"])


def _predict(
    runs: Sequence[RunFolder],
    sources: Sequence[Source],
    refused: list[dict[str, object]],
    parameters: PostprocessingParameters | None,
    gate: Sequence[RunFolder],
    distributed: DistributedPredictor,
    progress: Progress | None,
    opened: OpenedRuns | None = None,
    any_view: bool = False,
    isolated: bool = False,
) -> list[dict[str, object]]:
    """Rows of the radiographs that can be predicted; ``refused`` gets ``file, reason`` of the others."""
    check_together(runs)
    predict_batch = _predictor(runs, parameters, gate, distributed, opened)
    batch_size = min(run.experiment.global_batch_size for run in runs)
    size = max(run.experiment.image_size for run in runs)
    rows: list[dict[str, object]] = []
    everything = len(refused) + len(sources)
    for batch in read_batches(sources, batch_size, refused, any_view, isolated):
        columns = predict_batch([image.pixels for image in batch]) if batch else []
        for image, predicted in zip(batch, columns, strict=True):
            enlarged = size_note(image.pixels.shape[0], image.pixels.shape[1], size)
            notes = (*image.notes, *([enlarged] if enlarged else []))
            rows.append({"image_id": image.image_id, "file": image.name, **predicted, "notes": notes})
        if progress:
            progress(len(rows) + len(refused), everything)
    return rows


def _predictor(
    runs: Sequence[RunFolder],
    parameters: PostprocessingParameters | None,
    gate: Sequence[RunFolder],
    distributed: DistributedPredictor,
    opened: OpenedRuns | None,
) -> PredictImages:
    """Load the networks; a function from radiographs to ``probability`` and, by segmenters, ``encoded_pixels``."""
    if runs[0].experiment.task == "classifier":
        members = open_members(runs, distributed, opened)
        return lambda images: [
            {"probability": float(probability)}
            for probability in mean_probability(members, lambda size: pixels_at(images, size))
        ]
    parameters = require_postprocessing(parameters, gate)
    segmenters = open_members(runs, distributed, opened)
    classifiers = open_members(gate, distributed, opened) if gate and parameters.gate > 0 else []

    def predict_batch(images: Sequence[np.ndarray]) -> list[dict[str, object]]:
        maps, image_probability = mean_maps(segmenters, lambda size: pixels_at(images, size))
        if classifiers:
            image_probability = mean_probability(classifiers, lambda size: pixels_at(images, size))
        elif image_probability is None:
            image_probability = np.ones(len(images))
        return [
            postprocess_map(without_padding(enlarge(quantised), *image.shape), parameters, float(probability))
            for image, quantised, probability in zip(images, quantise(maps), image_probability, strict=True)
        ]

    return predict_batch


def pixels_at(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Radiographs, uint8 (H, W) of any size, as a batch for a network: float32 (n, size, size, 1) in [0, 1]."""
    return np.stack([resize_image(image, size) for image in images])[..., None].astype(np.float32) / np.float32(255)
