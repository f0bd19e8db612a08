"""Images worth looking at when teams are compared, with what each team drew and said.

In: a :class:`Board` of two or more teams. Out: cards with tags to filter by. Every kind of outcome has its share of
the cards, the telling ones first: where teams disagree most, where all are surely wrong, where all are right yet
draw badly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.teams import Entry
from keras_pneumo.evaluation.report.pictures import ImageLoader, data_uri, outline
from keras_pneumo.evaluation.scoring.masks import size_of

MOST_CARDS = 120
MOST_TEAMS = 4
"""Teams whose outlines are drawn; more lines over one radiograph cannot be told apart."""

OUTCOMES = {
    "disagree": "they disagree",
    "wrong": "all wrong",
    "right": "all right",
    "alarm": "false alarms",
    "missed": "missed",
}
SIZES = {"none": "no pneumothorax", "small": "small", "medium": "medium", "large": "large", "positive": "pneumothorax"}


@dataclass(frozen=True)
class Line:
    """What one team said of one image."""

    team: str
    colour: int
    right: bool
    text: str
    path: str


@dataclass(frozen=True)
class Card:
    """One image: its tags (outcomes and size), radiograph (may be ''), true outline and the teams' lines."""

    image_id: str
    tags: str
    size: str
    picture: str
    truth: str
    lines: list[Line]


def gallery(board: Board, image: ImageLoader | None = None, most: int = MOST_CARDS) -> list[Card]:
    """The cards, the most telling first; none for a single team.

    Args:
        board: scored, with two or more submissions; the best four are shown.
        image: gives the radiograph of an image id, or None.
        most: largest number of cards, shared between the outcomes "disagree", "all wrong" and "all right".
    """
    teams = [entry for entry in board.ordered if entry.kind == "submission"][:MOST_TEAMS]
    if len(teams) < 2:
        return []
    truth = board.truth
    right = np.stack([team.decision == truth.pneumothorax for team in teams])
    outcome = np.where(right.all(axis=0), "right", np.where(right.any(axis=0), "disagree", "wrong"))
    telling = _telling(teams, board)
    chosen: list[int] = []
    kinds = ("disagree", "wrong", "right")
    queues = {kind: [int(i) for i in np.argsort(-telling, kind="stable") if outcome[i] == kind] for kind in kinds}
    while len(chosen) < most and any(queues.values()):
        chosen += [queues[kind].pop(0) for kind in kinds if queues[kind]][: most - len(chosen)]
    chosen.sort(key=lambda index: (kinds.index(outcome[index]), -telling[index]))
    return [_card(index, str(outcome[index]), teams, board, image) for index in chosen]


def _telling(teams: list[Entry], board: Board) -> np.ndarray:
    """How much an image shows: spread of probabilities and of Dice between teams, and how wrong all of them are."""
    truth = board.truth.pneumothorax
    value = np.zeros(len(truth))
    probabilities = [team.probability for team in teams if team.probability is not None]
    if probabilities:
        stack = np.stack(probabilities)
        value += np.ptp(stack, axis=0) + np.abs(stack - truth).mean(axis=0)
    dice = [team.masks.dice.to_numpy() for team in teams if team.masks is not None]
    if dice:
        value += np.ptp(np.stack(dice), axis=0) + 1 - np.stack(dice).mean(axis=0)
    return value


def _card(index: int, outcome: str, teams: list[Entry], board: Board, image: ImageLoader | None) -> Card:
    truth = board.truth
    positive = bool(truth.pneumothorax[index])
    tags = [outcome]
    if not positive and any(team.decision[index] for team in teams):
        tags.append("alarm")
    if positive and not all(team.decision[index] for team in teams):
        tags.append("missed")
    size = "positive" if positive else "none"
    if truth.areas is not None and truth.areas[index]:
        size = str(size_of(truth.areas[index : index + 1])[0])
    image_id = str(truth.cases.image_id[index])
    return Card(
        image_id=image_id,
        tags=" ".join(tags),
        size=size,
        picture=data_uri(image(image_id), side=320) if image else "",
        truth=outline(truth.runs[index]) if truth.runs is not None and positive else "",
        lines=[_line(index, colour, team, positive) for colour, team in enumerate(teams)],
    )


def _line(index: int, colour: int, team: Entry, positive: bool) -> Line:
    words = [] if team.probability is None else [f"{team.probability[index]:.3f}"]
    path = ""
    if team.masks is not None and team.answers is not None and team.answers.runs is not None:
        words.append(f"Dice {team.masks.dice[index]:.3f}")
        path = outline(team.answers.runs[index]) if team.masks.predicted_pixels[index] else ""
    words.append("yes" if team.decision[index] else "no")
    return Line(team.team, colour, bool(team.decision[index]) == positive, ", ".join(words), path)
