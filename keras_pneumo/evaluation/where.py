"""What the report says of where a network looks, read from the folder that ``explain`` wrote.

In: a run's ``explain`` folder: a record, small tables, and pictures. Out: rows of text, sentences and pictures for the
page. It reads files and no network, so that a report can be written again without TensorFlow.
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

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.saliency import UNINFORMATIVE
from keras_pneumo.evaluation.verdict import shown

FOLDER = "explain"
"""Name of the folder inside a run."""
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
METHODS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "hirescam": "HiResCAM"}


@dataclass(frozen=True)
class Where:
    """Everything that the page shows, as text."""

    title: str
    sentences: list[str]
    headings: list[str]
    rows: list[dict[str, Any]]
    """``map`` and ``cells``, each with ``value``, ``interval`` and ``above`` (whether the interval is above chance)."""
    sanity: list[dict[str, str]]
    shortcuts: list[dict[str, str]]
    answers: list[dict[str, str]]
    groups: list[dict[str, Any]]
    choice: list[dict[str, str]]
    images: int
    subset: str
    chance: str


def read_where(folder: Path) -> Where | None:
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
        choice = pd.read_csv(folder / CHOICE)
        answers = pd.read_csv(folder / ANSWERS) if (folder / ANSWERS).is_file() else None
        return Where(
            title=f"{METHODS[record['method']]} of stage {record['stage']}",
            sentences=_sentences(record, check, sanity, choice),
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
            answers=_answers(answers) if answers is not None else [],
            groups=_groups(folder, per_image),
            choice=_choice(choice),
            images=int(record["positives"]),
            subset=str(record["subset"]),
            chance=shown(float(check["chance"].iloc[0])),
        )
    except (OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise PneumoError(f"{folder} is damaged ({error}). Run keras-pneumo explain on the run again.") from error


def pointing_sentence(check: pd.DataFrame) -> str:
    """The check's first figure in a sentence."""
    row = check[(check["map"] == "heat map") & (check["score"] == "pointing")].iloc[0]
    verdict = (
        "above chance" if row.above_low > 0 else "below chance" if row.above_high < 0 else "not told apart from chance"
    )
    return (
        f"The hottest pixel lies in the true outline on {shown(row.value)} of {int(row.images):,} positives of "
        f"{int(row.patients):,} patients (95% interval {shown(row.low)} to {shown(row.high)}), {verdict}, which is "
        f"{shown(row.chance)}."
    )


def blind_sentence(check: pd.DataFrame) -> str:
    """The heat map beside a map that has seen no image, in a sentence."""
    parts = []
    for score, name in (("pointing", "pointing"), ("auprc", "AUPRC")):
        row = check[(check["map"] == "training masks") & (check["score"] == score)].iloc[0]
        verdict = "ahead" if row.ahead_low > 0 else "behind" if row.ahead_high < 0 else "not told apart"
        parts.append(
            f"{verdict} in {name} (difference {shown(row.ahead)}, {shown(row.ahead_low)} to {shown(row.ahead_high)})"
        )
    return f"Beside a map that has seen no image, where training masks lie, it is {' and '.join(parts)}."


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


def _sentences(
    record: dict[str, Any], check: pd.DataFrame, sanity: pd.DataFrame | None, choice: pd.DataFrame
) -> list[str]:
    found = [pointing_sentence(check), blind_sentence(check), sanity_sentence(record, sanity)]
    if record["chosen_on_validation"]:
        best = choice.iloc[0]
        found.append(
            f"Method and stage were chosen by the pointing game on {int(best.images):,} validation positives "
            f"({shown(float(best.pointing))} there), out of {len(choice)}."
        )
    if record["without_heat"]:
        found.append(f"On {record['without_heat']:,} of them nothing speaks for a pneumothorax, so there is no heat.")
    twin = record.get("twin")
    if twin:
        found.append(
            f"The PyTorch twin’s maps agree with these: mean rank correlation {twin['rank_correlation']:.4f} (lowest "
            f"{twin['lowest']:.4f}), heat apart by at most {twin['difference']:.1e}, the same hottest pixel on "
            f"{100 * twin['same_peak']:.0f}%, logits apart by at most {twin['logit_difference']:.1e}."
        )
    return found


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
            "images": f"{int(row.images):,}",
            "heat": percent(row.heat),
            "area": percent(row.area),
            "excess": percent(row.excess, sign=True),
            "interval": f"{percent(row.low, sign=True)} to {percent(row.high, sign=True)}" if row.images else "–",
        }
        for row in _lines(table)
    ]


def _answers(table: pd.DataFrame) -> list[dict[str, str]]:
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


def _choice(table: pd.DataFrame) -> list[dict[str, str]]:
    if "pointing" not in table:
        return []
    return [
        {
            "name": f"{METHODS[str(row.method)]}, stage {row.stage}",
            **{score: shown(getattr(row, score)) for score in SCORES},
        }
        for row in _lines(table)
    ]


def _groups(folder: Path, per_image: pd.DataFrame) -> list[dict[str, Any]]:
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
        groups.append({"title": title, "count": len(part), "cards": cards})
    return groups


def _picture(path: Path, width: int = 720, quality: int = 82) -> str:
    """An overlay as a ``data:image/jpeg`` address; '' where the file is gone."""
    content = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        return ""
    scale = width / image.shape[1]
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
    """A share in per cent with one decimal and a real minus sign; a dash for none."""
    if not np.isfinite(value):
        return "–"
    text = f"{100 * value:+.1f}%" if sign else f"{100 * value:.1f}%"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text.replace("-", "−")
