"""Finding SIIM's label file in a folder."""

import pytest
from small_siim import write_labels

from keras_pneumo.data.labels.siim import find_label_csv
from keras_pneumo.errors import PneumoError


def test_label_file_with_most_of_the_images_wins(tmp_path):
    full = write_labels(tmp_path / "train-rle.csv", [("a", "-1"), ("b", "-1"), ("c", "-1")])
    write_labels(tmp_path / "train-rle-sample.csv", [("a", "-1")], header=None, bom=True)
    write_labels(tmp_path / "deep" / "train_of_others.csv", [("x", "-1")] * 50)
    write_labels(tmp_path / "train_metadata.csv", [("a", "1")], header=("id", "class"))
    assert find_label_csv(tmp_path, {"a", "b", "c"}) == full


def test_sample_is_taken_when_there_is_nothing_else(tmp_path):
    sample = write_labels(tmp_path / "train-rle-sample.csv", [("a", "-1")], header=None)
    assert find_label_csv(tmp_path, {"a"}) == sample


def test_sample_loses_a_draw(tmp_path):
    write_labels(tmp_path / "a-train-rle-sample.csv", [("a", "5 1")])
    full = write_labels(tmp_path / "train-rle.csv", [("a", "-1")])
    assert find_label_csv(tmp_path, {"a"}) == full


def test_two_label_files_must_be_chosen_from(tmp_path):
    write_labels(tmp_path / "train-rle.csv", [("a", "-1")])
    write_labels(tmp_path / "old" / "rle.csv", [("a", "5 1")])
    with pytest.raises(PneumoError, match="Several label files") as error:
        find_label_csv(tmp_path, {"a"})
    assert "train-rle.csv" in str(error.value)
    assert "old/rle.csv" in str(error.value)
    assert "--labels" in str(error.value)


def test_two_equal_copies_are_no_question(tmp_path):
    write_labels(tmp_path / "train-rle.csv", [("a", "-1")])
    write_labels(tmp_path / "old" / "train-rle.csv", [("a", "-1")])
    assert find_label_csv(tmp_path, {"a"}).name == "train-rle.csv"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"ImageId;EncodedPixels\n1;-1\n", r"train-rle\.csv is separated by semicolons. Save it with commas"),
        ("ImageId,EncodedPixels\n\u00e9,-1\n".encode("latin-1"), r"train-rle\.csv is not UTF-8 text"),
        (b"ImageId,EncodedPixels\n2,-1\n", r"train-rle\.csv name none of its images"),
    ],
)
def test_a_label_file_that_will_not_do_says_why(tmp_path, content, part):
    (tmp_path / "train-rle.csv").write_bytes(content)
    with pytest.raises(PneumoError, match=part) as raised:
        find_label_csv(tmp_path, ["1"])
    assert ("name none" in str(raised.value)) == ("name none" in part)


def test_no_label_file(tmp_path):
    with pytest.raises(PneumoError, match="No label csv"):
        find_label_csv(tmp_path, {"a"})
    write_labels(tmp_path / "train-rle.csv", [("x", "-1")])
    with pytest.raises(PneumoError, match=r"train-rle.csv name none of its images"):
        find_label_csv(tmp_path, {"a"})
