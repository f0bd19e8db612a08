"""What is said, in sentences, of where a network looks, and of whose heat maps they are.

In: the record and the tables of an ``explain`` folder. Out: text. No more is claimed than an interval holds.

What the report says of where a network looks, read from the folder that ``explain`` wrote.

In: the ``explain`` folder of a run or a detector: a record, small tables, and pictures. Out: rows of text, sentences
and pictures for the page. It reads files and no network, so that a report can be written again without TensorFlow.
"""

from __future__ import annotations

import base64
import json
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


def sentences(
    record: dict[str, Any], check: pd.DataFrame, sanity: pd.DataFrame | None, choice: pd.DataFrame
) -> list[str]:
    """All that is said of the maps; the first is the pointing game's."""
    found = [pointing_sentence(check), blind_sentence(check), sanity_sentence(record, sanity)]
    if (check["map"] == "segmenter").any():
        found.insert(1, segmenter_sentence(check))
    patients = int(_row(check, "heat map", "pointing").patients)
    if patients < FEW:
        found.append(f"Only {patients} patients: bootstrap intervals by patient are too narrow below about {FEW}.")
    if record["chosen_on_validation"]:
        best = choice.iloc[0]
        found.append(
            f"Method and stage were chosen by the pointing game on {int(best.images):,} validation positives "
            f"({shown(float(best.pointing))} there), out of {len(choice)}."
        )
    if record["without_heat"]:
        found.append(
            f"Nothing speaks for a pneumothorax, so there is no heat, on {record['without_heat']:,} of the positives."
        )
    if record.get("twin"):
        found.append(twin_sentence(record["twin"]))
    return found


def source_sentence(record: dict[str, Any]) -> str:
    """Whose maps are shown and who answers, where that is not simply the one network; else nothing."""
    checkpoints, joined = int(record.get("checkpoints", 1)), record.get("detector") or []
    best = f"the best of its {checkpoints} checkpoints, whose mean is its answer" if checkpoints > 1 else ""
    if not joined:
        return f"The heat maps are of {best}." if best else ""
    first = f", the first of {len(joined)} that are joined" if len(joined) > 1 else ""
    outliners = record.get("segmenters") or []
    mean = f"the mean of {len(outliners)} segmenters’, " if len(outliners) > 1 else ""
    beside = f" The segmenter’s map beside them is {mean}the one that the detector outlines by." if outliners else ""
    network = f" ({best})" if best else ""
    answers = "Probabilities, and what is found or missed, are the detector’s."
    return f"The heat maps are of the classifier {record['run']}{network}{first}.{beside} {answers}"


def pointing_sentence(check: pd.DataFrame) -> str:
    """The check's first figure in a sentence."""
    row = _row(check, "heat map", "pointing")
    verdict = (
        "above chance" if row.above_low > 0 else "below chance" if row.above_high < 0 else "not told apart from chance"
    )
    return (
        f"The hottest pixel lies in the true outline on {shown(row.value)} of {int(row.images):,} positives of "
        f"{int(row.patients):,} patients (95% interval {shown(row.low)} to {shown(row.high)}), {verdict}, which is "
        f"{shown(row.chance)}."
    )


def segmenter_sentence(check: pd.DataFrame) -> str:
    """The heat map beside a map that was taught to outline, in a sentence."""
    hits = shown(_row(check, "segmenter", "pointing").value)
    return f"Beside the segmenter’s map, whose highest pixel hits on {hits}, it is {_lead(check, 'segmenter')}."


def blind_sentence(check: pd.DataFrame) -> str:
    """The heat map beside a map that has seen no image, in a sentence."""
    return f"Beside a map that has seen no image, where training masks lie, it is {_lead(check, 'training masks')}."


def sanity_sentence(record: dict[str, Any], sanity: pd.DataFrame | None) -> str:
    """What the maps of random weights say."""
    if sanity is None:
        return "Uninformative: not one of these images has any heat."
    last = float(sanity["likeness"].iloc[-1])
    images = int(record["sanity_images"])
    if record["uninformative"]:
        return (
            f"Uninformative: with all weights random the maps of {images} images stay much the same (rank correlation "
            f"{shown(last, 2)}, {UNINFORMATIVE} or more), so they show the radiograph, not what was learnt."
        )
    return (
        f"The maps change when what was learnt is taken away: with all weights random their rank correlation with the "
        f"true ones is {shown(last, 2)} on {images} images (uninformative would be {UNINFORMATIVE} or more)."
    )


def twin_sentence(twin: dict[str, float]) -> str:
    """How alike the PyTorch twin's maps are."""
    return (
        f"The PyTorch twin’s maps agree with these: mean rank correlation {twin['rank_correlation']:.4f} (lowest "
        f"{twin['lowest']:.4f}), heat apart by at most {twin['difference']:.1e}, the same hottest pixel on "
        f"{100 * twin['same_peak']:.0f}%, logits apart by at most {twin['logit_difference']:.1e}."
    )


def _lead(check: pd.DataFrame, rival: str) -> str:
    """Whether the heat map is ahead of another, by two of the scores."""
    parts = []
    for score, name in (("pointing", "pointing"), ("auprc", "AUPRC")):
        row = _row(check, rival, score)
        verdict = "ahead" if row.ahead_low > 0 else "behind" if row.ahead_high < 0 else "not told apart"
        parts.append(
            f"{verdict} in {name} (difference {shown(row.ahead)}, {shown(row.ahead_low)} to {shown(row.ahead_high)})"
        )
    return " and ".join(parts)


def _row(check: pd.DataFrame, name: str, score: str) -> Any:
    return check[(check["map"] == name) & (check["score"] == score)].iloc[0]


FOLDER = "explain"
"""Name of the folder inside a run or a detector."""
RECORD, CHECK, IMAGES, CHOICE = "explain.json", "check.csv", "per_image.csv", "choice.csv"
SANITY, SHORTCUTS, ANSWERS, PICTURES = "sanity.csv", "shortcuts.csv", "answers_by_tube.csv", "overlays"

CARDS = 4
"""How many found positives, and how many missed ones, are shown."""

SCORES = {"pointing": "Pointing game", "auprc": "AUPRC of pixels", "energy": "Heat inside the outline"}
NAMES = {
    "heat map": "The heat map",
    "PyTorch twin": "The same by the PyTorch twin",
    "segmenter": "The segmenter’s map",
    "centre": "The middle of every image",
    "training masks": "Where training masks lie",
}
MEANINGS = {
    BORDER_REGION: "the outer sixteenth of the side",
    TUBE: "there because a pneumothorax was treated",
    MARKER: "the letter of the side",
    WORDS: "initials, and what is burned in",
    LEADS: "electrodes, wires, lines and other tubes",
}
"""What a region is; of other kinds in a table of devices no more than the name is known."""
METHODS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "hirescam": "HiResCAM"}


@dataclass(frozen=True)
class SaliencyReport:
    """Everything that the page shows, as text."""

    title: str
    source: str
    """A sentence on which network the maps are of, where there is more than one; else ''."""
    sentences: list[str]
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
    """What the page shows of an explain folder; None where there is none.

    Raises:
        PneumoError: the folder's files cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check = pd.read_csv(folder / CHECK)
        per_image = pd.read_csv(folder / IMAGES, dtype={"image_id": str})
        sanity = pd.read_csv(folder / SANITY) if (folder / SANITY).is_file() else None
        shortcuts = pd.read_csv(folder / SHORTCUTS)
        methods = pd.read_csv(folder / CHOICE)
        answers = pd.read_csv(folder / ANSWERS) if (folder / ANSWERS).is_file() else None
        return SaliencyReport(
            title=f"{METHODS[record['method']]} of stage {record['stage']}",
            source=source_sentence(record),
            sentences=sentences(record, check, sanity, methods),
            headings=list(SCORES.values()),
            rows=_rows(check),
            sanity=[
                {
                    "step": str(row.step),
                    "block": str(row.block),
                    "likeness": shown(row.likeness, 2),
                    "span": f"{shown(row.lowest, 2)} to {shown(row.highest, 2)}",
                }
                for row in ([] if sanity is None else _lines(sanity))
            ],
            shortcuts=_shortcuts(shortcuts),
            tube_accuracy=_tube_accuracy(answers) if answers is not None else [],
            groups=_groups(folder, per_image, bool(record.get("detector"))),
            panels=3 if "segmenter" in set(check["map"]) else 2,
            methods=_methods(methods),
            images=int(record["positives"]),
            subset=str(record["subset"]),
            chance=shown(float(check["chance"].iloc[0])),
        )
    except (OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise PneumoError(f"{folder} is damaged ({error}). Run keras-pneumo explain, or join, again.") from error


def _rows(check: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(check["map"]):
        cells = []
        for score in SCORES:
            row = check[(check["map"] == name) & (check["score"] == score)].iloc[0]
            cells.append(
                {
                    "value": shown(row.value),
                    "interval": f"{shown(row.low)} to {shown(row.high)}",
                    "above": bool(row.above_low > 0),
                }
            )
        rows.append({"map": NAMES.get(str(name), str(name)), "cells": cells, "own": name == "heat map"})
    return rows


def _shortcuts(table: pd.DataFrame) -> list[dict[str, str]]:
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
        for row in _lines(table)
    ]


def _tube_accuracy(table: pd.DataFrame) -> list[dict[str, str]]:
    words = {"with": "with a chest tube", "without": "without", "difference": "difference"}
    names = {"positives": "Positives found", "negatives": "Negatives left alone"}
    return [
        {
            "name": f"{names[str(row.images_of)]}, {words[str(row.tube)]}",
            "images": f"{int(row.images):,}",
            "right": shown(row.right),
            "interval": f"{shown(row.low)} to {shown(row.high)}" if np.isfinite(row.low) else "–",
        }
        for row in _lines(table)
    ]


def _methods(table: pd.DataFrame) -> list[dict[str, str]]:
    if "pointing" not in table:
        return []
    return [
        {
            "name": f"{METHODS[str(row.method)]}, stage {row.stage}",
            **{score: shown(getattr(row, score)) for score in SCORES},
        }
        for row in _lines(table)
    ]


def _groups(folder: Path, per_image: pd.DataFrame, joined: bool) -> list[dict[str, Any]]:
    """Pictures of some positives, drawn by lot: found and missed ones apart, where it is known which is which."""
    order = per_image.sample(frac=1, random_state=0)
    if "found" in order:
        parts = [("Found", order[order["found"] == 1]), ("Missed", order[order["found"] == 0])]
    else:
        parts = [("Positives", order)]
    groups = []
    for title, part in parts:
        cards = []
        for row in _lines(part.head(CARDS)):
            picture = _picture(folder / PICTURES / f"{row.image_id}.png")
            cards.append({"image_id": row.image_id, "picture": picture, "probability": shown(row.probability)})
        by = " by the detector" if joined and title != "Positives" else ""
        groups.append({"title": f"{title}{by}", "count": len(part), "cards": cards})
    return groups


def _picture(path: Path, height: int = 390, quality: int = 82) -> str:
    """An overlay as a ``data:image/jpeg`` address; '' where the file is gone."""
    content = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        return ""
    scale = height / image.shape[0]
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise PneumoError(f"{path} could not be packed as JPEG for the report.")
    return "data:image/jpeg;base64," + base64.b64encode(packed.tobytes()).decode()


def _lines(table: pd.DataFrame) -> list[Any]:
    """The rows, with the columns as attributes."""
    return list(table.itertuples())


def percent(value: float, sign: bool = False) -> str:
    """A share in per cent with a real minus sign; a dash for none. Two decimals below one per cent, else one: a marker
    covers a thousandth of an image."""
    if not np.isfinite(value):
        return "–"
    digits = 2 if abs(value) < 0.00995 else 1
    text = f"{100 * value:+.{digits}f}%" if sign else f"{100 * value:.{digits}f}%"
    return "0.0%" if text in ("+0.00%", "-0.00%", "0.00%") else text.replace("-", "−")
