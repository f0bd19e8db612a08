"""Finding the labels of a folder: which table, and what is said where there is none."""

import pytest
from small_siim import write_labels

from keras_pneumo.data.labels.finding import find_labels, search_labels
from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.errors import PneumoError


def find_label_csv(folder, image_ids):
    """The table that is chosen."""
    return find_labels(search_labels(folder, []), image_ids).path


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


def test_a_table_with_masks_wins_over_one_with_labels_only(tmp_path):
    (tmp_path / "images.csv").write_text("ImageId,pneumothorax\na,1\nb,0\nc,0\n")
    masks = write_labels(tmp_path / "outlines.csv", [("a", "5 1"), ("b", "-1")])
    assert find_label_csv(tmp_path, {"a", "b", "c"}) == masks


def test_of_two_tables_of_labels_the_one_with_more_images_wins(tmp_path):
    (tmp_path / "few.csv").write_text("image,label\na,1\n")
    (tmp_path / "more.csv").write_text("image,label\na,1\nb,0\n")
    assert find_label_csv(tmp_path, {"a", "b"}).name == "more.csv"


def test_devices_predictions_and_patients_are_no_labels(tmp_path):
    (tmp_path / "devices.csv").write_text("image_id,kind,encoded_pixels\na,tube,5 1\n")
    (tmp_path / "predictions.csv").write_text("image_id,probability,encoded_pixels\na,0.5,5 1\n")
    (tmp_path / "patients.csv").write_text("ImageId,patient_id\na,p\n")
    with pytest.raises(PneumoError, match="No label csv"):
        search_labels(tmp_path, [])


def test_what_lies_there_is_quoted_where_nothing_fits(tmp_path):
    (tmp_path / "scores.csv").write_text("case;score\nx;7\n")
    with pytest.raises(PneumoError) as raised:
        search_labels(tmp_path, [])
    assert "case;score" in str(raised.value)
    assert "x;7" in str(raised.value)
    assert "--label-column" in str(raised.value)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "other.csv").write_text("name,weight\n")
    with pytest.raises(PneumoError) as raised:
        search_labels(tmp_path, [])
    assert "deep/other.csv: name,weight" in str(raised.value)
    assert "scores.csv: case;score" in str(raised.value)


def test_a_named_table_that_does_not_fit_is_quoted_and_the_others_are_named(tmp_path):
    (tmp_path / "wrong.csv").write_text("name,weight\nx,7\n")
    (tmp_path / "good.csv").write_text("image,label\nx,1\n")
    with pytest.raises(PneumoError, match=r"(?s)name,weight.*x,7.*good\.csv"):
        search_labels(tmp_path, [], tmp_path / "wrong.csv")


def test_a_question_of_the_only_table_is_asked_as_it_is(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\na,1\nb,\n")
    with pytest.raises(PneumoError, match="--blank negative") as raised:
        find_label_csv(tmp_path, {"a", "b"})
    assert "row 3" in str(raised.value)
    answered = find_labels(search_labels(tmp_path, [], options=LabelOptions(blank="ignore")), {"a", "b"})
    assert set(answered.images) == {"a"}


def test_prepared_folders_and_skipped_ones_are_not_searched(tmp_path):
    for name in ("prepared", "skipped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "truth.csv").write_text("image_id,pneumothorax\na,1\n")
    (tmp_path / "prepared" / "manifest.json").write_text("{}")
    with pytest.raises(PneumoError, match="no csv file lies there"):
        search_labels(tmp_path, [], skip=[tmp_path / "skipped"])


def test_a_folder_named_as_labels_that_holds_tables_says_which_to_name(tmp_path):
    (tmp_path / "given" / "deep").mkdir(parents=True)
    (tmp_path / "given/deep/labels.csv").write_text("image,label\na,1\n")
    with pytest.raises(
        PneumoError, match=r"is a folder, and holds neither .*one of its tables \(deep/labels.csv\) with"
    ):
        search_labels(tmp_path, [tmp_path / "a.png"], tmp_path / "given")
    (tmp_path / "given/deep/labels.csv").unlink()
    with pytest.raises(PneumoError, match="Name the right folder, or a label table, with --labels"):
        search_labels(tmp_path, [tmp_path / "a.png"], tmp_path / "given")
