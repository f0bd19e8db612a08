"""Where a run looks, on the positives of a prepared folder: heat maps, pictures, and the check of what they are worth.

In: a finished run and the prepared folder it was trained on. Out: a folder ``explain`` with the pictures, the maps and
the tables that :mod:`keras_pneumo.evaluation.where` puts on the report's page. Method and stage are chosen on
validation positives, then applied unchanged; which maps point at anything differs from network to network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.devices import FILE as DEVICES
from keras_pneumo.data.devices import TUBE, Devices, kinds_of, read_devices
from keras_pneumo.data.files import write_json, write_table
from keras_pneumo.data.prepared import Prepared, verify_files
from keras_pneumo.evaluation.saliency import agreement, coverage_at, score_map, summary
from keras_pneumo.evaluation.shortcuts import answers_by_tube, border, region_shares, shares_table
from keras_pneumo.evaluation.statistics import RESAMPLES
from keras_pneumo.evaluation.where import (
    ANSWERS,
    CHECK,
    CHOICE,
    IMAGES,
    PICTURES,
    RECORD,
    SANITY,
    SHORTCUTS,
)
from keras_pneumo.prediction.choice import choose
from keras_pneumo.prediction.ensemble import check_together, predict_classifiers
from keras_pneumo.prediction.gradcam import heat_maps, raw_maps, shown
from keras_pneumo.prediction.map_files import MAPS, compared_maps, write_maps
from keras_pneumo.prediction.overlays import caption, overlay, write_overlay
from keras_pneumo.prediction.positives import (
    image_probabilities,
    masks_of,
    operating_threshold,
    patients_of,
    picture_size,
    pixels_of,
    positives_of,
    truth_of,
)
from keras_pneumo.prediction.predict import Progress
from keras_pneumo.prediction.rivals import CENTRE, HEAT, USUAL, check_segmenter, each_heat, rivals
from keras_pneumo.prediction.run import Run, load_model
from keras_pneumo.prediction.sanity import cascade, uninformative

FORMAT = 1

SANITY_IMAGES = 8
"""Positives on which the maps of random weights are tried."""

NO_SHARES = (float("nan"), float("nan"))
"""Of a region that is not on an image."""


@dataclass(frozen=True)
class Asked:
    """What is to be explained, and how; None for what validation is to choose."""

    subset: str = "test"
    method: str | None = None
    stage: int | None = None
    segmenter: Run | None = None
    """Whose maps are scored beside the heat."""
    compare: Path | None = None
    """Maps of the same positives by the PyTorch twin, as ``experiments/torch_team/gradcam.py`` writes them."""
    devices: Path | None = None
    """Table of tubes and markers, where the prepared folder holds none."""


def explain_prepared(
    run: Run,
    prepared: Prepared,
    folder: Path,
    wanted: Asked | None = None,
    probability: pd.Series | None = None,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
) -> None:
    """Explain the positives of one subset and check the maps; the folder is overwritten file by file.

    Args:
        run: a finished run.
        prepared: the folder it was trained on, or another with the same split.
        folder: where to write.
        wanted: what, and how; by default the test positives, as validation chooses.
        probability: the run's answers to the subset by image id, where they are known already.
        resamples: of the patients, for the intervals.
        progress: called with positives done and in all.

    Raises:
        PneumoError: the folder was split otherwise, has no positives there, or lacks the run's image size; maps to
            compare with are of other images or another method.
    """
    wanted = wanted or Asked()
    check_together([run], prepared)
    if wanted.segmenter is not None:
        check_segmenter(wanted.segmenter, prepared)
    devices = _devices(prepared, wanted)
    size, seed, threshold = run.experiment.image_size, run.experiment.seed, operating_threshold(run)
    positives = positives_of(run, prepared, wanted.subset)
    verify_files(prepared, size, positives)
    model = load_model(run)
    choice = choose(model, run, prepared, wanted.method, wanted.stage)
    method, stage = str(choice["method"].iloc[0]), int(choice["stage"].iloc[0])
    images = pixels_of(prepared, positives, size)
    raw = raw_maps(model, images, method, stage)
    if probability is None:
        probability = _answers(run, prepared, wanted.subset, positives, raw.logits)

    masks, patients = masks_of(prepared, positives, size), patients_of(prepared, positives)
    other = compared_maps(wanted.compare, positives, method, stage, raw.maps.shape[1:]) if wanted.compare else None
    maps = {HEAT: each_heat(raw.maps, size), **rivals(run, prepared, positives, other, wanted.segmenter)}
    regions = _regions(devices, positives, size)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in maps}
    shares: dict[str, list[tuple[float, float]]] = {name: [] for name in regions}
    for number, heats in enumerate(zip(*maps.values(), strict=True)):
        for name, heat in zip(maps, heats, strict=True):
            scores[name].append(score_map(heat, masks[number]))
        for name, places in regions.items():
            place = places[number]
            shares[name].append(NO_SHARES if place is None else region_shares(heats[0], masks[number], place))
        said = float(probability.get(positives[number], float("nan")))
        word = "" if threshold is None else "found" if said >= threshold else "missed"
        _draw(prepared, positives[number], heats[0], caption(said, method, stage, word), folder)
        if progress:
            progress(number + 1, len(positives))

    tables = {name: pd.DataFrame(rows) for name, rows in scores.items()}
    area = masks.mean(axis=(1, 2))
    write_table(folder / CHECK, summary(tables, area, patients, resamples, seed))
    write_table(folder / IMAGES, _per_image(positives, probability, threshold, area, tables))
    write_table(folder / SHORTCUTS, shares_table(shares, patients, resamples, seed))
    write_table(folder / CHOICE, choice)
    write_maps(folder / MAPS, positives, raw, method, stage)
    by_tube = None
    if devices is not None and threshold is not None:
        by_tube = _by_tube(prepared, probability, threshold, devices, resamples, seed)
    _keep(folder / ANSWERS, by_tube)
    hot = np.flatnonzero(raw.maps.max(axis=(1, 2)) > 0)
    tried = np.random.default_rng(seed).permutation(hot)[:SANITY_IMAGES]
    sanity = None
    if len(tried):
        sanity = cascade(model, images[tried], lambda network, some: heat_maps(network, some, method, stage), seed)
    _keep(folder / SANITY, sanity)
    twin = None
    if other is not None:
        twin = agreement(shown(raw.maps, size), shown(other.maps, size))
        twin["logit_difference"] = float(np.abs(raw.logits - other.logits).max())
    record = {
        "format": FORMAT,
        "run": run.experiment.name,
        "task": run.experiment.task,
        "subset": wanted.subset,
        "split_sha256": prepared.manifest["split_sha256"],
        "method": method,
        "stage": stage,
        "grid": list(raw.maps.shape[1:]),
        "image_size": size,
        "chosen_on_validation": len(choice) > 1,
        "positives": len(positives),
        "without_heat": len(positives) - len(hot),
        "patients": len(np.unique(patients)),
        "resamples": resamples,
        "uninformative": sanity is None or uninformative(sanity),
        "sanity_images": len(tried),
        "segmenter": wanted.segmenter.experiment.name if wanted.segmenter else None,
        "twin": twin,
        "devices": devices is not None,
    }
    write_json(folder / RECORD, record)


def _draw(prepared: Prepared, image_id: str, heat: np.ndarray, words: str, folder: Path) -> None:
    """Write one positive's picture."""
    radiograph = pixels_of(prepared, [image_id], picture_size(prepared), as_uint8=True)[0, ..., 0]
    picture = overlay(radiograph, heat, words, truth_of(prepared, [image_id])[0])
    write_overlay(folder / PICTURES / f"{image_id}.png", picture)


def _keep(path: Path, table: pd.DataFrame | None) -> None:
    """Write a table, or remove an earlier one where there is none now."""
    if table is None:
        path.unlink(missing_ok=True)
    else:
        write_table(path, table)


def _answers(run: Run, prepared: Prepared, subset: str, image_ids: Sequence[str], logits: np.ndarray) -> pd.Series:
    """The run's probabilities by image id: a classifier's of the whole subset, a segmenter's of the positives."""
    if run.experiment.task == "classifier":
        return predict_classifiers([run], prepared, subset).set_index("image_id")["probability"]
    return pd.Series(image_probabilities(run, logits), index=list(image_ids))


def _devices(prepared: Prepared, wanted: Asked) -> Devices | None:
    """Where tubes and markers lie, by the table that was named, else by the prepared folder's; None without any."""
    own = prepared.folder / DEVICES
    path = wanted.devices or (own if own.is_file() else None)
    return read_devices(path) if path else None


def _regions(devices: Devices | None, image_ids: Sequence[str], size: int) -> dict[str, list[np.ndarray | None]]:
    """Regions that should be cold, by name: how much of each pixel of each image belongs to it, None where there is no
    such thing on the image."""
    found: dict[str, list[np.ndarray | None]] = {"border": [border(size).astype(np.float32)] * len(image_ids)}
    for kind in kinds_of(devices or {}):
        places = [(devices or {}).get(image_id, {}).get(kind) for image_id in image_ids]
        found[kind] = [None if place is None else coverage_at(place, size) for place in places]
    return found


def _by_tube(
    prepared: Prepared, probability: pd.Series, threshold: float, devices: Devices, resamples: int, seed: int
) -> pd.DataFrame:
    image_ids = [str(image_id) for image_id in probability.index]
    positive = prepared.cases.set_index("image_id")["pneumothorax"].astype(int).loc[image_ids].to_numpy() == 1
    tube = np.array([TUBE in devices.get(image_id, {}) for image_id in image_ids])
    decision = probability.to_numpy(float) >= threshold
    return answers_by_tube(positive, decision, tube, patients_of(prepared, image_ids), resamples, seed)


def _per_image(
    image_ids: Sequence[str],
    probability: pd.Series,
    threshold: float | None,
    area: np.ndarray,
    tables: dict[str, pd.DataFrame],
) -> pd.DataFrame:
    said = probability.reindex(list(image_ids)).to_numpy(float)
    columns: dict[str, object] = {"image_id": list(image_ids), "probability": np.round(said, 6)}
    if threshold is not None:
        columns["found"] = (said >= threshold).astype(int)
    columns["area"] = area
    for name, table in tables.items():
        if name in (CENTRE, USUAL):
            continue
        columns |= {f"{score} ({name})": table[score].to_numpy() for score in table}
    return pd.DataFrame(columns)
