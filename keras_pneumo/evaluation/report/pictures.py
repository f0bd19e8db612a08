"""Radiographs and outlines for a page, as small JPEG images and SVG paths inside the page.

In: a grey image as uint8 array, masks as runs. Out: a ``data:`` address of a JPEG, and outlines as SVG paths on the
1024 grid that lie over it. Outlines stay lines, so a reader can switch them off and see the radiograph beneath.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.manifest import read_manifest
from keras_pneumo.data.prepared.rendering import image_name
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.scoring.masks import size_of
from keras_pneumo.storage.files import sha256_bytes

ImageLoader = Callable[[str], np.ndarray]
"""Gives the radiograph of an image id: uint8, shape (height, width), black air."""


def image_loader(truth: Path) -> ImageLoader | None:
    """Radiographs of the prepared folder that a truth is in, at the smallest size from 256 up; None without one.

    Where the folder's manifest records an image's hash, another image in its place is refused.
    """
    folder = Path(truth) if Path(truth).is_dir() else Path(truth).parent
    sizes = sorted(int(p.name[7:]) for p in folder.glob("images_*") if p.is_dir() and p.name[7:].isdigit())
    if not sizes:
        return None
    size = next((size for size in sizes if size >= 256), sizes[-1])
    try:
        recorded = dict(read_manifest(folder).get("files", {}))
    except (PneumoError, TypeError, ValueError):  # the truth's own reading refuses a damaged one
        recorded = {}

    def load(image_id: str) -> np.ndarray:
        path = folder / image_name(image_id, size)
        data = path.read_bytes() if path.exists() else b""
        known = recorded.get(image_name(image_id, size))
        intact = bool(data) and (known is None or sha256_bytes(data) == known)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if intact else None
        if image is None:
            raise PneumoError(f"{path} is missing or damaged. Prepare the folder again.")
        return np.asarray(image, np.uint8)

    return load


def data_uri(image: np.ndarray, side: int = 384, quality: int = 82) -> str:
    """A grey image as a ``data:image/jpeg`` address, its longer side at most ``side`` pixels.

    Raises:
        PneumoError: it is not a uint8 array of two dimensions.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise PneumoError(f"A radiograph must be a grey uint8 image, not {image.dtype} of shape {image.shape}.")
    scale = side / max(image.shape)
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise PneumoError(
            "A radiograph could not be packed as JPEG for the report. Install opencv-python-headless again."
        )
    return "data:image/jpeg;base64," + base64.b64encode(packed.tobytes()).decode()


def outline(runs: rle.Runs, tolerance: float = 1.5) -> str:
    """The mask's outline as an SVG path on the 1024 grid, holes included; '' for an empty mask.

    Args:
        runs: the mask.
        tolerance: how far, in pixels of the grid, the simplified line may stray.
    """
    contours, _ = cv2.findContours(rle.draw(runs), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    path = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, tolerance, closed=True).reshape(-1, 2)
        path.append("M" + "L".join(f"{x} {y}" for x, y in points.tolist()) + "Z")
    return "".join(path)


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
SIZE_NAMES = {
    "none": "no pneumothorax",
    "small": "small",
    "medium": "medium",
    "large": "large",
    "positive": "pneumothorax",
}


@dataclass(frozen=True)
class Line:
    """The prediction of one team on one image."""

    team: str
    colour: int
    right: bool
    text: str
    path: str


@dataclass(frozen=True)
class Card:
    """One image: its tags (agreement and errors), radiograph (may be ''), true outline and the teams' lines."""

    image_id: str
    tags: str
    size: str
    picture: str
    truth: str
    lines: list[Line]

    @property
    def outlines(self) -> list[tuple[str, str]]:
        """What is drawn over the radiograph: the style's class of each outline, and its path."""
        return [("truth", self.truth), *((f"s{line.colour}", line.path) for line in self.lines)]


def gallery(board: Board, image: ImageLoader | None = None, most: int = MOST_CARDS) -> list[Card]:
    """Choose the images that differ most between teams and make a card of each; none for a single team.

    Args:
        board: scored, with two or more submissions; the best four are shown.
        image: gives the radiograph of an image id, or None.
        most: largest number of cards, shared between the groups "disagree", "all wrong" and "all right".
    """
    teams = [entry for entry in board.ordered if entry.kind == "submission"][:MOST_TEAMS]
    if len(teams) < 2:
        return []
    truth = board.truth
    right = np.stack([team.decision == truth.pneumothorax for team in teams])
    agreement = np.where(right.all(axis=0), "right", np.where(right.any(axis=0), "disagree", "wrong"))
    interest = _interest(teams, board)
    chosen: list[int] = []
    kinds = ("disagree", "wrong", "right")
    queues = {kind: [int(i) for i in np.argsort(-interest, kind="stable") if agreement[i] == kind] for kind in kinds}
    while len(chosen) < most and any(queues.values()):
        chosen += [queues[kind].pop(0) for kind in kinds if queues[kind]][: most - len(chosen)]
    chosen.sort(key=lambda index: (kinds.index(agreement[index]), -interest[index]))
    return [_card(index, str(agreement[index]), teams, board, image) for index in chosen]


def _interest(teams: list[Entry], board: Board) -> np.ndarray:
    """How interesting each image is: the teams' spread in probability and Dice, plus their mean error."""
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


def _card(index: int, agreement: str, teams: list[Entry], board: Board, image: ImageLoader | None) -> Card:
    truth = board.truth
    positive = bool(truth.pneumothorax[index])
    tags = [agreement]
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
    if team.masks is not None and team.submission is not None and team.submission.runs is not None:
        words.append(f"Dice {team.masks.dice[index]:.3f}")
        path = outline(team.submission.runs[index]) if team.masks.predicted_pixels[index] else ""
    words.append("yes" if team.decision[index] else "no")
    return Line(team.team, colour, bool(team.decision[index]) == positive, ", ".join(words), path)
