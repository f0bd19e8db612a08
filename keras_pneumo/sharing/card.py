"""The model card of a run or a detector, from its own files: what it is, what it learned from, and how good it is.

In: the folder of a finished run or of a detector, and folders of ``evaluate``. Out: Markdown in plain English with the
YAML head that hubs read (licence, tags, scores). Every figure comes from a table that the program wrote, with its
interval and number of images; what is not known is said. Nothing is predicted here. The text is in
``templates/card.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from keras_pneumo import __version__
from keras_pneumo.detector.detector import ValidationCounts
from keras_pneumo.detector.record import FILE as DETECTOR_RECORD
from keras_pneumo.detector.record import read_detector_record
from keras_pneumo.detector.summary import error_rate_of
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.differences import LOWER_IS_BETTER
from keras_pneumo.evaluation.board.findings import own_row, read_board
from keras_pneumo.evaluation.board.verdict import FEW, FEW_PATIENTS, LABELS, shown, shown_interval
from keras_pneumo.inference.run import HASHES, TORCH_WEIGHTS, WEIGHTS, read_run
from keras_pneumo.storage.files import read_json
from keras_pneumo.storage.tables import counted, listed, one_line

CARD = "README.md"
"""Where hubs look for it."""

USE = "Research use only. Not a medical device: nobody may be diagnosed or treated by it."
UNRECORDED = "not recorded by this earlier version"
ANSWERS = {
    "classifier": "It gives the probability that a frontal chest radiograph shows a pneumothorax.",
    "segmenter": "It outlines a pneumothorax on a frontal chest radiograph, and gives the probability of any.",
    "detector": "It gives a calibrated probability of a pneumothorax on frontal chest radiographs, and outlines.",
}
TWINS = {"classifier": "torchvision’s ResNet", "segmenter": "`segmentation_models_pytorch`’s Unet", "detector": ""}
TAGS = ("keras", "tensorflow", "chest-x-ray", "pneumothorax", "medical-imaging", "research-use-only")

_SHOWN = (
    *("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "brier", "calibration_error"),
    *("dice", "dice_positives", "negatives_left_empty", "positives_missed"),
)
"""The scores of a card, by their names on a board."""
_OF_SUBGROUPS = ("auroc", "sensitivity", "specificity", "dice")
_OF_BASELINES = ("auroc", "dice")
_OF_HUBS = {"auroc": "roc_auc", "auprc": "average_precision", "dice": "dice", "dice_positives": "dice"}
"""The scores that go into the head, and what hubs call them."""


def model_card(source: Path, licence: str = "", evaluations: Sequence[Path] = (), address: str = "") -> str:
    """The model card of a run or a detector.

    Args:
        source: the folder of a finished run, or of a detector.
        licence: of the weights, by the name that hubs use, such as ``cc-by-nc-4.0``; blank where none was given.
        evaluations: folders that ``evaluate`` wrote for it.
        address: where it lies on a hub (``hf://OWNER/NAME``); blank where it does not.

    Returns:
        Markdown, with a YAML head.

    Raises:
        PneumoError: ``source`` is neither, or an evaluation is none, or is of another network.
    """
    detector = (source / DETECTOR_RECORD).is_file()
    facts = _of_detector(source) if detector else _of_run(source)
    board, record, members, task = (facts.pop(name) for name in ("board", "record", "members", "task"))
    row = own_row(board)
    experiments = [member.get("experiment", {}) for member in members]
    sizes = [f"{size}x{size}" for size in sorted({int(each.get("image_size", 0)) for each in experiments})]
    split, synthetic = str(record.get("split_sha256", "not recorded")), record.get("synthetic") is True
    data = "Synthetic phantoms" if synthetic else listed(_learned(members))
    pipeline = "image-classification" if task == "classifier" else "image-segmentation"
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return templates.get_template("card.md").render(
        facts,
        kind="detector" if detector else "run",
        use=USE,
        answer=ANSWERS[task],
        twin=Markup(TWINS[task]),
        networks=[_network(each) for each in experiments],
        sizes=sizes,
        synthetic=synthetic,
        where=address or source.name,
        address=address,
        licence=licence,
        split=split,
        by_patient=members[0].get("patients") != "none",
        patients_note=members[0].get("patients_note", ""),
        scores=None if row is None else _scores(row),
        **_baselines(board, row),
        elsewhere=[_read_evaluation(folder, facts["name"]) for folder in evaluations],
        pipeline=pipeline,
        tags=[*TAGS, *(["synthetic-data"] if synthetic else [])],
        task_of_hub={"type": pipeline, "name": "Pneumothorax on frontal chest radiographs"},
        dataset={"type": "private", "name": f"{one_line(data, 100)}, test patients", "revision": split},
        version=str(record.get("versions", {}).get("keras_pneumo", __version__)),
        written_by=__version__,
    )


def _of_run(source: Path) -> dict[str, Any]:
    """What the card says of a run only, and its record, members, task and board."""
    run = read_run(source)
    record, before = run.record, run.pretraining
    minutes = float(record.get("training_seconds", 0)) / 60
    counts = f" ({record.get('training_images')} for training, {record.get('validation_images')} for validation)"
    training = (
        f"Trained for {minutes:.0f} min on {record.get('hardware', 'unknown hardware')}; "
        f"the best epoch by the validation score is {record.get('best_epoch')}. All settings are in experiment.json."
        if "training_seconds" in record
        else ""
    )
    hashes = dict(record.get(HASHES) or {})
    return {
        "record": record,
        "members": [record],
        "task": run.experiment.task,
        "board": read_board(source / "board.csv"),
        "name": run.experiment.name,
        "threshold": run.threshold,
        "learned": [_learned([record])[0] + (counts if "training_images" in record else "")],
        "before": "none, random first weights" if before == "none" else before,
        "training": [training] if training else [],
        "error_rates": [],
        "weights": [(name, hashes[name]) for name in sorted((WEIGHTS, TORCH_WEIGHTS)) if name in hashes],
    }


def _of_detector(source: Path) -> dict[str, Any]:
    """The same of a detector."""
    record = read_detector_record(source)
    names = (*record["classifiers"], *record["segmenters"])
    members = [read_json(source / name / "experiment.json") for name in names]
    counts = ValidationCounts(**record["validation"]["counts"])
    fitted = (
        f"Threshold, calibration and mask parameters were fitted on {counts.images} validation images of "
        f"{counts.patients} patients, {counts.true_positive + counts.false_negative} of them positive."
    )
    real = record.get("synthetic") is not True
    return {
        "record": record,
        "members": members,
        "task": "detector",
        "board": read_board(source / "board/board.csv", joined=True),
        "name": str(record["name"]),
        "threshold": float(record["threshold"]),
        "learned": _learned(members),
        "before": "",
        "training": [fitted],
        "error_rates": [error_rate_of(counts, positive).sentence for positive in (True, False)] if real else [],
        "weights": [(name, each) for name, each in sorted(record["files"].items()) if name.endswith(".safetensors")],
    }


def _learned(members: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({str(member.get("trained_on", UNRECORDED)) for member in members})


def _network(experiment: Mapping[str, Any]) -> str:
    segmenter = experiment.get("task") == "segmenter"
    kind = "a U-Net that outlines the pneumothorax, encoder" if segmenter else "a classifier,"
    size = experiment.get("image_size", 0)
    return f"{kind} {experiment.get('encoder', '')} at {size}x{size} pixels"


# ---------------------------------------------------------------- scores


class _Scores(NamedTuple):
    """The scores of a row of a board."""

    extent: str
    table: str
    share: str
    """Of positive images."""
    few_patients: int | None
    """Below which intervals hold less, where there are fewer; and of positive and of negative images the same."""
    few_images: int | None
    missed: str
    """Share of the positive images without an outline; blank for none."""
    metrics: list[dict[str, Any]]
    """For the head."""


def _scores(row: pd.Series) -> _Scores:
    images, positives = int(row["images"]), int(row["positives"])
    extent = (
        f"{counted(images, 'image')} of {counted(int(row['patients']), 'patient')}, {positives} with a pneumothorax"
    )
    cells = [
        [_label(name), shown(float(row[name])), shown_interval(_interval(row, name))]
        for name in _SHOWN
        if _has(row, name)
    ]
    table = _table(["Score", "Value", "95% interval, by patient"], cells)
    metrics = [
        {"type": kind, "name": LABELS[name], "value": round(float(row[name]), 6)}
        for name, kind in _OF_HUBS.items()
        if _has(row, name)
    ]
    return _Scores(
        extent,
        table,
        f"{positives / max(images, 1):.0%}",
        FEW_PATIENTS if int(row["patients"]) < FEW_PATIENTS else None,
        FEW if min(positives, images - positives) < FEW else None,
        f"{row['positives_missed']:.0%}" if _has(row, "positives_missed") and row["positives_missed"] else "",
        metrics,
    )


def _baselines(board: pd.DataFrame | None, row: pd.Series | None) -> dict[str, str]:
    """The metadata-only baselines, and in a sentence whether the network is better than the best of them."""
    if row is None or board is None or not (board["kind"] == "baseline").any():
        return {"baselines": "", "comparison": ""}
    rows = board[board["kind"] == "baseline"]
    names = [name for name in _OF_BASELINES if _has(row, name) and name in rows]
    cells = [[each["team"], *(_with_interval(each, name) for name in names)] for _, each in rows.iterrows()]
    own = [Markup("**this network**"), *(_with_interval(row, name) for name in names)]
    sentences = []
    for name in names:
        known = rows[rows[name].notna()]
        if known.empty:
            continue
        best = known.iloc[int(known[name].to_numpy(float).argmax())]
        word = "the intervals do not overlap"
        if float(row[name]) <= float(best[name]):
            word = "**this network is no better**"
        elif _interval(row, name)[0] <= _interval(best, name)[1]:
            word = "the intervals overlap, so this table alone does not show that it is better"
        sentences.append(f"{_label(name)}: the best of them is “{_escaped(best['team'])}”; {word}.")
    table = _table(["Answer from", *map(_label, names)], [*cells, own])
    return {"baselines": table, "comparison": Markup(" ".join(sentences))}


class _Elsewhere(NamedTuple):
    """What ``evaluate`` wrote about the network on other data."""

    name: str
    synthetic: bool
    left_out: str
    """How many images; blank for none."""
    scores: _Scores
    subgroups: str


def _read_evaluation(folder: Path, name: str) -> _Elsewhere:
    """Read a folder that ``evaluate`` wrote.

    Raises:
        PneumoError: it is none, or of another network.
    """
    manifest = folder / "prepared/manifest.json"  # not where a prepared folder was evaluated
    try:
        team = str(read_json(folder / "submission/submission.json")["team"])
        board = pd.read_csv(folder / "board.csv")
        row = board[board["kind"] == "submission"].iloc[0]
        subgroups = pd.read_csv(folder / "subgroups.csv", dtype={"subgroup": str})
        left_out = len(pd.read_csv(folder / "contamination.csv", usecols=["image_id"])) - int(row["images"])
        prepared = read_json(manifest) if manifest.is_file() else {}
        sources, synthetic = listed(map(str, prepared.get("sources", {}))), prepared.get("synthetic") is True
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise PneumoError(
            f"{folder} is no folder that keras-pneumo evaluate wrote ({one_line(str(error), 80)}). Name one."
        ) from None
    if team.removeprefix("keras-pneumo ").removesuffix(" (joined)") != name:
        raise PneumoError(f"{folder} is an evaluation of {team}, not of {name}. Name one of this network.")
    scored = [name for name in _OF_SUBGROUPS if name in subgroups and subgroups[name].notna().any()]
    cells = [
        [
            f"{part['attribute']}: {part['subgroup']}",
            f"{int(part['images'])} ({int(part['positives'])})",
            *(_with_interval(part, name) for name in scored),
        ]
        for _, part in subgroups.iterrows()
    ]
    table = _table(["Subgroup", "Images (positive)", *map(_label, scored)], cells) if cells else ""
    text = counted(left_out, "image") if left_out > 0 else ""
    return _Elsewhere(sources or folder.name, synthetic, text, _scores(row), table)


def _has(row: pd.Series, name: str) -> bool:
    return name in row.index and pd.notna(row[name]) and math.isfinite(float(row[name]))


def _interval(row: pd.Series, name: str) -> tuple[float, float]:
    return float(row.get(f"{name}_low", math.nan)), float(row.get(f"{name}_high", math.nan))


def _with_interval(row: pd.Series, name: str) -> str:
    """``0.940 (0.850 to 0.980)``; a dash where there is no score."""
    if not _has(row, name):
        return "–"
    interval = _interval(row, name)
    return shown(float(row[name])) + (f" ({shown_interval(interval)})" if math.isfinite(interval[0]) else "")


def _label(name: str) -> str:
    return LABELS[name] + (" (lower is better)" if name in LOWER_IS_BETTER else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    lines = [head, ["---"] * len(head), *[[_escaped(cell) for cell in row] for row in rows]]
    return Markup("\n".join("| " + " | ".join(cells) + " |" for cells in lines))


def _escaped(value: Any) -> str:
    """A value on one line, without what Markdown or HTML would obey; our own Markdown is marked as such."""
    if isinstance(value, Markup):
        return value
    plain = one_line(str(value), 400).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "|*`[]\\#" else letter for letter in plain)
