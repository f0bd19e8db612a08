"""The pictures of a report's errors by kind: false negatives, false positives, and the lowest Dice.

In: a scored :class:`Board` of one submission, and a way to get at the radiographs. Out: groups of cards for the page,
each with how many of how many are shown. The most confident errors come first, since they teach most.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.board.verdict import shown
from keras_pneumo.evaluation.report.pictures import ImageLoader, data_uri, outline

MOST = 12
"""How many images of each kind are shown."""


def error_groups(team: Entry, board: Board, image: ImageLoader | None, most: int = MOST) -> list[dict[str, Any]]:
    """The errors of a submission by kind: ``title``, ``shown`` (which of how many), ``cards``.

    Args:
        team: the submission.
        board: on which it is scored.
        image: gives the radiograph of an image id, or None.
        most: largest number of cards of each kind.
    """
    truth = board.truth
    areas = np.zeros(len(truth.cases)) if truth.areas is None else truth.areas
    predicted = None if team.masks is None else team.masks.predicted_pixels.to_numpy(float)
    confidence = team.probability if team.probability is not None else predicted
    if confidence is None:
        return []
    score = "probability" if team.probability is not None else "predicted area"
    kinds = [
        ("False negatives", truth.pneumothorax & ~team.decision, (-areas, confidence), f"lowest {score} first"),
        ("False positives", ~truth.pneumothorax & team.decision, (-confidence,), f"highest {score} first"),
    ]
    if team.masks is not None and predicted is not None:
        found = truth.pneumothorax & (predicted > 0)
        dice = team.masks.dice.to_numpy(float)
        kinds.append(("Lowest Dice of the positives with a mask", found, (-areas, dice), "lowest first"))
    groups = []
    for title, members, keys, order in kinds:
        chosen = np.flatnonzero(members)
        # lexsort's last key counts most: of equal ones the larger pneumothorax is the worse error.
        chosen = chosen[np.lexsort([key[chosen] for key in keys])]
        cards = [_card(int(index), team, board, image) for index in chosen[:most]]
        shown_of = f"{len(cards):,} of {len(chosen):,} shown, {order}" if cards else "none"
        groups.append({"title": title, "shown": shown_of, "cards": cards})
    return groups


def _card(index: int, team: Entry, board: Board, image: ImageLoader | None) -> dict[str, Any]:
    truth = board.truth
    image_id = str(truth.cases.image_id[index])
    runs = team.submission.runs if team.submission else None
    return {
        "image_id": image_id,
        "picture": data_uri(image(image_id)) if image else "",
        "truth": outline(truth.runs[index]) if truth.runs is not None else "",
        "prediction": outline(runs[index]) if runs is not None else "",
        "probability": "" if team.probability is None else shown(float(team.probability[index])),
        "dice": "" if team.masks is None else shown(float(team.masks.dice[index])),
        "true_pixels": int(truth.areas[index]) if truth.areas is not None else 0,
    }
