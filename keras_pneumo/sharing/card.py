"""The model card of a run or a detector, from its own files: what it is, what it learned from, and how good it is.

In: the folder of a finished run or of a detector, and folders of ``evaluate``. Out: Markdown in plain English with the
YAML head that hubs read (licence, tags, scores). Every figure comes from a table that the program wrote, with its
interval and number of images; what is not known is said. Nothing is predicted here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from keras_pneumo import __version__
from keras_pneumo.detector.detector import ValidationCounts
from keras_pneumo.detector.record import FILE as DETECTOR_RECORD
from keras_pneumo.detector.record import read_detector_record
from keras_pneumo.detector.summary import error_rate_of
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.differences import LOWER_IS_BETTER
from keras_pneumo.evaluation.board.findings import own_row, read_board
from keras_pneumo.evaluation.board.verdict import FEW, FEW_PATIENTS, LABELS, shown, shown_interval
from keras_pneumo.evaluation.report.saliency_report import FOLDER, read_saliency_report
from keras_pneumo.inference.run import HASHES, TORCH_WEIGHTS, WEIGHTS, RunFolder, read_run
from keras_pneumo.storage.files import read_json
from keras_pneumo.storage.tables import counted, listed, one_line

CARD = "README.md"
"""Where hubs look for it."""

UNKNOWN_LICENCE = "unknown"
UNRECORDED = "not recorded by this earlier version"
USE = "Research use only. Not a medical device: nobody may be diagnosed or treated by it."

_SHOWN = (
    *("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "brier", "calibration_error"),
    *("dice", "dice_positives", "negatives_left_empty", "positives_missed"),
)
"""The scores of a card, by their names on a board."""
_OF_SUBGROUPS = ("auroc", "sensitivity", "specificity", "dice")
_OF_BASELINES = ("auroc", "dice")


class _Facts(NamedTuple):
    """What a card says of a run or of a detector, in one form."""

    name: str
    detector: bool
    task: str
    """``classifier``, ``segmenter`` or ``detector``."""
    synthetic: bool
    networks: list[str]
    sizes: list[int]
    data: str
    """The images that it learned from, as they were recorded."""
    trained_on: list[str]
    training: list[str]
    split: str
    patients: str
    threshold: float | None
    weights: dict[str, str]
    versions: Mapping[str, Any]
    board: pd.DataFrame | None
    counts: ValidationCounts | None = None
    """A detector's right and wrong answers on validation."""


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
    facts = _detector_facts(source) if (source / DETECTOR_RECORD).is_file() else _run_facts(read_run(source))
    elsewhere = [_read_evaluation(folder, facts.name) for folder in evaluations]
    row = own_row(facts.board)
    parts = [
        f"---\n{yaml(_head(facts, licence, row))}---",
        f"# {_text(facts.name)}",
        f"**{USE}**",
        *([_SYNTHETIC] if facts.synthetic else []),
        _what(facts),
        "## How to use it",
        _use(facts, address or source.name),
        "## What it learned from",
        _bullets([*facts.trained_on, facts.patients, f"Split (SHA-256): `{facts.split}`", *facts.training]),
        "## Scores",
        *_scores(facts, row),
        "## Answers without looking at any pixel",
        *_baselines(facts, row),
        "## On data from elsewhere",
        *_elsewhere(elsewhere),
        *_where_it_looks(source),
        "## Limits",
        _bullets(_limits(facts, row, bool(elsewhere))),
        "## Licence",
        _licence(licence),
        "## How to cite",
        _cite(facts, address),
        f"*Written by keras_pneumo {__version__} from the files of the {'detector' if facts.detector else 'run'}.*",
    ]
    return "\n\n".join(parts) + "\n"


_SYNTHETIC = (
    "> **Trained on synthetic radiographs (phantoms).** It has never seen a real radiograph and knows nothing of one. "
    "All figures below are of phantoms."
)


# ---------------------------------------------------------------- what the files say


def _run_facts(run: RunFolder) -> _Facts:
    record, experiment = run.record, run.experiment
    before = run.pretraining
    count = f"{record.get('training_images')} for training, {record.get('validation_images')} for validation"
    return _Facts(
        experiment.name,
        False,
        experiment.task,
        run.synthetic,
        [_network(experiment.task, experiment.encoder, experiment.image_size)],
        [experiment.image_size],
        str(record.get("trained_on", UNRECORDED)),
        [
            f"Images: {_text(record.get('trained_on', UNRECORDED))}"
            + (f" ({count})" if "training_images" in record else ""),
            f"Before these: {'none, random first weights' if before == 'none' else _text(before)}",
        ],
        [_training_sentence(record)] if "training_seconds" in record else [],
        str(record.get("split_sha256", "not recorded")),
        _patients_sentence(record),
        run.threshold,
        {name: digest for name, digest in dict(record.get(HASHES) or {}).items() if name in (WEIGHTS, TORCH_WEIGHTS)},
        record.get("versions", {}),
        read_board(run.folder / "board.csv"),
    )


def _detector_facts(folder: Path) -> _Facts:
    record = read_detector_record(folder)
    members = [read_json(folder / name / "experiment.json") for name in (*record["classifiers"], *record["segmenters"])]
    experiments = [member.get("experiment", {}) for member in members]
    learned = sorted({str(member.get("trained_on", UNRECORDED)) for member in members})
    counts = ValidationCounts(**record["validation"]["counts"])
    return _Facts(
        str(record["name"]),
        True,
        "detector",
        record.get("synthetic") is True,
        [_network(e.get("task", ""), e.get("encoder", ""), e.get("image_size", 0)) for e in experiments],
        sorted({int(e.get("image_size", 0)) for e in experiments}),
        listed(learned),
        [f"Images: {_text(each)}" for each in learned],
        [_counts_sentence(counts)],
        str(record.get("split_sha256", "not recorded")),
        _patients_sentence(members[0]),
        float(record["threshold"]),
        {name: digest for name, digest in record["files"].items() if name.endswith(".safetensors")},
        record["versions"],
        read_board(folder / "board/board.csv", joined=True),
        counts,
    )


class _Elsewhere(NamedTuple):
    """What ``evaluate`` wrote about the network on other data."""

    name: str
    synthetic: bool | None
    row: pd.Series
    subgroups: pd.DataFrame
    left_out: int
    images: int


def _read_evaluation(folder: Path, name: str) -> _Elsewhere:
    """Read a folder that ``evaluate`` wrote.

    Raises:
        PneumoError: it is none, or of another network.
    """
    try:
        team = str(read_json(folder / "submission/submission.json")["team"])
        board = pd.read_csv(folder / "board.csv")
        row = board[board["kind"] == "submission"].iloc[0]
        subgroups = pd.read_csv(folder / "subgroups.csv", dtype={"subgroup": str}, keep_default_na=True)
        images = len(pd.read_csv(folder / "contamination.csv", usecols=["image_id"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise PneumoError(
            f"{folder} is no folder that keras-pneumo evaluate wrote ({one_line(str(error), 80)}). Name one."
        ) from None
    if team.removeprefix("keras-pneumo ").removesuffix(" (joined)") != name:
        raise PneumoError(f"{folder} is an evaluation of {team}, not of {name}. Name one of this network.")
    synthetic = None
    sources: list[str] = []
    manifest = folder / "prepared/manifest.json"
    if manifest.is_file():
        try:
            content = read_json(manifest)
            synthetic, sources = content.get("synthetic") is True, [str(each) for each in content.get("sources", {})]
        except (OSError, ValueError, AttributeError):
            pass
    return _Elsewhere(
        listed(sources) or folder.name, synthetic, row, subgroups, max(images - int(row["images"]), 0), images
    )


# ---------------------------------------------------------------- sentences and tables


def _network(task: str, encoder: str, size: int) -> str:
    kind = "a U-Net that outlines the pneumothorax, encoder" if task == "segmenter" else "a classifier,"
    return f"{kind} {encoder} at {size}x{size} pixels"


def _what(facts: _Facts) -> str:
    answer = {
        "classifier": "It gives the probability that a frontal chest radiograph shows a pneumothorax.",
        "segmenter": "It outlines a pneumothorax on a frontal chest radiograph, and gives the probability of any.",
        "detector": "It gives a calibrated probability of a pneumothorax on frontal chest radiographs, and outlines.",
    }[facts.task]
    threshold = (
        "" if facts.threshold is None else f" It answers yes from {facts.threshold:.3f} on, fitted on validation."
    )
    return f"{answer} Inside: {'; '.join(facts.networks)}.{threshold}"


def _use(facts: _Facts, where: str) -> str:
    function = "load_detector" if facts.detector else "load_run"
    lines = [
        "```python",
        "import keras_pneumo as kp",
        "",
        f"model = kp.{function}({json.dumps(where)})",
        'print(model.predict("radiograph.dcm"))',
        "```",
    ]
    if facts.detector:
        return "\n".join(lines)
    twin = "`segmentation_models_pytorch`’s Unet" if facts.task == "segmenter" else "torchvision’s ResNet"
    return "\n".join(lines) + f"\n\n`{TORCH_WEIGHTS}` holds the same weights under the names of {twin}."


def _patients_sentence(record: Mapping[str, Any]) -> str:
    note = _text(record.get("patients_note", ""))
    if record.get("patients") == "none":
        return f"**The split is not by patient**: without a patient table one may be on both sides. {note}".strip()
    return f"Split by patient, so nobody is in two subsets. {note}".strip()


def _training_sentence(record: Mapping[str, Any]) -> str:
    minutes = float(record["training_seconds"]) / 60
    return (
        f"Trained for {minutes:.0f} min on {_text(record.get('hardware', 'unknown hardware'))}; the best epoch by the "
        f"validation score is {record.get('best_epoch')}. All settings are in `experiment.json`."
    )


def _counts_sentence(counts: ValidationCounts) -> str:
    return (
        f"Threshold, calibration and mask parameters were fitted on {counts.images} validation images of "
        f"{counts.patients} patients, {counts.true_positive + counts.false_negative} of them positive."
    )


def _extent(row: pd.Series) -> str:
    return (
        f"{counted(int(row['images']), 'image')} of {counted(int(row['patients']), 'patient')}, "
        f"{int(row['positives'])} with a pneumothorax"
    )


def _scores(facts: _Facts, row: pd.Series | None) -> list[str]:
    if row is None:
        return ["It was not scored: there is no `board.csv`."]
    kind = " Synthetic phantoms, all of them." if facts.synthetic else ""
    head = f"On the test patients of the same data, whom it has not seen: {_extent(row)}.{kind}"
    cells = [
        [_label(name), shown(float(row[name])), shown_interval(_interval(row, name))]
        for name in _SHOWN
        if _has(row, name)
    ]
    few = int(row["patients"]) < FEW_PATIENTS
    caution = [f"With fewer than {FEW_PATIENTS} patients, 95% intervals hold less than that."] if few else []
    wrong = []
    if facts.counts is not None and not facts.synthetic:
        wrong = [error_rate_of(facts.counts, positive).sentence for positive in (True, False)]
    return [
        head,
        _table(["Score", "Value", "95% interval, by patient"], cells),
        *caution,
        *([" ".join(wrong)] if wrong else []),
    ]


def _baselines(facts: _Facts, row: pd.Series | None) -> list[str]:
    """The metadata-only baselines, and in a sentence whether the network is better than the best of them."""
    board = facts.board
    if row is None or board is None or not (board["kind"] == "baseline").any():
        return ["No metadata-only baseline was scored."]
    rows = board[board["kind"] == "baseline"]
    names = [name for name in _OF_BASELINES if _has(row, name) and name in rows]
    cells = [
        [_text(each["team"]), *(_with_interval(each, name) if _has(each, name) else "–" for name in names)]
        for _, each in rows.iterrows()
    ]
    cells.append(["**this network**", *(_with_interval(row, name) for name in names)])
    head = "Metadata-only baselines use facts such as age, sex, view and how often a patient was imaged."
    return [head, _table(["Answer from", *(_label(name) for name in names)], cells), *(_against(rows, row, names))]


def _against(rows: pd.DataFrame, row: pd.Series, names: Iterable[str]) -> list[str]:
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
        sentences.append(f"{_label(name)}: the best of them is “{_text(best['team'])}”; {word}.")
    return [" ".join(sentences)] if sentences else []


def _elsewhere(evaluations: Sequence[_Elsewhere]) -> list[str]:
    if not evaluations:
        return [
            "It was not evaluated on data from elsewhere. Expect lower scores there: `keras-pneumo evaluate` tells."
        ]
    parts = []
    for one in evaluations:
        names = [name for name in _SHOWN if _has(one.row, name)]
        synthetic = " (synthetic phantoms)" if one.synthetic else ""
        left_out = (
            f" {counted(one.left_out, 'image')} that it may have learned from were left out: not all is from elsewhere."
            if one.left_out
            else ""
        )
        parts += [
            f"### {_text(one.name)}{synthetic}",
            f"{_extent(one.row)}.{left_out} Nothing was fitted here.",
            _table(
                ["Score", "Value", "95% interval, by patient"],
                [
                    [_label(name), shown(float(one.row[name])), shown_interval(_interval(one.row, name))]
                    for name in names
                ],
            ),
        ]
        if len(one.subgroups):
            scores = [name for name in _OF_SUBGROUPS if name in one.subgroups and one.subgroups[name].notna().any()]
            cells = [
                [
                    f"{_text(part['attribute'])}: {_text(part['subgroup'])}",
                    f"{int(part['images'])} ({int(part['positives'])})",
                    *(_with_interval(part, name) if _has(part, name) else "–" for name in scores),
                ]
                for _, part in one.subgroups.iterrows()
            ]
            parts.append(_table(["Subgroup", "Images (positive)", *(_label(name) for name in scores)], cells))
    return parts


def _where_it_looks(source: Path) -> list[str]:
    """The findings of the check of the heat maps, where there was one."""
    try:
        saliency = read_saliency_report(source / FOLDER)
    except PneumoError:  # a package has a part of it
        return []
    return [] if saliency is None else ["## Where it looks", " ".join(saliency.sentences)]


def _limits(facts: _Facts, row: pd.Series | None, evaluated: bool) -> list[str]:
    limits = [USE]
    if facts.synthetic:
        limits.append("Trained on synthetic phantoms only: on real radiographs its answers mean nothing.")
    limits += [
        "Frontal chest radiographs only. "
        + (
            "An image unlike the training images gets no answer."
            if facts.detector
            else "It answers for any picture, also for one that is no chest radiograph."
        ),
        f"It sees {' and '.join(f'{size}x{size}' for size in facts.sizes)} pixels: what is smaller is lost, and "
        "small pneumothoraces may be missed.",
        "A network can learn tubes, markers or the hospital in place of the finding: look at the heat maps.",
    ]
    if row is not None:
        share = int(row["positives"]) / max(int(row["images"]), 1)
        limits.append(
            f"{share:.0%} of the test images are positive. Where the finding is rarer, more of its yes are wrong "
            "(predictive values change with it)."
        )
        if min(int(row["positives"]), int(row["images"]) - int(row["positives"])) < FEW:
            limits.append(f"Fewer than {FEW} positive or negative test images: little can be concluded.")
        if _has(row, "positives_missed") and float(row["positives_missed"]) > 0:
            limits.append(f"It outlines nothing in {float(row['positives_missed']):.0%} of the positive test images.")
    if not evaluated:
        limits.append("Test patients come from the same data as the training patients; nothing is known of others.")
    return limits


def _licence(licence: str) -> str:
    if not licence:
        return (
            "No licence of these weights was given: ask whoever published them before you use them. The data that they "
            "learned from may forbid some uses. The program keras_pneumo is under the MIT licence."
        )
    return f"These weights: {_text(licence)}. The program keras_pneumo is under the MIT licence."


def _cite(facts: _Facts, address: str) -> str:
    version = str(facts.versions.get("keras_pneumo", __version__))
    lines = [
        "```bibtex",
        "@software{keras_pneumo,",
        "  title = {keras_pneumo: Keras twins of PyTorch's networks for pneumothorax, and an honest referee},",
        f"  version = {{{version}}},",
        f"  note = {{Model {facts.name}{', ' + address if address else ''}; split {facts.split[:12]}}}",
        "}",
        "```",
    ]
    hashes = _bullets([f"`{name}`: SHA-256 `{digest}`" for name, digest in sorted(facts.weights.items())])
    return "\n".join(lines) + ("\n\nName the split and the weights with every score:\n\n" + hashes if hashes else "")


# ---------------------------------------------------------------- the head that hubs read


def _head(facts: _Facts, licence: str, row: pd.Series | None) -> dict[str, Any]:
    segments = facts.task != "classifier"
    tags = ["keras", "tensorflow", "chest-x-ray", "pneumothorax", "medical-imaging", "research-use-only"]
    head: dict[str, Any] = {
        "license": licence or UNKNOWN_LICENCE,
        "library_name": "keras",
        "pipeline_tag": "image-segmentation" if segments else "image-classification",
        "tags": [*tags, *(["synthetic-data"] if facts.synthetic else [])],
    }
    if row is None:
        return head
    names = [name for name in ("auroc", "auprc", "dice", "dice_positives") if _has(row, name)]
    task = {"type": head["pipeline_tag"], "name": "Pneumothorax on frontal chest radiographs"}
    data = "Synthetic phantoms" if facts.synthetic else facts.data
    dataset = {"type": "private", "name": f"{one_line(data, 100)}, test patients", "revision": facts.split}
    metrics = [{"type": _HUB_NAMES[name], "name": LABELS[name], "value": round(float(row[name]), 6)} for name in names]
    head["metrics"] = list(dict.fromkeys(metric["type"] for metric in metrics))
    head["model-index"] = [{"name": facts.name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return head


_HUB_NAMES = {"auroc": "roc_auc", "auprc": "average_precision", "dice": "dice", "dice_positives": "dice"}


def yaml(value: Any, indent: int = 0) -> str:
    """A dictionary as YAML: its texts and numbers as JSON, which YAML reads as they are."""
    pad, lines = " " * indent, []
    for key, each in value.items():
        if isinstance(each, dict):
            lines.append(f"{pad}{key}:\n{yaml(each, indent + 2)}")
        elif isinstance(each, list):
            items = []
            for item in each:
                body = yaml(item, indent + 2) if isinstance(item, dict) else f"{pad}  {json.dumps(item)}\n"
                items.append(f"{pad}- {body[indent + 2 :]}")
            lines.append(f"{pad}{key}:\n{''.join(items)}")
        else:
            lines.append(f"{pad}{key}: {json.dumps(each)}\n")
    return "".join(lines)


# ---------------------------------------------------------------- small parts


def _has(row: pd.Series, name: str) -> bool:
    return name in row.index and pd.notna(row[name]) and math.isfinite(float(row[name]))


def _interval(row: pd.Series, name: str) -> tuple[float, float]:
    bounds = [float(row.get(f"{name}_{end}", math.nan)) for end in ("low", "high")]
    return bounds[0], bounds[1]


def _with_interval(row: pd.Series, name: str) -> str:
    low, high = _interval(row, name)
    return shown(float(row[name])) + (f" ({shown(low)} to {shown(high)})" if math.isfinite(low) else "")


def _label(name: str) -> str:
    return LABELS[name] + (" (lower is better)" if name in LOWER_IS_BETTER else "")


def _text(value: Any) -> str:
    """A text from a file, on one line, without what Markdown or HTML would obey."""
    plain = one_line(str(value), 300).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "|*`[]\\#" else letter for letter in plain)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
