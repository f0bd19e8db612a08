"""Reading a label table in every form it comes in, the same for preparing and for the referee."""

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from label_lab import FORMS
from small_siim import write_labels

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import Rejected, read_labels
from keras_pneumo.errors import PneumoError

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))
needs_real = pytest.mark.skipif(not (REAL / "siim_tables").exists(), reason="no real tables beside the repository")


def texts(labels):
    return {image_id: rle.encode_runs(label.runs) for image_id, label in labels.images.items()}


@pytest.mark.parametrize("content", FORMS)
def test_every_form_of_the_label_file(tmp_path, content):
    path = tmp_path / "train-rle.csv"
    path.write_bytes(content.encode())
    labels = read_labels(path)
    assert texts(labels) == {"a": "-1", "b": "5 3"}
    assert labels.rejected == []
    assert labels.images["b"].positive
    assert not labels.images["a"].positive


@pytest.mark.parametrize(
    ("text", "positive", "reasons"),
    [
        ("image_id,pneumothorax\na,1\nb,0\n", {"a": True, "b": False}, []),
        ("image_id,Pneumothorax,EncodedPixels\na,1,-1\nb,1,5 3\n", {"a": True, "b": True}, []),
        ("image_id,pneumothorax,encoded_pixels\na,1,5 3\na,1,9 3\nb,0,-1\n", {"a": True, "b": False}, []),
        ("image_id,pneumothorax\na,yes\nb,0\n", {"b": False}, ["image a: pneumothorax is 'yes'; it must be 0 or 1"]),
        ("image_id,pneumothorax\na,1\na,1\nb,0\n", {"b": False}, ["image a: the image was given before (rows 2, 3)"]),
        (
            "image_id,pneumothorax,encoded_pixels\na,0,5 3\nb,0,\n",
            {"b": False},
            ["image a: the image has a mask but its pneumothorax is 0"],
        ),
    ],
)
def test_labels_beside_or_instead_of_masks(tmp_path, text, positive, reasons):
    path = tmp_path / "l.csv"
    path.write_text(text)
    labels = read_labels(path, need_masks=False)
    assert {image_id: label.positive for image_id, label in labels.images.items()} == positive
    assert [item.reason for item in labels.rejected] == reasons


def test_a_table_without_masks_is_refused_where_they_are_needed(tmp_path):
    (tmp_path / "l.csv").write_text("image_id,pneumothorax\na,1\n")
    with pytest.raises(PneumoError, match="where ImageId and EncodedPixels are expected"):
        read_labels(tmp_path / "l.csv")


def test_gzipped_label_file(tmp_path):
    with gzip.open(tmp_path / "train-rle.csv.gz", "wt") as stream:
        stream.write("ImageId, EncodedPixels\na,-1\n")
    assert texts(read_labels(tmp_path / "train-rle.csv.gz")) == {"a": "-1"}


def test_rows_of_one_image_are_united(tmp_path):
    path = write_labels(tmp_path / "l.csv", [("a", "0 4"), ("b", "-1"), ("a", "2 4"), ("a", "100 1")])
    labels = read_labels(path)
    assert texts(labels) == {"a": "0 6 94 1", "b": "-1"}
    assert labels.images["a"].rows == (2, 4, 5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 2 3", "3 numbers"),
        ("-5 2", "negative gap"),
        ("5 0", "length 0"),
        ("1048576 1", "ends at pixel 1048577"),
        ("five 2", "'five'"),
        ("NaN", "'NaN'"),
    ],
)
def test_a_bad_row_is_named_and_spoils_its_image_only(tmp_path, text, reason):
    path = write_labels(tmp_path / "l.csv", [("a", "0 4"), ("b", "7 1"), ("a", text), ("c", "-1")])
    labels = read_labels(path)
    assert texts(labels) == {"b": "7 1", "c": "-1"}
    assert labels.rejected_rows == {"a": (4,)}
    assert [(item.file, item.row) for item in labels.rejected] == [("l.csv", 4)]
    assert reason in labels.rejected[0].reason
    assert "image a" in labels.rejected[0].reason


def test_rows_are_lines_of_the_file(tmp_path):
    (tmp_path / "l.csv").write_text("ImageId,EncodedPixels\n\na,-1\n\n\nb,odd one\n")
    assert read_labels(tmp_path / "l.csv").rejected[0].row == 6


def test_rows_without_pixels_or_image(tmp_path):
    (tmp_path / "l.csv").write_text("ImageId,EncodedPixels\na\n,5 3\nb,-1\n")
    labels = read_labels(tmp_path / "l.csv")
    assert texts(labels) == {"b": "-1"}
    assert [item.row for item in labels.rejected] == [2, 3]
    assert labels.rejected_rows == {"a": (2,)}


def test_empty_and_drawn_at_once_is_no_label(tmp_path):
    labels = read_labels(write_labels(tmp_path / "l.csv", [("a", "-1"), ("a", "5 3"), ("b", "-1"), ("b", " ")]))
    assert texts(labels) == {"b": "-1"}
    assert labels.rejected_rows == {"a": (2, 3)}


def test_long_rows_are_read(tmp_path):
    text = "0 1" + " 1 1" * 200_000
    labels = read_labels(write_labels(tmp_path / "l.csv", [("a", text)]))
    assert rle.area(labels.images["a"].runs) == 200_001
    assert csv.field_size_limit() == 131_072  # other users of the csv module keep their own limit


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"id,target\n1,0\n", "is not a label table"),
        (b"one,two,three\n", "is not a label table"),
        ("ImageId,EncodedPixels\nä,-1\n".encode("latin-1"), "not UTF-8"),
        ("ImageId,EncodedPixels\na,-1\n".encode("utf-16"), "not UTF-8"),
        (b'ImageId,EncodedPixels\n"a,-1\n', "is not csv"),
        (b"PK\x03\x04\xff\xfe", "not UTF-8"),
    ],
)
def test_files_that_are_no_label_file(tmp_path, content, part):
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(PneumoError, match=part) as error:
        read_labels(tmp_path / "l.csv")
    assert "l.csv" in str(error.value)


def test_damaged_gzip_and_missing_file(tmp_path):
    (tmp_path / "l.csv.gz").write_bytes(gzip.compress(b"ImageId,EncodedPixels\n" * 9999)[:50])
    with pytest.raises(PneumoError, match="cannot be read"):
        read_labels(tmp_path / "l.csv.gz")
    with pytest.raises(PneumoError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


@needs_real
def test_the_whole_real_label_file():
    labels = read_labels(REAL / "siim_tables" / "train-rle.csv.gz")
    positive = [label for label in labels.images.values() if label.positive]
    assert (len(labels.images), len(positive), len(labels.rejected)) == (12_047, 2_669, 0)
    assert sum(len(label.rows) for label in positive) == 3_576
    areas = sorted(rle.area(label.runs) for label in positive)
    # Counted apart with plain numpy over all rows; the median of the rows' sums, overlaps twice, would be 8,771.
    assert (areas[0], areas[len(areas) // 2]) == (55, 8_630)


@needs_real
def test_the_real_sample_without_header_agrees_with_the_full_file():
    sample = read_labels(REAL / "siim_mini" / "train-rle-sample.csv")
    full = read_labels(REAL / "siim_mini" / "train-rle.csv")
    assert len(sample.images) == 10
    assert len(full.images) == 88
    assert sum(label.positive for label in full.images.values()) == 40
    assert texts(sample) == {image_id: texts(full)[image_id] for image_id in sample.images}


def test_rejected_is_plain_data():
    assert Rejected("a.csv", 3, "why") == Rejected("a.csv", 3, "why")


@pytest.mark.parametrize("names", ["height,width", "Mask_Height,Mask_Width", "maskheight,maskwidth,height,width"])
def test_masks_of_a_size_that_the_table_says_are_brought_to_the_canonical_frame(tmp_path, names):
    # Down the columns of 64 rows and 128 columns: 16 pixels each of column 32 and of column 33, from row 0.
    more = ",7,7" if names.count(",") == 3 else ""
    path = tmp_path / "l.csv"
    path.write_text(
        f"image_id,EncodedPixels,{names}\na,{32 * 64} 16 48 16,64,128{more}\nb,5 3,1024,1024{more}\nc,-1,,{more}\n"
    )
    labels = read_labels(path)
    # 32 black rows above the 64 of the image, and a pixel is 8 of the canonical frame.
    expected = np.zeros((1024, 1024), np.uint8)
    expected[256:384, 256:272] = 1
    assert (rle.draw(labels.images["a"].runs) == expected).all()
    assert texts(labels)["b"] == "5 3"
    shapes = {name: label.mask_shapes for name, label in labels.images.items()}
    assert shapes == {"a": ((64, 128),), "b": (), "c": ()}


def test_a_size_that_is_none_or_too_small_for_its_mask_rejects_the_row(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("image_id,EncodedPixels,height,width\na,5 3,x,64\nb,4095 9,64,64\nc,4095 1,64,64\nd,1 1,0,64\n")
    labels = read_labels(path)
    assert [(item.image_id, item.reason) for item in labels.rejected] == [
        ("a", "image a: its height and width, which say the size of the mask, are no numbers of pixels"),
        ("b", "image b: EncodedPixels ends at pixel 4104, but the image has 4096"),
        ("d", "image d: its height and width, which say the size of the mask, are no numbers of pixels"),
    ]
    assert list(labels.images) == ["c"]


def test_a_size_that_the_user_says_counts_before_the_table(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("image_id,EncodedPixels,height,width\na,0 1,2048,2048\n")
    label = read_labels(path, mask_size=(512, 512)).images["a"]
    assert (rle.encode_runs(label.runs), label.mask_shapes) == ("0 2 1022 2", ((512, 512),))
