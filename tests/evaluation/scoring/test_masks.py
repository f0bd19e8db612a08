"""Dice and its parts on run-length codes, against drawn masks and by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.masks import (
    average_precision,
    dice,
    dice_parts,
    mask_areas,
    overlap,
    pixel_auprc,
    size_of,
)


def runs(*texts):
    return [rle.runs_of(text) for text in texts]


def test_by_hand():
    table = overlap(runs("-1", "-1", "0 4", "0 4", "0 4"), runs("-1", "9 1", "-1", "2 4", "0 4"))
    assert table.dice.tolist() == [1, 0, 0, 0.5, 1]
    assert table.iou.tolist() == [1, 0, 0, pytest.approx(2 / 6), 1]
    assert table.true_pixels.tolist() == [0, 0, 4, 4, 4]
    assert table.predicted_pixels.tolist() == [0, 1, 0, 4, 4]
    assert table.shared_pixels.tolist() == [0, 0, 0, 2, 4]
    parts = dice_parts(table)
    assert parts["dice"] == 0.5
    assert parts["dice_positives"] == 0.5
    assert parts["dice_found"] == 0.75
    assert parts["negatives_left_empty"] == 0.5
    assert parts["positives_missed"] == pytest.approx(1 / 3)
    assert parts["dice_small"] == 0.5
    assert np.isnan(parts["dice_large"])


def test_dice_is_its_parts_put_together():
    table = overlap(runs("-1", "-1", "0 4", "0 4"), runs("-1", "9 1", "-1", "2 4"))
    parts = dice_parts(table)
    whole = 0.5 * parts["negatives_left_empty"] + 0.5 * (1 - parts["positives_missed"]) * parts["dice_found"]
    assert parts["dice"] == pytest.approx(whole)


@given(hnp.arrays(bool, (2, 7, 9)), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_equals_drawing(masks, empty_first, empty_second):
    first, second = masks[0] & (not empty_first), masks[1] & (not empty_second)
    texts = [rle.encode(mask) for mask in (first, second)]
    table = overlap([rle.runs_of(texts[0], 7, 9)], [rle.runs_of(texts[1], 7, 9)])
    total, shared = first.sum() + second.sum(), (first & second).sum()
    assert table.dice[0] == (1.0 if total == 0 else 2 * shared / total)
    assert table.iou[0] == (1.0 if total == 0 else shared / (first | second).sum())


def painted(text):
    """An EncodedPixels text painted with numpy alone, pixel by pixel run, as the competition's sample code does it."""
    flat = np.zeros(1024 * 1024, np.uint8)
    if text != "-1":
        at = 0
        for gap, length in np.array(text.split(), int).reshape(-1, 2):
            at += gap
            flat[at : at + length] = 1
            at += length
    return flat.reshape(1024, 1024).T


def blob(rng):
    """A random ellipse at full size, as text; sometimes none."""
    if rng.random() < 0.2:
        return "-1"
    y, x = np.mgrid[:1024, :1024]
    (cy, cx), (h, w) = rng.integers(100, 900, 2), rng.integers(3, 200, 2)
    return rle.encode(((y - cy) / h) ** 2 + ((x - cx) / w) ** 2 < 1)


def test_equals_painting_at_full_size():
    rng = np.random.default_rng(0)
    texts = [(blob(rng), blob(rng)) for _ in range(12)] + [("-1", "-1"), ("0 1048576", "1048575 1")]
    texts.append((texts[0][0], texts[0][0]))
    table = overlap(runs(*[first for first, _ in texts]), runs(*[second for _, second in texts]))
    for index, (first, second) in enumerate(texts):
        a, b = painted(first), painted(second)
        total, shared = int(a.sum()) + int(b.sum()), int((a & b).sum())
        assert table.dice[index] == (1.0 if total == 0 else 2 * shared / total)
        assert table.iou[index] == (1.0 if total == 0 else shared / int((a | b).sum()))
    assert table.dice.iloc[-1] == 1


def test_sizes_and_many_masks():
    assert size_of(np.array([0, 1, 4095, 4096, 16383, 16384])).tolist() == [
        "", "small", "small", "medium", "medium", "large",
    ]  # fmt: skip
    assert mask_areas(runs(*["3 7"] * 300)).tolist() == [7] * 300  # pycocotools alone fails from 256 on
    assert len(overlap([], [])) == 0


SMALL = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 0]], np.uint8)


def test_dice_of_arrays_texts_and_lists():
    shifted = np.roll(SMALL, 1, axis=1)
    assert dice(SMALL, shifted) == 0.5
    assert dice(SMALL * 255, shifted > 0) == 0.5
    assert dice(SMALL, SMALL) == dice(SMALL * 0, SMALL * 0) == 1
    assert dice(SMALL, SMALL * 0) == 0
    assert dice("0 4", "2 4") == 0.5
    assert dice("-1", "-1") == 1
    assert dice("0 4", rle.decode("2 4")) == 0.5
    pair = [SMALL, SMALL * 0], [shifted, SMALL * 0]
    assert dice(*pair).tolist() == [0.5, 1]
    assert dice(*map(np.stack, pair)).tolist() == [0.5, 1]
    assert dice(["0 4", "-1"], ["2 4", "1 1"]).tolist() == [0.5, 0]
    assert dice([], []).tolist() == []


def test_dice_of_tables_unites_the_rows_of_an_image():
    truth = pd.DataFrame({"ImageId": ["b", "a", "b", "c"], "EncodedPixels": ["0 4", "-1", "4 4", np.nan]})
    prediction = pd.DataFrame({"image_id": ["a", "b", "c"], "encoded_pixels": ["-1", "0 8", "3 3"]})
    values = dice(truth, prediction)
    assert values.to_dict() == {"b": 1, "a": 1, "c": 0}
    with pytest.raises(PneumoError, match="of different images; a are only in one"):
        dice(truth, prediction.iloc[1:])


@pytest.mark.parametrize(
    ("truth", "prediction", "sentence"),
    [
        (SMALL, SMALL[:2], r"shape \(3, 3\), the predicted one \(2, 3\)"),
        (SMALL, SMALL * 0.3, "holds only 0 and 1 .* Cut probabilities at a threshold first"),
        (SMALL, SMALL[0], "has two dimensions"),
        ([SMALL], [SMALL, SMALL], "two lists of equally many masks"),
        ([SMALL], SMALL, "two masks, or two lists"),
        ("0 4", "0 4 5", "must come in pairs"),
        (pd.DataFrame({"image_id": ["a"], "encoded_pixels": ["-1"]}), ["-1"], "must both be tables"),
        (pd.DataFrame({"image_id": ["a"]}), pd.DataFrame(), "of the truth needs the columns image_id and encoded_pix"),
    ],
)
def test_dice_refuses_invalid_masks(truth, prediction, sentence):
    with pytest.raises(PneumoError, match=sentence):
        dice(truth, prediction)


def test_average_precision_of_pixels_is_scikit_learns():
    from sklearn.metrics import average_precision_score

    generator = np.random.default_rng(0)
    truth = generator.random((6, 500)) < 0.1
    quantised = np.clip(generator.normal(80 + 60 * truth, 40), 0, 255).astype(int)
    counts = np.stack(
        [
            np.stack([np.bincount(row, minlength=256), np.bincount(row[right], minlength=256)])
            for row, right in zip(quantised, truth, strict=True)
        ]
    )
    value, interval = pixel_auprc(counts, np.array([0, 0, 1, 2, 3, 4]), 300)
    assert value == pytest.approx(average_precision_score(truth.ravel(), quantised.ravel()))
    assert interval.low < value < interval.high


def test_one_score_for_every_pixel_is_worth_the_share_of_true_ones():
    counts = np.zeros((2, 256))
    counts[0, 7], counts[1, 7] = 200, 20
    assert average_precision(counts) == pytest.approx(0.1)
    assert np.isnan(average_precision(np.zeros((2, 256))))
