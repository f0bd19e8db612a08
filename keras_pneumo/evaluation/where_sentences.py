"""What is said, in sentences, of where a network looks, and of whose heat maps they are.

In: the record and the tables of an ``explain`` folder. Out: text. No more is claimed than an interval holds.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from keras_pneumo.evaluation.saliency import UNINFORMATIVE
from keras_pneumo.evaluation.verdict import FEW, shown


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


def whose_sentence(record: dict[str, Any]) -> str:
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
