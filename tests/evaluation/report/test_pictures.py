"""Radiographs with outlines: small grey pictures, exact outlines, and a gallery of every kind of image."""

import numpy as np
import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.pictures import data_uri, gallery, image_loader, outline


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path, n=200)


def test_gallery_shows_every_kind(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 1), submit(tmp_path / "b", truth, "B", 1, seed=1))
    cards = gallery(board, most=30)
    assert len(cards) == len({card.image_id for card in cards}) == 30
    kinds = [card.tags.split()[0] for card in cards]
    assert [kinds.count(kind) for kind in ("disagree", "wrong", "right")] == [10, 10, 10]
    position = {image_id: number for number, image_id in enumerate(truth.cases.image_id)}
    for card in cards:
        index = position[card.image_id]
        right = [bool(team.decision[index]) == truth.pneumothorax[index] for team in board.ordered[:2]]
        assert [line.right for line in card.lines] == right
        assert card.tags.split()[0] == ("right" if all(right) else "disagree" if any(right) else "wrong")
        assert ("alarm" in card.tags) == (not truth.pneumothorax[index] and not all(right))
        assert (card.truth != "") == bool(truth.pneumothorax[index])
    assert gallery(board_of(truth, tmp_path / "a")) == []


def test_row_38_a_replaced_radiograph_is_not_shown(prepared_copy):
    load = image_loader(prepared_copy)
    first, second = sorted((prepared_copy / "images_128").iterdir())[:2]
    assert load(first.stem).shape == (128, 128)
    first.write_bytes(second.read_bytes())
    with pytest.raises(PneumoError, match="is missing or damaged"):
        load(first.stem)


def test_outline_of_a_square_and_of_nothing():
    mask = np.zeros((1024, 1024), np.uint8)
    mask[10:20, 30:50] = 1
    path = outline(rle.runs_of(rle.encode(mask)))
    corners = {tuple(map(int, pair.split())) for pair in path.strip("MZ").split("L")}
    assert corners == {(30, 10), (30, 19), (49, 19), (49, 10)}
    assert outline(rle.runs_of("-1")) == ""


def test_pictures_are_small_and_grey_or_refused():
    import base64

    import cv2

    uri = data_uri(np.zeros((1000, 500), np.uint8), side=200)
    packed = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
    assert cv2.imdecode(packed, cv2.IMREAD_UNCHANGED).shape == (200, 100)
    with pytest.raises(PneumoError, match="must be a grey uint8 image"):
        data_uri(np.zeros((4, 4, 3), np.uint8))
