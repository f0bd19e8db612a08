"""Labels that are not a table: masks drawn as pictures, COCO json, DICOM Segmentations, and folders named by the label.

In come the files of a data folder, or one file or folder of masks; out come :class:`~.cases.Labels`, with every mask
brought to the canonical 1024x1024 frame by :func:`~keras_pneumo.data.radiographs.geometry.resize_mask`. An image
without a mask is not taken for a negative unless the user says so (``--blank negative``); a black mask, an image that a
COCO file lists without an outline, and a file in ``negative/`` are negatives.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import Box, Label, Labels, Rejected, canonical_runs
from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.data.labels.tables import FINDING, LabelQuestionError
from keras_pneumo.data.radiographs.radiograph import MAX_PIXELS
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import counted, image_id_of, listed, one_line, read_text, shown_id
from keras_pneumo.storage.workers import FILE_FAILED, results_in_order

MASK_ENDINGS = (".mask", "_mask", "-mask")
"""How the name of a mask ends, before ``.png``, where it lies beside its image."""

_IMAGE_ENDINGS = (".img", "_img", "-img", "_image", "")
"""How the name of such a mask's image may end (PTX-498: ``NAME.img.png`` and ``NAME.mask.png``)."""

_RASTER = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

_MIDDLE = 128
"""Grey from which a pixel is in a mask of 0 and 255; in one whose values are all below it, all but 0 are."""

POSITIVE_FOLDERS = frozenset({"positive", "pneumothorax", "with_pneumothorax"})
NEGATIVE_FOLDERS = frozenset({"negative", "no_pneumothorax", "without_pneumothorax", "normal"})
"""Names of folders, in lower case, with ``_`` for blanks and ``-``, that say the label of the images in them."""

_CHUNK = 16
"""Masks that a worker takes at a time."""

_MAX_POINTS = 100_000
"""Corners of one polygon; an outline drawn by hand has some hundred."""

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


def drawn_labels(folder: Path, paths: Sequence[Path], options: LabelOptions) -> Labels | None:
    """The labels that lie in a data folder as masks or as the names of folders; None where there are none.

    Masks beside images are looked for first, then DICOM Segmentations, then folders.

    Args:
        folder: the data folder.
        paths: its files that may be radiographs; masks are among them.
        options: what an image without a mask means.
    """
    masks = masks_in_folders(folder, paths) | masks_beside(paths)
    if masks:
        return picture_labels(folder, masks, paths, options)
    segmentations = [path for path in paths if is_segmentation(path)]
    if segmentations:
        return segmentation_labels(folder, segmentations, options)
    return folder_labels(folder, paths)


# -- Masks as pictures -------------------------------------------------------------------------------------------------


def masks_beside(paths: Sequence[Path]) -> dict[Path, Path]:
    """Mask -> its image, for masks that lie beside their images under names that end in ``mask``."""
    present = {path.with_suffix("").as_posix(): path for path in paths}
    found: dict[Path, Path] = {}
    for path in paths:
        stem = path.with_suffix("").as_posix()
        ending = next((text for text in MASK_ENDINGS if stem.lower().endswith(text)), None)
        if ending is None or path.suffix.lower() not in _RASTER:
            continue
        root = stem[: -len(ending)]
        image = next((present[root + text] for text in _IMAGE_ENDINGS if root + text in present), None)
        if image is not None:
            found[path] = image
    return found


def masks_in_folders(folder: Path, paths: Sequence[Path], masks: Path | None = None) -> dict[Path, Path]:
    """Mask -> its image, for masks in ``masks``, or in folders named after masks, with their images' names."""
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(image_id_of(path.name), []).append(path)
    if masks is not None:
        folders = [masks]
    else:
        folders = sorted(
            Path(base) / name for base, names, _ in os.walk(folder) for name in names if "mask" in name.lower()
        )
    found: dict[Path, Path] = {}
    for place in folders:
        if (place.parent / "manifest.json").exists():  # of a prepared folder
            continue
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() not in _RASTER or not path.is_file():
                continue
            stem = image_id_of(path.name)
            ending = next((text for text in MASK_ENDINGS if stem.lower().endswith(text)), "")
            images = by_name.get(stem) or by_name.get(stem[: len(stem) - len(ending)], [])
            if len(images) == 1:
                found[path] = images[0]
    return found


def picture_labels(folder: Path, masks: Mapping[Path, Path], paths: Sequence[Path], options: LabelOptions) -> Labels:
    """Labels from masks drawn as pictures; several masks of one image are united."""
    drawn = results_in_order(_mask_or_reason, masks, chunk=_CHUNK)
    parts: dict[str, list[_Drawn]] = {}
    rejected: list[Rejected] = []
    for (path, image), mask in zip(masks.items(), drawn, strict=True):
        image_id = image_id_of(image.name)
        if mask is None or isinstance(mask, str):
            why = f"the mask {mask}" if mask else f"the mask: {FILE_FAILED}"
            rejected.append(Rejected(_relative(path, folder), 1, f"image {image_id}: {why}", image_id))
        else:
            parts.setdefault(image_id, []).append(mask)
    bad = {item.image_id for item in rejected}
    images = {
        name: _label(masks_of, number)
        for number, (name, masks_of) in enumerate(parts.items(), start=1)
        if name not in bad
    }
    without = sorted({image_id_of(path.name) for path in paths if path not in masks} - set(parts) - bad)
    return _with_blank(
        Labels(folder, _no_rows(), images, rejected, "masks as pictures", files=tuple(masks)), without, options
    )


def read_mask(path: Path) -> np.ndarray:
    """A mask drawn as a picture: uint8 (H, W), 0 or 1. Colours count by their brightness, transparency does not.

    Raises:
        OSError, ValueError: the file is no picture.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as picture:
            if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
                pixels = np.asarray(picture) > 0
                return pixels.astype(np.uint8)
            opaque = picture.convert("RGB") if picture.mode in ("RGBA", "P", "LA", "PA") else picture
            grey = np.asarray(opaque.convert("L"))
    return (grey >= (_MIDDLE if grey.size and grey.max() >= _MIDDLE else 1)).astype(np.uint8)


def _mask_or_reason(path: Path) -> _Drawn | str:
    try:
        return _drawn(read_mask(path))
    except (OSError, ValueError, SyntaxError) as error:
        return f"cannot be read: {one_line(str(error), 80)}"


class _Drawn(NamedTuple):
    """A mask in the canonical frame, and the grid on which it was drawn."""

    runs: rle.Runs
    shape: tuple[int, int]
    """Rows and columns."""


def _drawn(mask: np.ndarray) -> _Drawn:
    return _Drawn(canonical_runs(mask), (mask.shape[0], mask.shape[1]))


# -- COCO --------------------------------------------------------------------------------------------------------------


def coco_labels(path: Path) -> Labels:
    """Labels from a COCO json: polygons or runs of the category whose name holds "pneumothorax"; boxes stay boxes.

    An image that it lists without such an annotation is a negative.

    Raises:
        PneumoError: it is no COCO file, or has no such category.
    """
    content = _coco_content(path)
    names = {category.get("id"): str(category.get("name", "")) for category in content["categories"]}
    wanted = {number for number, name in names.items() if FINDING in name.casefold()}
    if not wanted:
        has = listed((repr(one_line(name, 40)) for name in names.values()), 12) or "none"
        raise PneumoError(
            f"{path} has no category called pneumothorax; its categories are {has}. Rename the one meant."
        )
    shapes: dict[Any, list[dict[str, Any]]] = {}
    for item in content["annotations"]:
        if isinstance(item, dict) and item.get("category_id") in wanted:
            shapes.setdefault(item.get("image_id"), []).append(item)
    images: dict[str, Label] = {}
    rejected: list[Rejected] = []
    listed_ids = {item.get("id") for item in content["images"]}
    lost = sum(len(items) for key, items in shapes.items() if key not in listed_ids)
    if lost:
        reason = f"{counted(lost, 'annotation')} of a pneumothorax for images that the file does not list"
        rejected.append(Rejected(path.name, None, reason))
    outlined = 0
    file_names = [str(item.get("file_name", "")).replace("\\", "/").rpartition("/")[2] for item in content["images"]]
    image_ids = [image_id_of(name) for name in file_names]
    times = Counter(image_ids)
    for number, (image, image_id) in enumerate(zip(content["images"], image_ids, strict=True), start=1):
        if not image_id or times[image_id] > 1:
            reason = "an image has no file name"
            if image_id:
                reason = f"image {shown_id(image_id)}: the file lists it {times[image_id]} times"
            rejected.append(Rejected(path.name, number, reason, image_id))
            continue
        try:
            rows, columns = int(image["height"]), int(image["width"])
            drawn = [
                _coco_runs(item["segmentation"], rows, columns)
                for item in shapes.get(image.get("id"), [])
                if item.get("segmentation")
            ]
            boxes = tuple(
                _coco_box(item["bbox"])
                for item in shapes.get(image.get("id"), [])
                if not item.get("segmentation") and item.get("bbox")
            )
            mask = coco.decode(coco.merge(drawn)) if drawn else None
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            reason = (
                f"image {shown_id(image_id)}: its annotation cannot be read ({type(error).__name__} "
                f"{one_line(str(error), 80)})"
            )
            rejected.append(Rejected(path.name, number, reason, image_id))
            continue
        runs = rle.unite([]) if mask is None else canonical_runs(mask)
        outlined += bool(drawn)
        shapes_of = ((rows, columns),) if drawn else ()
        images[image_id] = Label(runs, (number,), bool(drawn or boxes), boxes, mask_shapes=shapes_of)
    return Labels(path, _no_rows(), images, rejected, "COCO", has_masks=outlined > 0)


def is_coco(path: Path) -> bool:
    """Whether a json file looks like COCO's: by a key in its first megabyte, so that large ones are not parsed."""
    try:
        with path.open("rb") as stream:
            start = stream.read(2**20)
        return b'"annotations"' in start or (b'"images"' in start and b'"file_name"' in start)
    except OSError:
        return False


def _coco_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise PneumoError(f"{path} is not JSON: {one_line(str(error), 80)}. Export it again.") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise PneumoError(f"{path} is no COCO file: it needs the lists images, annotations and categories.")
    if not all(isinstance(item, dict) for key in keys for item in content[key]):
        raise PneumoError(
            f"{path} is no COCO file: images, annotations and categories are lists of objects. Export it again."
        )
    numbers = [item.get(name) for key in keys for item in content[key] for name in ("id", "image_id", "category_id")]
    if not all(number is None or isinstance(number, int | str) for number in numbers):
        raise PneumoError(f"{path} is no COCO file: ids are numbers or texts. Export it again.")
    return content


def _coco_runs(shape: Any, rows: int, columns: int) -> rle.Runs:
    """Compressed runs of one annotation: polygons, uncompressed or compressed counts.

    All is checked here, since pycocotools is C code that trusts it: absurd numbers end the process, or take all memory.

    Raises:
        TypeError, ValueError, KeyError: it is none, or does not fit an image of these rows and columns.
    """
    if min(rows, columns) < 1 or rows * columns > MAX_PIXELS:
        raise ValueError(f"its image has {rows:.3g} rows and {columns:.3g} columns")
    if isinstance(shape, list):
        for polygon in shape:
            _check_polygon(polygon, rows, columns)
        return coco.merge(coco.frPyObjects(shape, rows, columns))
    if list(shape["size"]) != [rows, columns]:
        raise ValueError("its size is not its image's")
    counts = shape["counts"]
    if not isinstance(counts, list):
        counts = rle.counts_of_runs({"size": [rows, columns], "counts": str(counts)})
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != rows * columns:
        raise ValueError("its counts are not those of a mask of its size")
    return rle.runs_of_counts(counts, rows, columns)


def _coco_box(box: Any) -> Box:
    if not isinstance(box, list) or not all(type(side) in (int, float) and math.isfinite(side) for side in box):
        raise ValueError("a box is a list of four numbers")
    return Box(*map(float, box))


def _check_polygon(polygon: Any, rows: int, columns: int) -> None:
    """Refuse what is no list of x and y in turn, of at least three corners on the image or about it."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or len(polygon) > 2 * _MAX_POINTS:
        raise ValueError("a polygon is a list of at least three corners")
    for number in polygon:
        if type(number) not in (int, float) or not math.isfinite(number) or abs(number) > 2 * max(rows, columns):
            raise ValueError("a corner of a polygon is far outside of its image, or no number")


# -- DICOM Segmentation ------------------------------------------------------------------------------------------------


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM Segmentation, by the SOP class in its first kilobyte."""
    if path.suffix.lower() in _RASTER:
        return False
    try:
        with path.open("rb") as stream:
            start = stream.read(1024)
    except OSError:
        return False
    return start[128:132] == b"DICM" and any(
        SEGMENTATION_STORAGE.encode() + end in start for end in (b"\0", b"\x02", b"\x08")
    )


def segmentation_labels(folder: Path, files: Sequence[Path], options: LabelOptions) -> Labels:
    """Labels from DICOM Segmentations of any grid: frames of segments called pneumothorax, by the image they refer to.

    Images that none refers to have no label, unless ``--blank negative`` says that they are negatives: those are added
    when the images are known, see :func:`with_missing`.
    """
    parts: dict[str, list[_Drawn]] = {}
    rejected: list[Rejected] = []
    listed_files = list(files)
    for path, found in zip(listed_files, results_in_order(_segments_or_reason, listed_files), strict=True):
        if found is None or isinstance(found, str):
            reason = f"the segmentation cannot be read: {found or FILE_FAILED}"
            rejected.append(Rejected(_relative(path, folder), None, reason))
            continue
        for image_id, mask in found:
            parts.setdefault(image_id, []).append(mask)
    images = {name: _label(masks, number) for number, (name, masks) in enumerate(parts.items(), start=1)}
    return Labels(folder, _no_rows(), images, rejected, "DICOM Segmentation", files=tuple(files))


def _segments_or_reason(path: Path) -> list[tuple[str, _Drawn]] | str:
    try:
        return _segments(path)
    except ValueError as error:  # with a message of ours, or of pydicom's about lengths
        return one_line(re.sub(r"b?'[^']*\^[^']*'", "...", str(error)), 100)
    except (AttributeError, KeyError, TypeError, IndexError, OSError, NotImplementedError) as error:
        return f"it is damaged or lacks a part ({type(error).__name__})"


def _segments(path: Path) -> list[tuple[str, _Drawn]]:
    """Image id and mask of each frame of a segment that is called pneumothorax."""
    import pydicom

    dataset = pydicom.dcmread(path)
    segments = {
        int(item.SegmentNumber): f"{item.get('SegmentLabel', '')} {_meaning(item)}" for item in dataset.SegmentSequence
    }
    wanted = {number for number, name in segments.items() if FINDING in name.casefold()}
    if not wanted:
        names = listed(repr(one_line(name.strip(), 40)) for name in segments.values())
        raise ValueError(f"its segments are {names}; none is called pneumothorax")
    frames = dataset.pixel_array
    frames = frames[None] if frames.ndim == 2 else frames
    half = int(dataset.get("MaximumFractionalValue", 1)) / 2
    found = []
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        identification = _group(groups, dataset, "SegmentIdentificationSequence")
        if int(identification.ReferencedSegmentNumber) in wanted:
            found.append((_source_of(groups, dataset), _drawn((frame >= max(half, 1e-9)).astype(np.uint8))))
    return found


def _group(groups: Any, dataset: Any, name: str) -> Any:
    """An item of a frame's functional groups, or of those that all frames share."""
    if name in groups:
        return groups[name][0]
    return dataset.SharedFunctionalGroupsSequence[0][name][0]


def _meaning(segment: Any) -> str:
    codes = segment.get("SegmentedPropertyTypeCodeSequence") or []
    return " ".join(str(code.get("CodeMeaning", "")) for code in codes)


def _source_of(groups: Any, dataset: Any) -> str:
    """SOPInstanceUID of the image that a frame refers to; of a series with one image, that one."""
    for derivation in groups.get("DerivationImageSequence") or []:
        for source in derivation.get("SourceImageSequence") or []:
            return image_id_of(str(source.ReferencedSOPInstanceUID))
    series = dataset.get("ReferencedSeriesSequence") or []
    instances = [item for one in series for item in one.get("ReferencedInstanceSequence") or []]
    if len(instances) != 1:
        raise ValueError(f"it refers to {counted(len(instances), 'image')}, and its frames do not say to which")
    return image_id_of(str(instances[0].ReferencedSOPInstanceUID))


# -- Folders -----------------------------------------------------------------------------------------------------------


def folder_labels(folder: Path, paths: Sequence[Path]) -> Labels | None:
    """Labels from the names of the folders that images lie in; None unless some are positive and some negative.

    Names of files that are not unique get their folder's in front.
    """
    labelled: dict[Path, bool] = {}
    for path in paths:
        for part in reversed(path.relative_to(folder).parts[:-1]):
            name = part.casefold().replace(" ", "_").replace("-", "_")
            if name in POSITIVE_FOLDERS | NEGATIVE_FOLDERS:
                labelled[path] = name in POSITIVE_FOLDERS
                break
    if len(set(labelled.values())) < 2:
        return None
    depth = max(len(path.relative_to(folder).parts) for path in labelled)
    parts = 1 if _unique(labelled, 1) else next((n for n in range(2, depth + 1) if _unique(labelled, n)), depth)
    nothing = rle.unite([])
    images = {
        "-".join((*path.parts[-parts:-1], image_id_of(path.name))): Label(nothing, (number,), positive)
        for number, (path, positive) in enumerate(labelled.items(), start=1)
    }
    return Labels(folder, _no_rows(), images, [], "folders positive and negative", has_masks=False, parts=parts)


def _unique(paths: Collection[Path], parts: int) -> bool:
    return len({(*path.parts[-parts:-1], image_id_of(path.name)) for path in paths}) == len(paths)


# -- What is not drawn -------------------------------------------------------------------------------------------------


def with_missing(labels: Labels, image_ids: Collection[str], options: LabelOptions) -> Labels:
    """The labels, with what the user says of images that have no mask.

    Raises:
        LabelQuestionError: there are such images, and nothing was said.
    """
    known = {*labels.images, *labels.rejected_rows, *labels.left_out}
    return _with_blank(labels, sorted(set(image_ids) - known), options)


def _with_blank(labels: Labels, without: Sequence[str], options: LabelOptions) -> Labels:
    if not without:
        return labels
    if options.blank is None:
        raise LabelQuestionError(
            f"{labels.path}: {counted(len(without), 'image')} of {len(without) + len(labels.images)} "
            f"{'has' if len(without) == 1 else 'have'} no mask ({listed(without, 3)}), and nothing says whether that "
            "means no pneumothorax. Say it with --blank negative, or leave these images out with --blank ignore "
            "(keras-pneumo prepare, kp.prepare)."
        )
    record = labels.record | {"blank": options.blank, "without_mask": len(without)}
    if options.blank == "negative":
        empty = Label(rle.unite([]), (), False)
        return replace(labels, images=labels.images | dict.fromkeys(without, empty), record=record)
    return replace(labels, left_out=labels.left_out | dict.fromkeys(without, "it has no mask"), record=record)


def _label(parts: Sequence[_Drawn], number: int) -> Label:
    runs = rle.unite_runs([part.runs for part in parts])
    shapes = tuple(sorted({part.shape for part in parts}))
    return Label(runs, (number,), rle.area(runs) > 0, mask_shapes=shapes)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _no_rows() -> Any:
    import pandas as pd

    return pd.DataFrame()
