"""Masks from any team's probability maps, by the same search and the same rule that our own segmenters' masks have.

In: a folder with a map for each image, from any framework, and the true masks. Out: the postprocessing parameters,
fitted on the validation maps, and a submission with the masks that they give. So a difference between two teams' masks
is one of their networks. Neither TensorFlow nor Keras is imported.

The folder of maps::

    validation/<image_id>.png   a map of each validation image (.png, .npy or .npz)
    validation.csv              image_id, probability: image-level, optional; it may gate the masks
    test/<image_id>.png         the same for the test images
    test.csv
    submission.json             what the team declares, optional

A map is square, at most 1024x1024: a grey PNG of 8 bits or an array of uint8 where 255 is a probability of 1, or an
array of floats from 0 to 1. One map at a time is held in memory.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from pydantic import ValidationError

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import Labels, read_labels, refuse_rejected
from keras_pneumo.data.prepared.manifest import TRUTH
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.submission import (
    INFO_FILE,
    SubmissionInfo,
    require_replaceable,
    write_submission,
)
from keras_pneumo.inference.maps import enlarge, quantise
from keras_pneumo.inference.postprocess import (
    COMPONENTS,
    FIGURE,
    PostprocessingParameters,
    PostprocessingSearch,
    count_pixels,
    draw_search,
    fit_postprocessing,
    postprocess_map,
    read_postprocessing,
    stack_counts,
    write_postprocessing,
)
from keras_pneumo.storage.files import require_writable
from keras_pneumo.storage.tables import image_id_of, listed, read_table, read_text
from keras_pneumo.storage.workers import Progress

ENDINGS = (".png", ".npy", ".npz")
"""Endings of map files."""

GATE_SOURCE = "image-level probability of the team"
"""The gate's source in ``postprocess.json``."""


@dataclass(frozen=True)
class TeamMaps:
    """The maps of one subset, not yet read."""

    folder: Path
    files: dict[str, Path]
    """By image id, in the order of the ids."""
    image_probability: np.ndarray | None
    """Image-level probabilities in the same order, (n,); None where the team gives none."""

    def read(self, progress: Progress | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Each image's id and its map on the grid of masks, uint8 (1024, 1024)."""
        for number, (image_id, path) in enumerate(self.files.items(), start=1):
            yield image_id, enlarge(read_map(path))
            if progress:
                progress(number, len(self.files))


def find_maps(folder: Path) -> TeamMaps:
    """The maps in a folder, and the image-level probabilities in the csv of the same name beside it.

    Raises:
        PneumoError: there is no map, an image has two, or the csv does not have just the images of the maps.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() not in ENDINGS:
            continue
        image_id = image_id_of(path.stem)
        if image_id in files:
            raise PneumoError(
                f"{folder} has two maps of {image_id}: {files[image_id].name} and {path.name}. Remove one."
            )
        files[image_id] = path
    if not files:
        raise PneumoError(
            f"{folder} has no maps. Write one file for each image, <image_id>.png (8 bits), .npy or .npz; 255, or 1.0 "
            "in an array of floats, is a probability of 1."
        )
    table = folder.with_name(f"{folder.name}.csv")
    return TeamMaps(folder, files, _image_probability(table, list(files)) if table.is_file() else None)


def _image_probability(path: Path, image_ids: list[str]) -> np.ndarray:
    table = read_table(path)
    if missing := [name for name in ("image_id", "probability") if name not in table.columns]:
        raise PneumoError(f"{path} has no column {missing[0]}. It needs image_id and probability.")
    values = pd.to_numeric(table["probability"], errors="coerce").to_numpy(float)
    if not ((values >= 0) & (values <= 1)).all():
        row = table["row"][~((values >= 0) & (values <= 1))].iloc[0]
        raise PneumoError(f"{path}, row {row}: the probability is not a number from 0 to 1. Mend the row.")
    by_image = dict(zip(table["image_id"].map(image_id_of), values, strict=True))
    if set(by_image) != set(image_ids) or len(by_image) != len(table):
        differing = sorted(set(by_image) ^ set(image_ids)) or ["an image that comes twice"]
        raise PneumoError(
            f"{path} must have one row for each map beside it, and no other: {listed(differing)}. Leave the file out "
            "where there is no image-level probability."
        )
    return np.array([by_image[image_id] for image_id in image_ids])


def read_map(path: Path) -> np.ndarray:
    """One map in 256 levels, uint8 (S, S).

    Raises:
        PneumoError: the file cannot be read, or holds no square map of probabilities.
    """
    try:
        if path.suffix.lower() == ".png":
            values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
            if values is None:
                raise ValueError("it is no PNG")
        else:
            loaded = np.load(path, allow_pickle=False)
            values = loaded if isinstance(loaded, np.ndarray) else _only_array(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, cv2.error) as error:
        raise PneumoError(f"{path} cannot be read as a probability map: {error}. Write it again.") from error
    if values.ndim > 2:  # axes of one channel or of a batch of one
        values = values.reshape([side for side in values.shape if side != 1] or [1, 1])
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not 1 <= len(values) <= rle.MASK_SIZE:
        raise PneumoError(
            f"{path} has the shape {values.shape}; a map is square, at most {rle.MASK_SIZE} pixels a side, with one "
            "channel. "
            "Write it again in that form."
        )
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        raise PneumoError(
            f"{path} holds {values.dtype}. A map is uint8 (255 is 1), or floats from 0 to 1. "
            "Write it again as one of these."
        )
    values = values.astype(np.float32)
    if not ((values >= 0) & (values <= 1)).all():  # also where one is not a number
        raise PneumoError(f"{path} has values that are not from 0 to 1. If they are logits, apply a sigmoid first.")
    return quantise(values)


def _only_array(loaded: Any) -> np.ndarray:
    with loaded:
        if len(loaded.files) != 1:
            raise ValueError(f"it holds {len(loaded.files)} arrays instead of one")
        return np.asarray(loaded[loaded.files[0]])


def fit_team_maps(
    maps: TeamMaps, truth: Path, components: bool = True, progress: Progress | None = None
) -> PostprocessingSearch:
    """Fit the postprocessing on some maps and their true masks.

    Args:
        maps: of validation images.
        truth: prepared folder, its ``truth.csv``, or a SIIM label csv.
        components: whether sizes of connected components are tried too, which takes several times as long; our own
            trainings do without them between epochs.
        progress: called with maps done and in all.

    Raises:
        PneumoError: an image has no true mask, or is a test image.
    """
    file = truth / TRUTH if truth.is_dir() else truth
    labels = read_labels(file)
    refuse_rejected(file, labels.rejected)
    _check_images(maps, labels, file)
    sizes = COMPONENTS if components else (0,)
    rows = []
    for image_id, quantised in maps.read(progress):
        runs = labels.images[image_id].runs
        pixels = np.flatnonzero(rle.draw(runs)) if rle.area(runs) else np.empty(0)
        rows.append(count_pixels(quantised, pixels.astype(np.int32), sizes))
    return fit_postprocessing(stack_counts(rows, sizes), maps.image_probability, GATE_SOURCE)


def _check_images(maps: TeamMaps, labels: Labels, file: Path) -> None:
    if unknown := [image_id for image_id in maps.files if image_id not in labels.images]:
        raise PneumoError(
            f"{file} has no label of {len(unknown):,} maps in {maps.folder}: {listed(unknown)}. "
            "Add the labels, or remove these maps."
        )
    if "subset" in labels.rows.columns:
        test = set(labels.rows.loc[labels.rows["subset"] == "test", "image_id"]) & set(maps.files)
        if test:
            raise PneumoError(
                f"{maps.folder} has maps of {len(test):,} test images ({listed(sorted(test))}). The postprocessing is "
                "fitted on validation images only. "
                "Take these maps out."
            )


def masks_of(maps: TeamMaps, parameters: PostprocessingParameters, progress: Progress | None = None) -> pd.DataFrame:
    """``image_id, probability, encoded_pixels`` of some maps; see :func:`postprocess_map`.

    Raises:
        PneumoError: the parameters have a gate, but the maps have no image-level probability.
    """
    if parameters.gate > 0 and maps.image_probability is None:
        raise PneumoError(
            f"The postprocessing has a gate on an image-level probability, but {maps.folder}.csv, which would hold it, "
            "does not exist. "
            "Write it, or name postprocessing without a gate."
        )
    image = np.ones(len(maps.files)) if maps.image_probability is None else maps.image_probability
    return pd.DataFrame(
        {"image_id": image_id, **postprocess_map(quantised, parameters, float(probability))}
        for (image_id, quantised), probability in zip(maps.read(progress), image, strict=True)
    )


@dataclass(frozen=True)
class TeamMasks:
    """What :func:`make_masks` did."""

    parameters: PostprocessingParameters
    search: PostprocessingSearch | None
    """None where the parameters were given."""


def make_masks(
    folder: Path,
    out: Path,
    truth: Path | None = None,
    parameters: Path | None = None,
    components: bool = True,
    team: str | None = None,
    progress: Progress | None = None,
) -> TeamMasks:
    """Fit the postprocessing on the validation maps and write the masks of the test maps as a submission.

    Args:
        folder: the maps, as this module's docstring has it.
        out: the submission's folder. Without test maps it gets ``postprocess.json`` alone.
        truth: of the validation images; see :func:`fit_team_maps`.
        parameters: a ``postprocess.json`` to apply in place of fitting one.
        components: see :func:`fit_team_maps`.
        team: the team's name, where ``submission.json`` is not among the maps.
        progress: called with maps done and in all, for each pass over a subset anew.

    Raises:
        PneumoError: as :func:`find_maps`, :func:`fit_team_maps` and :func:`masks_of`; or ``out`` holds other files.
    """
    validation = find_maps(folder / "validation") if parameters is None or (folder / "validation").is_dir() else None
    test = find_maps(folder / "test") if (folder / "test").is_dir() else None
    if test is None and parameters is not None:
        raise PneumoError(
            f"{folder} has no folder test, so there is nothing to apply {parameters} to. "
            "Put the maps of the test images there."
        )
    info = _read_info(folder, team) if test is not None else None
    require_writable(require_replaceable(out) if test is not None else out)
    search = None
    if parameters is not None:
        fitted = read_postprocessing(parameters)
    else:
        if truth is None or validation is None:
            raise PneumoError("The postprocessing is fitted on true masks. Name them with --truth.")
        search = fit_team_maps(validation, truth, components, progress)
        fitted = search.parameters
    if test is not None and info is not None:
        complete = info.model_copy(update={"task": "joint", "threshold": fitted.threshold})
        synthetic = info.synthetic

        def write_more(new: Path) -> None:
            if search is not None:
                write_postprocessing(new, search)
                draw_search(search, new / FIGURE, synthetic)

        predictions = masks_of(test, fitted, progress)
        on_validation = masks_of(validation, fitted, progress) if validation is not None else None
        write_submission(out, complete, predictions, on_validation, write_more)
    elif search is not None:
        write_postprocessing(out, search)
    return TeamMasks(fitted, search)


def _read_info(folder: Path, team: str | None) -> SubmissionInfo:
    """What the team declares: its ``submission.json`` among the maps, or else its name alone."""
    path = folder / INFO_FILE
    if not path.is_file():
        return SubmissionInfo(team=team or folder.resolve().name, task="joint")
    try:
        content = json.loads(read_text(path))
        named = {"team": team} if team else {}
        return SubmissionInfo.model_validate({"task": "joint", **content, **named})
    except (ValueError, TypeError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise PneumoError(f"{path} cannot be used: {reason}. Mend the file, or remove it.") from None
