"""Heat maps of the positives of a prepared folder, and the check of what they are worth.

In: a finished run and the prepared folder it was trained on. Out: a folder ``explain`` with pictures, maps and the
tables that ``evaluation.report.saliency_report`` puts on the report's page. The check, in this order:

1. Method and stage are selected on validation positives, as every threshold is, and applied unchanged; which maps point
   at anything differs from network to network (a 3x3 grid of the last stage cannot point at a thin rim of air).
2. The heat of each positive is scored against its true mask, beside reference maps: those of a segmenter, of the
   PyTorch twin, and two that know nothing of the image.
3. The share of the heat on shortcuts is measured: the border, tubes, leads and writing.
4. The maps are made again with random weights (:mod:`keras_pneumo.explain.sanity`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd

from keras_pneumo.data.labels.devices import FILE as DEVICES_FILE
from keras_pneumo.data.labels.devices import TUBE, Devices, kinds_of, read_devices
from keras_pneumo.data.prepared.folder import PreparedFolder, verify_files
from keras_pneumo.errors import PneumoError
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
from keras_pneumo.evaluation.scoring.saliency import (
    agreement,
    centre_prior,
    coverage_at,
    mask_at,
    score_map,
    summarise_maps,
)
from keras_pneumo.evaluation.scoring.shortcuts import (
    BORDER_REGION,
    accuracy_by_tube,
    border,
    region_shares,
    shares_table,
)
from keras_pneumo.evaluation.scoring.statistics import RESAMPLES
from keras_pneumo.explain.gradcam import METHODS, STAGES, RawMaps, heat_maps, signed_map, stage_gradients, to_heat
from keras_pneumo.explain.map_files import MAPS, read_twin_maps, write_maps
from keras_pneumo.explain.pictures import caption, overlay_heat_map, write_overlay
from keras_pneumo.explain.positives import (
    batched,
    image_probabilities,
    operating_threshold,
    patient_numbers,
    picture_size,
    pixels_of,
    positives_of,
    raw_maps_of,
    training_mask_density,
    true_masks,
    true_runs,
)
from keras_pneumo.explain.sanity import cascade, uninformative
from keras_pneumo.inference.ensemble import check_together, mean_maps, open_members, predict_classifiers
from keras_pneumo.inference.run import RunFolder, checkpoints_of, load_model
from keras_pneumo.storage.files import replacing_contents, write_json, write_table
from keras_pneumo.storage.workers import Progress

FORMAT = 1

SELECTION_IMAGES = 100
"""Most validation positives for the selection, drawn at random where there are more: each costs a pass per stage."""

SANITY_IMAGES = 8
"""Positives whose maps are made again with random weights."""

HEAT, TWIN, SEGMENTER, CENTRE, TRAINING_MASKS = "heat map", "PyTorch twin", "segmenter", "centre", "training masks"
"""Kinds of map that are scored: the last two know nothing of the image."""

NO_SHARES = (float("nan"), float("nan"))
"""Of a region that is not on an image."""


@dataclass(frozen=True)
class CheckOptions:
    """Which images are explained, by which method, and beside which maps."""

    subset: str = "test"
    method: str | None = None
    """None: the one selected on validation."""
    stage: int | None = None
    """None: the one selected on validation."""
    selection: pd.DataFrame | None = None
    """The table of :func:`select_method`, where it was made before."""
    segmenters: Sequence[RunFolder] = ()
    """Runs whose mean maps are scored beside the heat."""
    twin_maps: Path | None = None
    """Maps of the same positives by the PyTorch twin, as ``experiments/torch_team/gradcam.py`` writes them."""
    devices: Path | None = None
    """Table of tubes, leads and writing, where the prepared folder holds none."""


@dataclass(frozen=True)
class SubsetProbabilities:
    """Predicted probabilities of the subset: the run's own, or those of a detector that the run is part of."""

    probability: pd.Series
    """By image id."""
    threshold: float | None
    """From this probability on an image counts as positive; None where the threshold is on another score."""
    classifiers: tuple[str, ...] = ()
    """Names of the classifiers in the detector, the run's first; none for the run's own probabilities."""


def explain_prepared(
    run: RunFolder,
    prepared: PreparedFolder,
    folder: Path,
    options: CheckOptions | None = None,
    predicted: SubsetProbabilities | None = None,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
    model: keras.Model | None = None,
) -> None:
    """Explain the positives of one subset and check the maps; an older check in the folder stays until this is whole.

    Args:
        run: a finished run.
        prepared: the folder it was trained on, or another with the same split.
        folder: where to write.
        options: None for the test positives, by the method that validation selects.
        predicted: probabilities of the subset, where they are known already or are not the run's own.
        resamples: of the patients, for the intervals.
        progress: called with positives done and in all.
        model: the run's network, where it is loaded already.

    Raises:
        PneumoError: the folder has another split, has no positives there, or lacks the run's image size; the twin's
            maps are of other images or another method.
    """
    with replacing_contents(folder, (PICTURES, MAPS, ANSWERS, SANITY, CHOICE, SHORTCUTS, IMAGES, CHECK, RECORD)) as new:
        _explain_into(new, run, prepared, options or CheckOptions(), predicted, resamples, progress, model)


def _explain_into(
    folder: Path,
    run: RunFolder,
    prepared: PreparedFolder,
    options: CheckOptions,
    predicted: SubsetProbabilities | None,
    resamples: int,
    progress: Progress | None,
    model: keras.Model | None,
) -> None:
    """Write all that :func:`explain_prepared` writes into an empty folder."""
    check_together([run], prepared)
    _check_segmenters(options.segmenters, prepared)
    devices = _devices_of(prepared, options.devices)
    size, seed = run.experiment.image_size, run.experiment.seed
    positives = positives_of(run, prepared, options.subset)
    for each in {size, picture_size(prepared)}:
        verify_files(prepared, each, positives)

    model = model or load_model(run)
    selection = options.selection
    if selection is None:
        selection = select_method(model, run, prepared, options.method, options.stage)
    method, stage = str(selection["method"].iloc[0]), int(selection["stage"].iloc[0])
    raw = raw_maps_of(model, prepared, positives, size, method, stage)
    predicted = predicted or _own_probabilities(run, prepared, options.subset, positives, raw.logits)
    probability, threshold = predicted.probability, predicted.threshold

    twin = None
    if options.twin_maps:
        twin = read_twin_maps(options.twin_maps, positives, method, stage, raw.maps.shape[1:])
    maps = {HEAT: _each_heat(raw.maps, size)}
    maps |= reference_maps(run, prepared, positives, twin, options.segmenters)
    regions = [BORDER_REGION, *kinds_of(devices or {})]
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in maps}
    shares: dict[str, list[tuple[float, float]]] = {name: [] for name in regions}
    areas: list[float] = []
    for number, (image_id, *each) in enumerate(zip(positives, *maps.values(), strict=True)):
        heats = dict(zip(maps, each, strict=True))
        (runs,) = true_runs(prepared, [image_id])
        mask = mask_at(runs, size)
        areas.append(float(mask.mean()))
        for name, heat in heats.items():
            scores[name].append(score_map(heat, mask))
        for name in regions:
            shares[name].append(_region_shares(name, devices, image_id, heats[HEAT], mask))
        image_probability = float(probability.get(image_id, float("nan")))
        verdict = "" if threshold is None else "found" if image_probability >= threshold else "missed"
        radiograph = pixels_of(prepared, [image_id], picture_size(prepared), as_uint8=True)[0, ..., 0]
        text = caption(image_probability, method, stage, verdict)
        picture = overlay_heat_map(radiograph, heats[HEAT], text, runs, heats.get(SEGMENTER), run.synthetic)
        write_overlay(folder / PICTURES / f"{image_id}.png", picture)
        if progress:
            progress(number + 1, len(positives))

    area, patients = np.array(areas), patient_numbers(prepared, positives)
    tables = {name: pd.DataFrame(rows) for name, rows in scores.items()}
    write_table(folder / CHECK, summarise_maps(tables, area, patients, resamples, seed))
    write_table(folder / IMAGES, _per_image(positives, probability, threshold, area, tables))
    write_table(folder / SHORTCUTS, shares_table(shares, patients, resamples, seed))
    write_table(folder / CHOICE, selection)
    write_maps(folder / MAPS, positives, raw, method, stage)
    with_tube = None
    if devices is not None and threshold is not None:
        with_tube = _by_tube(prepared, probability, threshold, devices, resamples, seed)
    if with_tube is not None:
        write_table(folder / ANSWERS, with_tube)

    with_heat = np.flatnonzero(raw.maps.max(axis=(1, 2)) > 0)
    drawn = np.random.default_rng(seed).permutation(with_heat)[:SANITY_IMAGES]
    sanity = None
    if len(drawn):
        images = pixels_of(prepared, [positives[number] for number in drawn], size)
        sanity = cascade(model, images, lambda network, some: heat_maps(network, some, method, stage), seed)
    if sanity is not None:
        write_table(folder / SANITY, sanity)

    record = {
        "format": FORMAT,
        "run": run.experiment.name,
        "task": run.experiment.task,
        "subset": options.subset,
        "split_sha256": prepared.manifest["split_sha256"],
        "method": method,
        "stage": stage,
        "grid": list(raw.maps.shape[1:]),
        "image_size": size,
        "chosen_on_validation": len(selection) > 1,
        "positives": len(positives),
        "without_heat": len(positives) - len(with_heat),
        "patients": len(np.unique(patients)),
        "resamples": resamples,
        "uninformative": sanity is None or uninformative(sanity),
        "sanity_images": len(drawn),
        "checkpoints": len(checkpoints_of(run)),
        "detector": list(predicted.classifiers),
        "segmenters": [segmenter.experiment.name for segmenter in options.segmenters],
        "twin": None if twin is None else _twin_agreement(raw, twin, size),
        "devices": devices is not None,
    }
    write_json(folder / RECORD, record)


def select_method(
    model: keras.Model, run: RunFolder, prepared: PreparedFolder, method: str | None = None, stage: int | None = None
) -> pd.DataFrame:
    """Rank methods and stages by how well their maps point on validation positives, the best first.

    The pointing game decides, and between equals the area under the precision-recall curve.

    Args:
        model: the run's network.
        run: whose validation fold is used.
        prepared: the folder it was trained on.
        method: where it is given, else None.
        stage: where it is given, else None.

    Returns:
        ``method, stage, pointing, auprc, energy, chance, images``; a single row without scores where both are given.
    """
    methods = [method] if method else list(METHODS)
    stages = [stage] if stage else list(STAGES)
    size = run.experiment.image_size
    if len(methods) * len(stages) == 1:
        return pd.DataFrame([{"method": methods[0], "stage": stages[0], "images": 0}])
    positives = positives_of(run, prepared, "validation")
    drawn = np.random.default_rng(run.experiment.seed).permutation(len(positives))[:SELECTION_IMAGES]
    positives = [positives[number] for number in sorted(drawn)]
    verify_files(prepared, size, positives)
    scores: dict[tuple[str, int], list[dict[str, float]]] = {(name, depth): [] for depth in stages for name in methods}
    chance: list[float] = []
    for batch in batched(positives):
        gradients = stage_gradients(model, pixels_of(prepared, batch, size), stages)
        masks = true_masks(prepared, batch, size)
        chance += masks.mean(axis=(1, 2)).tolist()
        for name, depth in scores:
            heats = to_heat(signed_map(gradients[depth], name), size)
            scores[name, depth] += [score_map(*pair) for pair in zip(heats, masks, strict=True)]
    rows = [
        {
            "method": name,
            "stage": depth,
            **pd.DataFrame(of_images).mean(),
            "chance": np.mean(chance),
            "images": len(positives),
        }
        for (name, depth), of_images in scores.items()
    ]
    table = pd.DataFrame(rows)
    return table.sort_values(["pointing", "auprc"], ascending=False, kind="stable", ignore_index=True)


def reference_maps(
    run: RunFolder,
    prepared: PreparedFolder,
    image_ids: list[str],
    twin: RawMaps | None,
    segmenters: Sequence[RunFolder],
) -> dict[str, Iterator[np.ndarray]]:
    """Maps to compare the heat with, float (S, S) at the run's size, by kind, in the order of ``image_ids``.

    Each is made when it is asked for: at full size all of them would not fit in memory.
    """
    size = run.experiment.image_size
    maps: dict[str, Iterator[np.ndarray]] = {}
    if twin is not None:
        maps[TWIN] = _each_heat(twin.maps, size)
    if segmenters:
        maps[SEGMENTER] = _segmented(segmenters, prepared, image_ids, size)
    centre, training_masks = centre_prior(size), training_mask_density(run, prepared, size)
    maps[CENTRE] = (centre for _ in image_ids)
    maps[TRAINING_MASKS] = (training_masks for _ in image_ids)
    return maps


def _check_segmenters(segmenters: Sequence[RunFolder], prepared: PreparedFolder) -> None:
    """Refuse a run that has no masks, or was trained on another split.

    Raises:
        PneumoError: it is so.
    """
    for run in segmenters:
        if run.experiment.task != "segmenter":
            raise PneumoError(
                f"{run.folder} is not a segmenter, so it has no map to compare with. Name a run of a segmenter."
            )
    if segmenters:
        check_together(segmenters, prepared)


def _each_heat(maps: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Heat, float32 (size, size), of each raw map, (n, h, w)."""
    for raw in maps:
        yield to_heat(raw[None], size)[0]


def _segmented(
    segmenters: Sequence[RunFolder], prepared: PreparedFolder, image_ids: list[str], size: int
) -> Iterator[np.ndarray]:
    """The segmenters' mean probabilities of each image, resized."""
    sizes = {run.experiment.image_size for run in segmenters}
    for some in sizes:
        verify_files(prepared, some, image_ids)
    members = open_members(segmenters)
    for batch in batched(image_ids):
        pixels = {some: pixels_of(prepared, batch, some) for some in sizes}
        maps, _ = mean_maps(members, pixels.__getitem__)
        for each in maps:
            method = cv2.INTER_AREA if len(each) > size else cv2.INTER_LINEAR
            yield each if len(each) == size else cv2.resize(each, (size, size), interpolation=method)


def _devices_of(prepared: PreparedFolder, path: Path | None) -> Devices | None:
    """Where tubes, leads and writing lie, by the given table, else by the folder's; None without any."""
    own = prepared.folder / DEVICES_FILE
    path = path or (own if own.is_file() else None)
    return read_devices(path) if path else None


def _region_shares(
    region: str, devices: Devices | None, image_id: str, heat: np.ndarray, mask: np.ndarray
) -> tuple[float, float]:
    """A region's share of an image's heat and of the image, the true mask left out; NaN where the region is absent.

    Args:
        region: the border, or a kind of device.
        devices: by image id and kind.
        image_id: of the image.
        heat: float (S, S).
        mask: bool (S, S).
    """
    if region == BORDER_REGION:
        return region_shares(heat, mask, border(len(heat)).astype(np.float32))
    runs = (devices or {}).get(image_id, {}).get(region)
    return NO_SHARES if runs is None else region_shares(heat, mask, coverage_at(runs, len(heat)))


def _by_tube(
    prepared: PreparedFolder, probability: pd.Series, threshold: float, devices: Devices, resamples: int, seed: int
) -> pd.DataFrame:
    """How often predictions are right with a chest tube and without; see :func:`shortcuts.accuracy_by_tube`."""
    image_ids = [str(image_id) for image_id in probability.index]
    positive = prepared.cases.set_index("image_id")["pneumothorax"].astype(int).loc[image_ids].to_numpy() == 1
    tube = np.array([TUBE in devices.get(image_id, {}) for image_id in image_ids])
    decision = probability.to_numpy(float) >= threshold
    return accuracy_by_tube(positive, decision, tube, patient_numbers(prepared, image_ids), resamples, seed)


def _twin_agreement(raw: RawMaps, twin: RawMaps, size: int) -> dict[str, float]:
    """How alike our maps and the PyTorch twin's are, and the largest difference of a logit."""
    alike = agreement(_each_heat(raw.maps, size), _each_heat(twin.maps, size))
    alike["logit_difference"] = float(np.abs(raw.logits - twin.logits).max())
    return alike


def _own_probabilities(
    run: RunFolder, prepared: PreparedFolder, subset: str, image_ids: Sequence[str], logits: np.ndarray
) -> SubsetProbabilities:
    """The run's probabilities by image id: a classifier's of the whole subset, a segmenter's of the positives."""
    if run.experiment.task == "classifier":
        probability = predict_classifiers([run], prepared, subset).set_index("image_id")["probability"]
    else:
        probability = pd.Series(image_probabilities(run, logits), index=list(image_ids))
    return SubsetProbabilities(probability, operating_threshold(run))


def _per_image(
    image_ids: Sequence[str],
    probability: pd.Series,
    threshold: float | None,
    area: np.ndarray,
    tables: dict[str, pd.DataFrame],
) -> pd.DataFrame:
    """A row for each positive: its probability, its mask's share of the image, and the scores of its maps."""
    predicted = probability.reindex(list(image_ids)).to_numpy(float)
    columns: dict[str, object] = {"image_id": list(image_ids), "probability": np.round(predicted, 6)}
    if threshold is not None:
        columns["found"] = (predicted >= threshold).astype(int)
    columns["area"] = area
    for name, table in tables.items():
        if name in (CENTRE, TRAINING_MASKS):
            continue
        columns |= {f"{score} ({name})": table[score].to_numpy() for score in table}
    return pd.DataFrame(columns)
