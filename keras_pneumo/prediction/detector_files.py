"""The detector's folder as it is written: its parts, its record with a hash of every file, and what it answers.

In: the runs, and what joins them. Out: what :func:`keras_pneumo.prediction.detector.open_detector` reads, and beside it
the submissions of the detector and of its parts, which the detector does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from keras_pneumo.data.files import sha256_file, write_json
from keras_pneumo.data.prepared import Prepared
from keras_pneumo.evaluation.metrics import fit_threshold
from keras_pneumo.evaluation.submission import write_submission
from keras_pneumo.models.weights import save_safetensors
from keras_pneumo.prediction.detector_record import FILE, FORMAT, content_hash
from keras_pneumo.prediction.joint import Asked, Joint, joined_answers
from keras_pneumo.prediction.postprocess import FILE as RULE_FILE
from keras_pneumo.prediction.run import Run, load_models, versions
from keras_pneumo.prediction.segment import answers, threshold_of
from keras_pneumo.prediction.submit import info_of, keep_search


def write_members(folder: Path, classifiers: Sequence[Run], segmenters: Sequence[Run]) -> dict[str, list[str]]:
    """Write what the detector needs of each run: its experiment, and every network that it predicts with.

    Returns:
        Names of the runs' folders within ``folder``, by role: ``classifiers`` and ``segmenters``.
    """
    places: dict[str, list[str]] = {}
    for role, runs in (("classifier", classifiers), ("segmenter", segmenters)):
        places[f"{role}s"] = [f"{role}_{number}" for number in range(len(runs))]
        for name, run in zip(places[f"{role}s"], runs, strict=True):
            place = folder / name
            place.mkdir(parents=True, exist_ok=True)
            # The command line of the training may name places on its machine, which are nobody else's business.
            kept = {key: value for key, value in run.record.items() if key not in ("command", "start_from")}
            write_json(place / "experiment.json", kept)
            for network, model in enumerate(load_models(run)):
                save_safetensors(model, place / f"network_{network}.safetensors")
    return places


def write_record(
    folder: Path,
    name: str,
    joint: Joint,
    places: dict[str, list[str]],
    prepared: Prepared,
    choice: pd.DataFrame | None,
) -> None:
    """Write the rule for masks, and ``detector.json`` with the hash of every file.

    Args:
        folder: the detector's.
        name: how the detector calls itself.
        joint: what joins the runs.
        places: from :func:`write_members`.
        prepared: what it was fitted on.
        choice: methods and stages of heat maps, the best first, or None; see :func:`choice.choose`.
    """
    keep_search(joint.search, folder)
    files = [folder / RULE_FILE]
    for place in [*places["classifiers"], *places["segmenters"]]:
        files += sorted((folder / place).iterdir())
    record = {
        "format": FORMAT,
        "name": name,
        "use": "Research use only. Not a medical device.",
        "versions": versions(),
        **places,
        "calibration": joint.fitted.calibration.as_json(),
        "probability_source": joint.probability_source,
        "outline_area": joint.alone.rule.area,
        "threshold": joint.threshold,
        "split_sha256": prepared.manifest["split_sha256"],
        "validation": {
            "counts": asdict(joint.counts),
            "dice": joint.search.dice,
            "dice_segmenter_alone": joint.alone.dice,
            "calibration": joint.fitted.scores,
        },
        "heat": _heat(choice),
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
    }
    write_json(folder / FILE, record | {"sha256": content_hash(record)})


def _heat(choice: pd.DataFrame | None) -> dict[str, object]:
    """The heat maps that point best on validation positives, and how well: for the page to show."""
    if choice is None:
        return {}
    best = choice.iloc[0]
    figures = {name: round(float(best[name]), 4) for name in ("pointing", "chance")}
    return {"method": str(best["method"]), "stage": int(best["stage"]), "images": int(best["images"]), **figures}


def write_submissions(
    folder: Path,
    name: str,
    joint: Joint,
    classifiers: Sequence[Run],
    segmenters: Sequence[Run],
    held_out: Asked,
    asked: Asked,
    prepared: Prepared,
) -> None:
    """The detector's submission and, under ``parts``, those of its classifiers and its segmenters alone."""
    rule = joint.alone.rule
    truth = prepared.cases.set_index("image_id")["pneumothorax"].loc[held_out.maps.image_ids].to_numpy(bool)

    def by_classifier(some: Asked) -> pd.DataFrame:
        return pd.DataFrame({"image_id": some.maps.image_ids, "probability": some.classifier})

    def by_segmenter(some: Asked) -> pd.DataFrame:
        return answers(some.maps, rule, some.maps.image_probability)

    parts: list[tuple[str, Sequence[Run], str, float, Callable[[Asked], pd.DataFrame]]] = [
        ("submission", [*classifiers, *segmenters], "joint", joint.threshold, lambda some: joined_answers(some, joint)),
        ("parts/classifier", classifiers, "classification", fit_threshold(truth, held_out.classifier), by_classifier),
        ("parts/segmenter", segmenters, "joint", threshold_of(rule), by_segmenter),
    ]
    for place, runs, task, threshold, table in parts:
        info = info_of(runs, task, "test", threshold)
        if place == "submission":
            info = info.model_copy(update={"team": f"keras-pneumo {name} (joined)"[:80]})
        write_submission(folder / place, info, table(asked), table(held_out))
