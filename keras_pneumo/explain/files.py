"""Heat maps of radiographs that need no prepared folder: one map as an array, or a picture of each and a table.

In: a finished run and radiographs. Out: ``overlays/NAME.png``, ``explained.csv`` and, where a file could not be read,
``quarantine.csv``. Method and stage are those of the run's check, which records whether validation selected them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import read_labels
from keras_pneumo.data.prepared.scanning import check_decoders
from keras_pneumo.data.radiographs.geometry import map_on_image, placement_of, shape_fault
from keras_pneumo.data.radiographs.radiograph import UnreadableImage
from keras_pneumo.data.radiographs.reading import FoundFiles, find_files, read_radiograph
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.saliency_report import FOLDER, PICTURES, RECORD
from keras_pneumo.explain.gradcam import BATCH, heat_maps, raw_maps, to_heat
from keras_pneumo.explain.pictures import caption, overlay_heat_map, write_overlay
from keras_pneumo.explain.positives import image_probabilities, operating_threshold
from keras_pneumo.inference.ensemble import mean_probability, open_members
from keras_pneumo.inference.files import Image, Source, grey_pixels, pixels_at, read_batches
from keras_pneumo.inference.run import RunFolder, load_model
from keras_pneumo.storage.files import read_json, replacing_contents, write_table
from keras_pneumo.storage.tables import image_id_of, safe_columns, write_quarantine
from keras_pneumo.storage.workers import Progress

TABLE = "explained.csv"

CONVENTION = ("gradcam", 5)
"""Method and stage of a run that was not checked: Grad-CAM of the last stage, as its authors do."""


@dataclass(frozen=True)
class FilesExplained:
    """What :func:`explain_files` wrote."""

    folder: Path
    method: str
    stage: int
    selected: bool
    """Whether validation selected the method and the stage."""
    explained: int
    set_aside: list[dict[str, object]]
    """``file, reason`` of what was not explained, as quarantine.csv has them."""


def checked_with(run: RunFolder) -> tuple[tuple[str, int], bool] | None:
    """The method and stage that a run was checked with, and whether validation selected them and not a person.

    None where it was not checked.

    Raises:
        PneumoError: the record in its explain folder is damaged.
    """
    path = run.folder / FOLDER / RECORD
    try:
        record = read_json(path)
        return (str(record["method"]), int(record["stage"])), bool(record["chosen_on_validation"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PneumoError(
            f"{path} is damaged ({error}). Run keras-pneumo explain on the prepared folder again."
        ) from error


def heat_map(
    run: RunFolder,
    image: Image,
    method: str | None = None,
    stage: int | None = None,
    model: keras.Model | None = None,
) -> np.ndarray:
    """The heat map of one radiograph: what speaks for a pneumothorax, as a share of the highest.

    Args:
        run: a finished run.
        image: a file, or grey pixels as :func:`keras_pneumo.inference.files.predict_images` takes them.
        method: ``gradcam``, ``gradcam++`` or ``hirescam``; None for that of the run's check, or Grad-CAM without one.
        stage: 1 (fine) to 5 (coarse); None for that of the run's check, or 5 without one.
        model: the run's network where it is loaded already.

    Returns:
        float32 (H, W) with the image's rows and columns, 0 to 1; all 0 where nothing speaks for a pneumothorax.

    Raises:
        PneumoError: the image cannot be read, or there is no such method or stage.
    """
    if isinstance(image, np.ndarray):
        pixels = grey_pixels(image)
    else:
        try:
            pixels = read_radiograph(Path(image)).pixels
        except UnreadableImage as error:
            raise PneumoError(f"{image} cannot be read: {error}. Give another image.") from None
    size = run.experiment.image_size
    if reason := shape_fault(pixels):
        raise PneumoError(f"The image cannot be used: {reason}. Give another image.")
    checked, _ = checked_with(run) or (CONVENTION, False)
    model = load_model(run) if model is None else model
    maps = heat_maps(model, pixels_at([pixels], size), *_named_or(checked, method, stage))
    return np.asarray(map_on_image(maps[0], *pixels.shape), np.float32)


def explain_files(
    run: RunFolder,
    data: Sequence[Path],
    folder: Path,
    method: str | None = None,
    stage: int | None = None,
    labels: Path | None = None,
    progress: Progress | None = None,
    any_view: bool = False,
) -> FilesExplained:
    """Draw the heat map of each radiograph, one batch at a time.

    Args:
        run: a finished run.
        data: files, and folders of them.
        folder: where to write.
        method: None for that of the run's check, or the convention where it was not checked.
        stage: the same.
        labels: a label csv, whose outlines are drawn.
        progress: called with files done and in all.
        any_view: whether files are taken that say that they are no frontal radiographs of the chest.

    Raises:
        PneumoError: there is no radiograph, or none that can be read; a decoder is missing; the labels cannot be read.
    """
    found = find_files(data, folder)
    check_decoders(found.files)
    checked, selected = checked_with(run) or (CONVENTION, False)
    shown = _named_or(checked, method, stage)
    truths = {name: label.runs for name, label in read_labels(labels).images.items()} if labels else {}
    with replacing_contents(folder, (PICTURES, "quarantine.csv", TABLE)) as new:
        rows, refused = _explain_each(run, found, new, shown, truths, any_view, progress)
    return FilesExplained(folder, *shown, selected and shown == checked, len(rows), refused)


def _explain_each(
    run: RunFolder,
    found: FoundFiles,
    folder: Path,
    shown: tuple[str, int],
    truths: Mapping[str, rle.Runs | None],
    any_view: bool,
    progress: Progress | None,
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Write picture and row of each radiograph; the rows, and ``file, reason`` of those that were set aside."""
    size = run.experiment.image_size
    model = load_model(run)
    members = open_members([run]) if run.experiment.task == "classifier" else []
    rows: list[dict[str, object]] = []
    sources: list[Source] = [(name, path) for path, name in found.files]
    refused = found.refused
    everything = len(sources) + len(refused)
    taken: set[str] = set()
    for batch in read_batches(sources, BATCH, refused, any_view, isolated=True):
        if batch:
            images = [image.pixels for image in batch]
            raw = raw_maps(model, pixels_at(images, size), *shown)
            if members:  # as predict does, mirror images and all
                probabilities = mean_probability(members, lambda size, images=images: pixels_at(images, size))  # type: ignore[misc]
            else:
                probabilities = image_probabilities(run, raw.logits)
            for image, heat, probability in zip(batch, to_heat(raw.maps, size), probabilities, strict=True):
                path = folder / PICTURES / _free_name(image_id_of(Path(image.name).name), taken)
                row = _explain_one(run, image.pixels, heat, float(probability), truths.get(image.image_id), shown, path)
                rows.append({"image_id": image.image_id, "file": image.name, **row})
        if progress:
            progress(len(rows) + len(refused), everything)
    if not rows:
        raise PneumoError(
            f"None of the {everything} files can be read; the first: {refused[0]['reason']}. Give other files."
        )
    write_table(folder / TABLE, safe_columns(pd.DataFrame(rows), "image_id", "file"))
    write_quarantine(folder, refused)
    return rows, refused


def _named_or(checked: tuple[str, int], method: str | None, stage: int | None) -> tuple[str, int]:
    """The method and stage that are named, else those of the run's check."""
    return checked[0] if method is None else method, checked[1] if stage is None else stage


def _explain_one(
    run: RunFolder,
    image: np.ndarray,
    heat: np.ndarray,
    probability: float,
    truth: rle.Runs | None,
    shown: tuple[str, int],
    path: Path,
) -> dict[str, object]:
    """Write one picture; the row of the table."""
    threshold = operating_threshold(run)
    side = "" if threshold is None else "above the threshold" if probability >= threshold else "below the threshold"
    write_overlay(
        path, overlay_heat_map(image, heat, caption(probability, *shown, side), truth, synthetic=run.synthetic)
    )
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    place = placement_of(image)
    down, across = ((int(at) + 0.5) * place.side / len(heat) for at in (y, x))
    on_image = {"hottest_x": (across - place.left) / place.columns, "hottest_y": (down - place.top) / place.rows}
    hottest = {} if heat.max() <= 0 else {name: min(max(at, 0.0), 1.0) for name, at in on_image.items()}
    mark = {"trained_on": "phantoms"} if run.synthetic else {}
    return {"probability": round(probability, 6), "picture": f"{PICTURES}/{path.name}", **hottest, **mark}


def _free_name(stem: str, taken: set[str]) -> str:
    """A picture's name that no other file of this call has."""
    stem = stem.lstrip(".-") or "image"  # a name like -rf is an option of other programs
    name, number = f"{stem}.png", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}.png"
    taken.add(name)
    return name
