"""From a folder of radiographs, as they come, to answers: no labels, no prepared folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.prepared.rendering import resize_image
from keras_pneumo.data.radiographs.radiograph import Radiograph, UnreadableImage
from keras_pneumo.data.radiographs.reading import find_images, iter_images
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.ensemble import check_together
from keras_pneumo.inference.maps import enlarge, quantise
from keras_pneumo.inference.postprocess import PostprocessingParameters
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor, Progress, probabilities_of
from keras_pneumo.inference.run import RunFolder
from keras_pneumo.inference.segment import OWN_HEAD, Members, answer, gate_name, mean_maps, open_members
from keras_pneumo.storage.tables import printable

Answers = list[dict[str, object]]
Answering = Callable[[Sequence[np.ndarray]], Answers]
"""From square uint8 radiographs of any size to one row of answers each."""


def predict_files(
    runs: Sequence[RunFolder],
    data: Path,
    progress: Progress | None = None,
    rule: PostprocessingParameters | None = None,
    gate: Sequence[RunFolder] = (),
    sharing: DistributedPredictor = SINGLE_DEVICE,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict every radiograph under a folder, through the same decoding and resizing as prepared images.

    Images are read and predicted a batch at a time, so memory does not grow with the folder.

    Args:
        runs: finished runs of one task, which answer as one.
        data: folder of DICOM, PNG or JPEG files; no labels are needed.
        progress: called with files done and in all.
        rule: how segmenters' maps become masks.
        gate: classifiers that the rule's gate asks, where it is not the segmenters' own head.
        sharing: where the networks predict.

    Returns:
        ``image_id, file, probability`` (and ``encoded_pixels``, on the grid of 1024x1024, of segmenters) of those that
        could be read, and ``file, reason`` of those that could not; files are named relative to ``data``.

    Raises:
        PneumoError: there is no radiograph under ``data``, or not one that can be read; the runs cannot stand together;
            a rule or a gate is wanting.
    """
    check_together(runs)
    paths, _ = find_images(data)
    if not paths:
        raise PneumoError(f"{data} holds no DICOM, PNG or JPEG file. Name the folder that holds the radiographs.")
    if runs[0].experiment.task == "segmenter":
        if rule is None:
            raise PneumoError("Masks need a rule: name the postprocess.json that predicting a prepared folder wrote.")
        answer_batch = _segmenter(runs, rule, gate, sharing)
    else:
        answer_batch = classifier_answers(runs, sharing)
    size = max(run.experiment.image_size for run in [*runs, *gate])
    rows: list[dict[str, object]] = []
    refused: list[dict[str, object]] = []
    reader = iter_images(paths)
    done = 0
    while batch := list(itertools.islice(reader, min(run.experiment.global_batch_size for run in runs))):
        images, names = [], []
        for path, found in batch:
            file = printable(path.relative_to(data).as_posix())
            reason = str(found) if isinstance(found, UnreadableImage) else unfit(found, size)
            if reason or isinstance(found, UnreadableImage):
                refused.append({"file": file, "reason": reason})
                continue
            images.append(found.image)
            names.append({"image_id": found.image_id, "file": file})
        if images:
            rows += [name | found for name, found in zip(names, answer_batch(images), strict=True)]
        done += len(batch)
        if progress:
            progress(done, len(paths))
    if not rows:
        raise PneumoError(f"None of the {len(paths)} files of {data} can be read; the first: {refused[0]['reason']}")
    return pd.DataFrame(rows), pd.DataFrame(refused, columns=["file", "reason"])


def pixels_at(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Square uint8 radiographs as a batch for a network: float32 (n, size, size, 1) in [0, 1]."""
    return np.stack([resize_image(image, size) for image in images])[..., None].astype(np.float32) / np.float32(255)


def mean_probability(members: Members, images: Sequence[np.ndarray]) -> np.ndarray:
    """Probability of pneumothorax by classifiers, float64 (n,), of square uint8 radiographs.

    Every network weighs the same; mirror images count where the experiment asks for them.
    """
    found = []
    for run, models in members:
        pixels = pixels_at(images, run.experiment.image_size)
        passes = [pixels, pixels[:, :, ::-1]] if run.experiment.flip_averaging else [pixels]
        for model in models:
            logits = [np.asarray(model.predict_on_batch(one))[:, 0] for one in passes]
            found.append(np.mean([probabilities_of(one) for one in logits], axis=0))
    return np.mean(found, axis=0)


def classifier_answers(runs: Sequence[RunFolder], sharing: DistributedPredictor = SINGLE_DEVICE) -> Answering:
    """The runs' networks, opened, as a function from radiographs to ``probability``."""
    members = open_members(runs, sharing)

    def answer_batch(images: Sequence[np.ndarray]) -> Answers:
        return [{"probability": float(probability)} for probability in mean_probability(members, images)]

    return answer_batch


def _segmenter(
    runs: Sequence[RunFolder], rule: PostprocessingParameters, gate: Sequence[RunFolder], sharing: DistributedPredictor
) -> Answering:
    wanted = rule.gate_source if rule.gate > 0 else ""
    given = gate_name(gate) if gate else OWN_HEAD
    if wanted and wanted != given:
        raise PneumoError(
            f"The rule for masks was fitted with the gate {wanted!r}; name those runs with --gate, and no others."
        )
    members = open_members(runs, sharing)
    ask = classifier_answers(gate, sharing) if gate and wanted else None

    def answer_batch(images: Sequence[np.ndarray]) -> Answers:
        maps, head = mean_maps(members, lambda size: pixels_at(images, size))
        if ask is not None:
            image = [float(str(row["probability"])) for row in ask(images)]
        else:
            image = [1.0] * len(images) if head is None else [float(one) for one in head]
        levels = quantise(maps)
        return [answer(enlarge(one), rule, probability) for one, probability in zip(levels, image, strict=True)]

    return answer_batch


def unfit(radiograph: Radiograph, size: int) -> str:
    """Why a radiograph cannot be brought to the network's size, or nothing."""
    height, width = radiograph.image.shape
    if height != width:
        return (
            f"It has {height} rows and {width} columns; the network was trained on square images. Pad it to a square."
        )
    return f"Its side of {height} pixels is shorter than the network's {size}." if height < size else ""
