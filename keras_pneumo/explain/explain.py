"""Where a run looks, on the positives of a prepared folder: heat maps, pictures, and the check of what they are worth.

In: a finished run and the prepared folder it was trained on. Out: a folder ``explain`` with the pictures, the maps and
the tables that ``evaluation.report.saliency_report`` puts on the report's page. Method and stage are chosen on
validation positives, then applied unchanged; which maps point at anything differs from network to network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.prepared.folder import PreparedFolder, verify_files
from keras_pneumo.evaluation.report.saliency_report import (
    ANSWERS,
    CHECK,
    CHOICE,
    IMAGES,
    PICTURES,
    RECORD,
    SANITY,
    SHORTCUTS,
)
from keras_pneumo.evaluation.scoring.saliency import agreement, mask_at, score_map, summarise_maps
from keras_pneumo.evaluation.scoring.shortcuts import shares_table
from keras_pneumo.evaluation.scoring.statistics import RESAMPLES
from keras_pneumo.explain.gradcam import heat_maps
from keras_pneumo.explain.map_files import MAPS, compared_maps, write_maps
from keras_pneumo.explain.method_selection import choose
from keras_pneumo.explain.pictures import caption, overlay_heat_map, write_overlay
from keras_pneumo.explain.positives import (
    image_probabilities,
    maps_of,
    operating_threshold,
    patients_of,
    picture_size,
    pixels_of,
    positives_of,
    truth_of,
)
from keras_pneumo.explain.reference_maps import CENTRE, HEAT, SEGMENTER, USUAL, check_segmenters, each_heat, rivals
from keras_pneumo.explain.sanity import cascade, uninformative
from keras_pneumo.explain.shortcut_regions import by_tube, known_devices, regions_of, shares_in
from keras_pneumo.inference.ensemble import check_together, predict_classifiers
from keras_pneumo.inference.predictor import Progress
from keras_pneumo.inference.run import RunFolder, checkpoints_of, load_model
from keras_pneumo.storage.files import write_json, write_table

FORMAT = 1

SANITY_IMAGES = 8
"""Positives on which the maps of random weights are tried."""


@dataclass(frozen=True)
class Asked:
    """What is to be explained, and how; None for what validation is to choose."""

    subset: str = "test"
    method: str | None = None
    stage: int | None = None
    choice: pd.DataFrame | None = None
    """What :func:`choice.choose` says of the run, where that is known already."""
    segmenters: Sequence[RunFolder] = ()
    """Whose mean maps are scored beside the heat."""
    compare: Path | None = None
    """Maps of the same positives by the PyTorch twin, as ``experiments/torch_team/gradcam.py`` writes them."""
    devices: Path | None = None
    """Table of tubes, leads and writing, where the prepared folder holds none."""


@dataclass(frozen=True)
class Answers:
    """What is said of the subset; the run's own answers, or those of a detector that the run is part of."""

    probability: pd.Series
    """By image id."""
    threshold: float | None
    """From which probability on the answer is yes; None where that is not on this probability."""
    classifiers: tuple[str, ...] = ()
    """Names of the classifiers in the detector, the run's first; none for the run's own answers."""


def explain_prepared(
    run: RunFolder,
    prepared: PreparedFolder,
    folder: Path,
    wanted: Asked | None = None,
    answers: Answers | None = None,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
) -> None:
    """Explain the positives of one subset and check the maps; the folder is overwritten file by file.

    Args:
        run: a finished run.
        prepared: the folder it was trained on, or another with the same split.
        folder: where to write.
        wanted: what, and how; by default the test positives, as validation chooses.
        answers: to the subset, where they are known already or are not the run's own.
        resamples: of the patients, for the intervals.
        progress: called with positives done and in all.

    Raises:
        PneumoError: the folder was split otherwise, has no positives there, or lacks the run's image size; maps to
            compare with are of other images or another method.
    """
    wanted = wanted or Asked()
    check_together([run], prepared)
    check_segmenters(wanted.segmenters, prepared)
    devices = known_devices(prepared, wanted.devices)
    size, seed = run.experiment.image_size, run.experiment.seed
    positives = positives_of(run, prepared, wanted.subset)
    verify_files(prepared, size, positives)
    model = load_model(run)
    choice = wanted.choice
    if choice is None:
        choice = choose(model, run, prepared, wanted.method, wanted.stage)
    method, stage = str(choice["method"].iloc[0]), int(choice["stage"].iloc[0])
    raw = maps_of(model, prepared, positives, size, method, stage)
    answers = answers or _own_answers(run, prepared, wanted.subset, positives, raw.logits)
    probability, threshold = answers.probability, answers.threshold

    other = compared_maps(wanted.compare, positives, method, stage, raw.maps.shape[1:]) if wanted.compare else None
    maps = {HEAT: each_heat(raw.maps, size), **rivals(run, prepared, positives, other, wanted.segmenters)}
    regions = regions_of(devices)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in maps}
    shares: dict[str, list[tuple[float, float]]] = {name: [] for name in regions}
    areas: list[float] = []
    pictured = picture_size(prepared)
    for number, heats in enumerate(zip(*maps.values(), strict=True)):
        truth = truth_of(prepared, positives[number : number + 1])[0]
        mask = mask_at(truth, size)
        areas.append(float(mask.mean()))
        for name, heat in zip(maps, heats, strict=True):
            scores[name].append(score_map(heat, mask))
        for name in regions:
            shares[name].append(shares_in(name, devices, positives[number], heats[0], mask))
        said = float(probability.get(positives[number], float("nan")))
        word = "" if threshold is None else "found" if said >= threshold else "missed"
        radiograph = pixels_of(prepared, positives[number : number + 1], pictured, as_uint8=True)[0, ..., 0]
        beside = dict(zip(maps, heats, strict=True)).get(SEGMENTER)
        picture = overlay_heat_map(radiograph, heats[0], caption(said, method, stage, word), truth, beside)
        write_overlay(folder / PICTURES / f"{positives[number]}.png", picture)
        if progress:
            progress(number + 1, len(positives))

    tables = {name: pd.DataFrame(rows) for name, rows in scores.items()}
    area, patients = np.array(areas), patients_of(prepared, positives)
    write_table(folder / CHECK, summarise_maps(tables, area, patients, resamples, seed))
    write_table(folder / IMAGES, _per_image(positives, probability, threshold, area, tables))
    write_table(folder / SHORTCUTS, shares_table(shares, patients, resamples, seed))
    write_table(folder / CHOICE, choice)
    write_maps(folder / MAPS, positives, raw, method, stage)
    with_tube = None
    if devices is not None and threshold is not None:
        with_tube = by_tube(prepared, probability, threshold, devices, resamples, seed)
    _keep(folder / ANSWERS, with_tube)
    hot = np.flatnonzero(raw.maps.max(axis=(1, 2)) > 0)
    tried = np.random.default_rng(seed).permutation(hot)[:SANITY_IMAGES]
    sanity = None
    if len(tried):
        images = pixels_of(prepared, [positives[number] for number in tried], size)
        sanity = cascade(model, images, lambda network, some: heat_maps(network, some, method, stage), seed)
    _keep(folder / SANITY, sanity)
    twin = None
    if other is not None:
        twin = agreement(each_heat(raw.maps, size), each_heat(other.maps, size))
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
        "checkpoints": len(checkpoints_of(run)),
        "detector": list(answers.classifiers),
        "segmenters": [one.experiment.name for one in wanted.segmenters],
        "twin": twin,
        "devices": devices is not None,
    }
    write_json(folder / RECORD, record)


def _keep(path: Path, table: pd.DataFrame | None) -> None:
    """Write a table, or remove an earlier one where there is none now."""
    if table is None:
        path.unlink(missing_ok=True)
    else:
        write_table(path, table)


def _own_answers(
    run: RunFolder, prepared: PreparedFolder, subset: str, image_ids: Sequence[str], logits: np.ndarray
) -> Answers:
    """The run's probabilities by image id: a classifier's of the whole subset, a segmenter's of the positives."""
    if run.experiment.task == "classifier":
        probability = predict_classifiers([run], prepared, subset).set_index("image_id")["probability"]
    else:
        probability = pd.Series(image_probabilities(run, logits), index=list(image_ids))
    return Answers(probability, operating_threshold(run))


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
