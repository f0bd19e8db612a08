"""The saliency section of a report: how well the heat maps point at the pneumothorax, in sentences and tables.

In: the ``explain`` folder of a run or a detector: a record, small tables and pictures. Out: a :class:`SaliencyReport`,
text for the page. It reads files and no network, so that a report can be written again without TensorFlow. No sentence
claims more than its interval allows.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from keras_pneumo.data.labels.devices import LEADS, MARKER, TUBE, WORDS
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.verdict import FEW, shown
from keras_pneumo.evaluation.scoring.saliency import UNINFORMATIVE
from keras_pneumo.evaluation.scoring.shortcuts import BORDER_REGION
from keras_pneumo.storage.files import read_json
from keras_pneumo.storage.tables import counted

FOLDER = "explain"
"""Name of the folder inside a run or a detector."""
RECORD, CHECK, IMAGES, CHOICE = "explain.json", "check.csv", "per_image.csv", "choice.csv"
SANITY, SHORTCUTS, ANSWERS, PICTURES = "sanity.csv", "shortcuts.csv", "answers_by_tube.csv", "overlays"

CARDS = 4
"""How many found positives, and how many missed ones, are shown."""

SCORES = {"pointing": "Pointing game", "auprc": "AUPRC of pixels", "energy": "Heat inside the outline"}
NAMES = {
    "heat map": "The heat map",
    "PyTorch twin": "Heat map of the PyTorch twin",
    "segmenter": "The segmenter’s map",
    "centre": "The centre of the image",
    "training masks": "Sum of the training masks",
}
MEANINGS = {
    BORDER_REGION: "a sixteenth of the side along each edge",
    TUBE: "treatment of a pneumothorax",
    MARKER: "the letter of the side, L or R",
    WORDS: "initials and other burned-in text",
    LEADS: "electrodes, wires, lines and other tubes",
}
"""What a region is; other kinds in a table of devices are shown by their name alone."""
METHODS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "hirescam": "HiResCAM"}


@dataclass(frozen=True)
class SaliencyReport:
    """Everything that the page shows, as text."""

    title: str
    source: str
    """A sentence on which network the maps come from, where there is more than one; else ''."""
    sentences: list[str]
    """The results in words; the first is the pointing game's."""
    headings: list[str]
    rows: list[dict[str, Any]]
    """``map`` and ``cells``, each with ``value``, ``interval`` and ``above`` (whether the interval is above chance)."""
    sanity: list[dict[str, str]]
    shortcuts: list[dict[str, str]]
    tube_accuracy: list[dict[str, str]]
    groups: list[dict[str, Any]]
    panels: int
    """How many pictures of the radiograph each card has side by side."""
    methods: list[dict[str, str]]
    images: int
    subset: str
    chance: str


def read_saliency_report(folder: Path) -> SaliencyReport | None:
    """Read an explain folder into text for the page; None where there is none.

    Raises:
        PneumoError: the folder's files cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        check = pd.read_csv(folder / CHECK)
        per_image = pd.read_csv(folder / IMAGES, dtype={"image_id": str})
        sanity = pd.read_csv(folder / SANITY) if (folder / SANITY).is_file() else None
        shortcuts = pd.read_csv(folder / SHORTCUTS)
        methods = pd.read_csv(folder / CHOICE)
        by_tube = pd.read_csv(folder / ANSWERS) if (folder / ANSWERS).is_file() else None
        return SaliencyReport(
            title=f"{METHODS[record['method']]} of stage {record['stage']}",
            source=source_sentence(record),
            sentences=_sentences(record, check, sanity, methods),
            headings=list(SCORES.values()),
            rows=_score_rows(check),
            sanity=_sanity_rows(sanity) if sanity is not None else [],
            shortcuts=_shortcut_rows(shortcuts),
            tube_accuracy=_tube_rows(by_tube) if by_tube is not None else [],
            groups=_picture_groups(folder, per_image, bool(record.get("detector"))),
            panels=3 if "segmenter" in set(check["map"]) else 2,
            methods=_method_rows(methods),
            images=int(record["positives"]),
            subset=str(record["subset"]),
            chance=shown(float(check["chance"].iloc[0])),
        )
    except (OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise PneumoError(f"{folder} is damaged ({error}). Run keras-pneumo explain, or join, again.") from error


def source_sentence(record: dict[str, Any]) -> str:
    """Which network the maps come from and whose predictions are shown; '' for a run with one checkpoint."""
    checkpoints, classifiers = int(record.get("checkpoints", 1)), record.get("detector") or []
    best = f"the best of its {checkpoints} checkpoints; its predictions are the mean of all" if checkpoints > 1 else ""
    if not classifiers:
        return f"The heat maps are of {best}." if best else ""
    first = f", the first of the detector’s {len(classifiers)} classifiers" if len(classifiers) > 1 else ""
    segmenters = record.get("segmenters") or []
    mean = f"the mean of {len(segmenters)} segmenters, " if len(segmenters) > 1 else ""
    beside = f" The segmenter’s map is {mean}the one that gives the detector’s outlines." if segmenters else ""
    network = f" ({best})" if best else ""
    predictions = "Probabilities, and whether a positive is found or missed, are the detector’s."
    return f"The heat maps are of the classifier {record['run']}{network}{first}.{beside} {predictions}"


def percent(value: float, sign: bool = False) -> str:
    """A share in per cent with a real minus sign, and a dash for NaN.

    Two decimals below one per cent, else one: a marker covers a thousandth of an image.
    """
    if not np.isfinite(value):
        return "–"
    digits = 2 if abs(value) < 0.00995 else 1
    text = f"{100 * value:+.{digits}f}%" if sign else f"{100 * value:.{digits}f}%"
    return "0.0%" if text in ("+0.00%", "-0.00%", "0.00%") else text.replace("-", "−")


def _sentences(
    record: dict[str, Any], check: pd.DataFrame, sanity: pd.DataFrame | None, methods: pd.DataFrame
) -> list[str]:
    """The results in sentences; the first is the pointing game's."""
    sentences = [_pointing_sentence(check)]
    if (check["map"] == "segmenter").any():
        hits = shown(_score(check, "segmenter", "pointing").value)
        difference = _difference(check, "segmenter")
        sentences.append(
            f"Compared with the segmenter’s map, whose highest pixel hits on {hits}, the heat map is {difference}."
        )
    difference = _difference(check, "training masks")
    sentences.append(f"Compared with the sum of the training masks, which uses no image, the heat map is {difference}.")
    sentences.append(_sanity_sentence(record, sanity))
    patients = int(_score(check, "heat map", "pointing").patients)
    if patients < FEW:
        sentences.append(
            f"Only {counted(patients, 'patient')}: bootstrap intervals by patient are too narrow below about {FEW}."
        )
    if record["chosen_on_validation"]:
        best = methods.iloc[0]
        sentences.append(
            f"Method and stage were chosen by the pointing game on {int(best.images):,} validation positives "
            f"({shown(float(best.pointing))} there), out of {len(methods)} combinations."
        )
    if record["without_heat"]:
        sentences.append(
            f"{record['without_heat']:,} of the positives have no heat: no part of the image raises the output."
        )
    if record.get("twin"):
        sentences.append(_twin_sentence(record["twin"]))
    return sentences


def _pointing_sentence(check: pd.DataFrame) -> str:
    """The result of the pointing game."""
    row = _score(check, "heat map", "pointing")
    words = ("above chance", "below chance", "not distinguishable from chance")
    comparison = _side(row, row.above_low, row.above_high, words)
    return (
        f"The hottest pixel lies in the true outline on a share of {shown(row.value)} of {int(row.images):,} positives "
        f"of {counted(int(row.patients), 'patient')} (95% interval {shown(row.low)} to {shown(row.high)}). This is "
        f"{comparison} ({shown(row.chance)})."
    )


def _sanity_sentence(record: dict[str, Any], sanity: pd.DataFrame | None) -> str:
    """Whether the maps change when the weights are made random."""
    if sanity is None:
        return "Uninformative: not one of these images has any heat."
    correlation = shown(float(sanity["likeness"].iloc[-1]), 2)
    images = int(record["sanity_images"])
    if record["uninformative"]:
        return (
            f"Uninformative: with all weights random, the maps of {images} images stay similar (rank correlation "
            f"{correlation}; the limit is {UNINFORMATIVE}). They show the radiograph, not what the network learned."
        )
    return (
        f"The maps depend on the trained weights: with all weights random, their rank correlation with the original "
        f"maps is {correlation} on {images} images ({UNINFORMATIVE} or more would be uninformative)."
    )


def _twin_sentence(twin: dict[str, float]) -> str:
    """How well the maps of the PyTorch twin agree."""
    return (
        f"The maps of the PyTorch twin agree with these: mean rank correlation {twin['rank_correlation']:.4f} (lowest "
        f"{twin['lowest']:.4f}), largest difference in heat {twin['difference']:.1e}, the same hottest pixel on "
        f"{100 * twin['same_peak']:.0f}%, largest difference in logits {twin['logit_difference']:.1e}."
    )


def _difference(check: pd.DataFrame, reference: str) -> str:
    """The heat map compared with another map, by two of the scores."""
    parts = []
    for score, name in (("pointing", "the pointing game"), ("auprc", "AUPRC")):
        row = _score(check, reference, score)
        comparison = _side(row, row.ahead_low, row.ahead_high, ("better", "worse", "not clearly different"))
        parts.append(
            f"{comparison} in {name} (difference {shown(row.ahead)}, {shown(row.ahead_low)} to {shown(row.ahead_high)})"
        )
    return " and ".join(parts)


def _side(row: Any, low: float, high: float, words: tuple[str, str, str]) -> str:
    """Above, below or neither, by an interval by patient; one patient alone has an interval of no width."""
    if row.patients < 2:
        return words[2]
    return words[0] if low > 0 else words[1] if high < 0 else words[2]


def _score(check: pd.DataFrame, name: str, score: str) -> Any:
    """The row of one map's score."""
    return check[(check["map"] == name) & (check["score"] == score)].iloc[0]


def _score_rows(check: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(check["map"]):
        cells = []
        for score in SCORES:
            row = _score(check, name, score)
            cells.append(
                {
                    "value": shown(row.value),
                    "interval": f"{shown(row.low)} to {shown(row.high)}",
                    "above": bool(row.above_low > 0 and row.patients > 1),
                }
            )
        rows.append({"map": NAMES.get(str(name), str(name)), "cells": cells, "own": name == "heat map"})
    return rows


def _sanity_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "step": str(row.step),
            "block": str(row.block),
            "likeness": shown(row.likeness, 2),
            "span": f"{shown(row.lowest, 2)} to {shown(row.highest, 2)}",
        }
        for row in _named_rows(table)
    ]


def _shortcut_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "region": str(row.region).capitalize(),
            "meaning": MEANINGS.get(str(row.region), ""),
            "images": f"{int(row.images):,}",
            "heat": percent(row.heat),
            "area": percent(row.area),
            "excess": percent(row.excess, sign=True),
            "interval": f"{percent(row.low, sign=True)} to {percent(row.high, sign=True)}" if row.images else "–",
        }
        for row in _named_rows(table)
    ]


def _tube_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    tubes = {"with": "with a chest tube", "without": "without a chest tube", "difference": "difference"}
    names = {"positives": "Sensitivity", "negatives": "Specificity"}
    return [
        {
            "name": f"{names[str(row.images_of)]}, {tubes[str(row.tube)]}",
            "images": f"{int(row.images):,}",
            "right": shown(row.right),
            "interval": f"{shown(row.low)} to {shown(row.high)}" if np.isfinite(row.low) else "–",
        }
        for row in _named_rows(table)
    ]


def _method_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    if "pointing" not in table:
        return []
    return [
        {
            "name": f"{METHODS[str(row.method)]}, stage {row.stage}",
            **{score: shown(getattr(row, score)) for score in SCORES},
        }
        for row in _named_rows(table)
    ]


def _picture_groups(folder: Path, per_image: pd.DataFrame, of_detector: bool) -> list[dict[str, Any]]:
    """Pictures of some positives, chosen at random; found and missed ones apart where predictions are given."""
    order = per_image.sample(frac=1, random_state=0)
    if "found" in order:
        parts = [("Found", order[order["found"] == 1]), ("Missed", order[order["found"] == 0])]
    else:
        parts = [("Positives", order)]
    groups = []
    for title, part in parts:
        cards = []
        for row in _named_rows(part.head(CARDS)):
            picture = _picture(folder / PICTURES / f"{row.image_id}.png")
            cards.append({"image_id": row.image_id, "picture": picture, "probability": shown(row.probability)})
        by = " by the detector" if of_detector and title != "Positives" else ""
        groups.append({"title": f"{title}{by}", "count": len(part), "cards": cards})
    return groups


def _picture(path: Path, height: int = 390, quality: int = 82) -> str:
    """An overlay as a ``data:image/jpeg`` address; '' where the file is missing."""
    content = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        return ""
    scale = height / image.shape[0]
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise PneumoError(f"{path} could not be packed as JPEG for the report. Install opencv-python-headless again.")
    return "data:image/jpeg;base64," + base64.b64encode(packed.tobytes()).decode()


def _named_rows(table: pd.DataFrame) -> list[Any]:
    """The rows, with the columns as attributes."""
    return list(table.itertuples())
