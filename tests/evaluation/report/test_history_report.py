"""Predictions over the training: what is read, and which images are shown."""

import numpy as np
import pandas as pd
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.history_report import FILE, history_report, read_history


def table():
    return pd.DataFrame(
        {
            "image_id": ["0001", "b", "c", "d"],
            "pneumothorax": [1, 1, 0, 0],
            "epoch_1": [0.5, 0.5, 0.5, 0.5],
            "epoch_2": [0.6, 0.1, 0.45, 0.9],
            "epoch_3": [0.7, 0.9, 0.4, 0.2],
        }
    )


def test_the_images_that_changed_most_come_first(tmp_path):
    table().to_csv(tmp_path / FILE, index=False)
    report = history_report(read_history(tmp_path), lambda name: np.zeros((8, 8), np.uint8), most=1)
    assert [(card["image_id"], card["positive"]) for card in report.cards] == [("b", True), ("d", False)]
    assert (report.cards[0]["first"], report.cards[0]["last"]) == ("0.50", "0.90")
    assert report.cards[0]["picture"].startswith("data:image/jpeg")
    assert report.images == 4
    assert "with pneumothorax, 2 images" in report.chart
    assert len(history_report(table(), None).cards) == 4


def test_epochs_without_numbers_are_left_out(tmp_path):
    table().assign(epoch_2=np.nan).to_csv(tmp_path / FILE, index=False)
    assert read_history(tmp_path).columns.tolist() == ["image_id", "pneumothorax", "epoch_1", "epoch_3"]
    assert read_history(tmp_path)["image_id"][0] == "0001"
    table().assign(epoch_2=np.nan, epoch_3=np.nan).to_csv(tmp_path / FILE, index=False)
    assert read_history(tmp_path) is None, "one epoch is no history"
    assert read_history(tmp_path / "an earlier run") is None


@pytest.mark.parametrize("text", ["image_id,epoch_1\na,0.1\n", "image_id,pneumothorax,epoch_1,epoch_2\na,1,x,0.2\n"])
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(PneumoError, match="is damaged"):
        read_history(tmp_path)
