"""EncodedPixels: exact small cases drawn by hand, every text that is no mask, and round trips."""

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))


def rows_to_counts(mask):
    """Counts of a mask by a plain loop down the columns: the independent reference for this file."""
    counts, value, length = [], 0, 0
    for pixel in mask.T.reshape(-1):
        if bool(pixel) != bool(value):
            counts.append(length)
            value, length = pixel, 0
        length += 1
    return [*counts, length]


def test_pixels_are_numbered_down_the_columns():
    # Gap of 1, run of 2, gap of 4 (counted from the end of that run), run of 1, on 3 x 3 pixels.
    expected = [[0, 0, 0], [1, 0, 1], [1, 0, 0]]
    assert rle.decode("1 2 4 1", 3, 3).tolist() == expected
    assert rle.encode(np.array(expected)) == "1 2 4 1"


def test_height_and_width_are_not_exchanged():
    mask = rle.decode("2 1", 2, 3)
    assert mask.shape == (2, 3)
    assert mask.tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("text", "shape", "expected"),
    [
        ("0 1", (2, 2), [[1, 0], [0, 0]]),
        ("3 1", (2, 2), [[0, 0], [0, 1]]),
        ("0 4", (2, 2), [[1, 1], [1, 1]]),
        ("0 1 0 1", (2, 2), [[1, 0], [1, 0]]),
    ],
    ids=["first pixel", "last pixel", "whole image", "touching runs"],
)
def test_corners(text, shape, expected):
    assert rle.decode(text, *shape).tolist() == expected


def test_last_pixel_and_whole_image_at_full_size():
    pixels = rle.MASK_SIZE**2
    last = rle.decode(f"{pixels - 1} 1")
    assert last.sum() == 1
    assert last[-1, -1] == 1
    assert rle.area(rle.runs_of(f"0 {pixels}")) == pixels
    assert rle.encode(np.ones((rle.MASK_SIZE, rle.MASK_SIZE))) == f"0 {pixels}"


@pytest.mark.parametrize("text", ["-1", " -1", "-1 ", " -1\n", "", "  ", None, float("nan")])
def test_empty_masks(text):
    assert rle.is_empty(text)
    assert rle.counts_of(text, 6) == [6]
    assert rle.decode(text, 2, 3).sum() == 0


@pytest.mark.parametrize("text", ["0 1", "-1 1", "-1 -1", "nan", "0", "- 1", "-1.0"])
def test_texts_that_do_not_say_empty(text):
    assert not rle.is_empty(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1", "1 numbers"),
        ("1 2 3", "3 numbers"),
        ("-2 3", "negative gap -2"),
        ("1 2 -1 1", "negative gap -1"),
        ("-1 1", "negative gap -1"),
        ("1 0", "run of length 0"),
        ("1 -3", "run of length -3"),
        ("0 2 1 0", "run of length 0"),
        ("0 10", "ends at pixel 10, but the image has 9"),
        ("9 1", "ends at pixel 10"),
        ("5 2 2 1", "ends at pixel 10"),
        ("1 two", "'two'"),
        ("nan", "'nan'"),
        ("NaN NaN", "'NaN'"),
        ("1.0 2.0", "'1.0'"),
        ("1,2", "'1,2'"),
        ("1_0 1", "'1_0'"),
        ("+1 1", "'+1'"),
        ("٣ 1", "'٣'"),
        ("1 ²", "'²'"),
        ("0x1 1", "'0x1'"),
        ("1e3 1", "'1e3'"),
        ("-- 1", "'--'"),
        ("[1 2]", "'[1'"),
        ("=1 1", "'=1'"),
        ("1 " + "9" * 13, "at most 12 digits"),
        ("1 " + "9" * 5000, "at most 12 digits"),
        ("999999999999 999999999999", "ends at pixel 1999999999998"),
    ],
)
def test_row_11_texts_that_are_no_mask(text, reason):
    with pytest.raises(rle.RleError, match="EncodedPixels") as error:
        rle.counts_of(text, 9)
    assert reason in str(error.value)
    assert len(str(error.value)) < 200
    assert isinstance(error.value, PneumoError)


def test_overlapping_rows_are_united_not_summed():
    # Pixels 1, 2, 3 and pixels 2, 3, 4 of a column of 6.
    united = rle.unite(["1 3", "2 3"], 6, 1)
    assert rle.area(united) == 4
    assert rle.encode_runs(united) == "1 4"
    assert rle.unite(["1 3", "1 3"], 6, 1) == rle.runs_of("1 3", 6, 1)


def test_union_of_nothing_and_of_empties_is_empty():
    assert rle.encode_runs(rle.unite([], 3, 3)) == "-1"
    assert rle.encode_runs(rle.unite(["-1", ""], 3, 3)) == "-1"
    assert rle.encode_runs(rle.unite(["-1", "4 2"], 3, 3)) == "4 2"


def test_intersection_area():
    first, second = rle.runs_of("1 3", 6, 1), rle.runs_of("2 3", 6, 1)
    assert rle.intersection_area(first, second) == 2
    assert rle.intersection_area(first, rle.runs_of("-1", 6, 1)) == 0


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([9], "-1"),
        ([0, 9], "0 9"),
        ([0, 9, 0], "0 9"),
        ([1, 2, 0, 3, 3], "1 5"),
        ([1, 2, 3, 0, 3], "1 2"),
        ([1, 0, 2, 1, 5], "3 1"),
        ([], "-1"),
    ],
    ids=["empty", "full", "full with last gap", "touching", "empty run at the end", "empty run first", "no pixels"],
)
def test_text_of_counts_is_canonical(counts, text):
    assert rle.text_of(counts) == text


def test_encode_takes_any_dtype_and_any_value_but_zero():
    mask = np.array([[0, 255], [0, 7]])
    for dtype in (bool, np.uint8, np.int64, np.float32):
        assert rle.encode(mask.astype(dtype)) == "2 2"


def test_encode_refuses_a_stack():
    with pytest.raises(ValueError, match="two dimensions"):
        rle.encode(np.zeros((2, 2, 1)))


def test_drawn_masks_are_plain_c_ordered_uint8():
    mask = rle.decode("1 2", 3, 3)
    assert mask.dtype == np.uint8
    assert mask.flags.c_contiguous


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_every_mask_survives_the_round_trip(mask):
    text = rle.encode(mask)
    assert (rle.decode(text, *mask.shape) == mask).all()
    assert rle.text_of(rows_to_counts(mask)) == text
    assert rle.is_empty(text) == (not mask.any())


@st.composite
def canonical_texts(draw):
    """Texts as the competition writes them: only the first gap may be 0."""
    runs = draw(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=60))
    first = draw(st.integers(0, 5000))
    numbers = [number for gap, run in runs for number in (gap, run)]
    numbers[0] = first
    return " ".join(map(str, numbers))


@given(canonical_texts())
def test_every_canonical_text_survives_the_round_trip(text):
    runs = rle.runs_of(text)
    assert rle.encode_runs(runs) == text
    assert rle.area(runs) == sum(map(int, text.split()[1::2]))
    assert rle.encode(rle.draw(runs)) == text


@given(arrays(bool, (7, 5)), arrays(bool, (7, 5)))
def test_union_and_intersection_are_those_of_sets(first, second):
    runs = [rle.runs_of(rle.encode(mask), 7, 5) for mask in (first, second)]
    assert (rle.draw(rle.unite([rle.encode(first), rle.encode(second)], 7, 5)) == (first | second)).all()
    assert rle.intersection_area(*runs) == (first & second).sum()


LONG_WORDS = ("0000000000007", "007", "999999999999", "9" * 30)


@given(
    st.lists(st.integers(0, 30).map(str) | st.sampled_from(LONG_WORDS), min_size=1)
    .map(" ".join)
    .flatmap(lambda text: st.sampled_from([text, f" {text}  ", text.replace(" ", "  "), text.replace(" ", "\t")]))
)
def test_reading_by_numpy_and_word_by_word_agree(text):
    plain = rle._plain_counts(text, 90)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rle, "_plain_counts", lambda text, pixels: [])
        try:
            exact = rle.counts_of(text, 90)
        except rle.RleError:
            exact = []
    assert plain in ([], exact)


def test_a_plain_text_is_read_by_numpy():
    assert rle._plain_counts("3 2 0 4", 20) == [3, 2, 0, 4, 11]
    for text in ("3 -2", "3 x", "3 2 1", "3 0", "3 20", "0000001 2", "٣ 2", "3\t2"):
        assert rle._plain_counts(text, 20) == []


@given(st.text(max_size=40))
def test_any_text_is_a_mask_or_one_clear_refusal(text):
    try:
        counts = rle.counts_of(text, 50)
    except rle.RleError as error:
        assert "EncodedPixels" in str(error)  # noqa: PT017 - not raising is fine too
    else:
        assert sum(counts) == 50
        assert min(counts) >= 0


@pytest.mark.skipif(
    not (REAL / "siim_tables" / "train-rle.csv.gz").exists(), reason="no real label file beside the repository"
)
def test_every_real_mask_row_comes_back_as_the_same_text():
    with gzip.open(REAL / "siim_tables" / "train-rle.csv.gz", "rt") as stream:
        texts = [row[1].strip() for row in list(csv.reader(stream))[1:]]
    masks = [text for text in texts if not rle.is_empty(text)]
    assert (len(texts), len(masks)) == (12_954, 3_576)
    assert all(rle.encode_runs(rle.runs_of(text)) == text for text in masks)
    # Drawing passes through other C code than merging and counting; a sample is enough for its 10 ms each.
    assert all(rle.encode(rle.decode(text)) == text for text in masks[::50])
