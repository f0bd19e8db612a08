"""Agreement of the labels with adjudicated labels, by hand and against published figures."""

import pandas as pd
import pytest
from board_lab import REAL, board_of, needs_real, submit, write_truth

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.findings import analyse, ranked_table
from keras_pneumo.evaluation.board.label_noise import noise_ceiling, read_adjudicated
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.evaluation.scoring import metrics


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path, n=200)


def test_ceiling_by_hand(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 50))  # as good as the labels themselves
    ids = truth.cases.image_id[:10].tolist() + truth.development.image_id[:10].tolist()
    labels = pd.concat([truth.cases, truth.development]).set_index("image_id").pneumothorax
    adjudicated = {image_id: bool(labels[image_id]) for image_id in ids}
    for image_id in (ids[0], ids[15]):
        adjudicated[image_id] = not adjudicated[image_id]
    ceiling = noise_ceiling(board, adjudicated)
    assert (ceiling.images, ceiling.agreement) == (20, 0.9)
    row = ceiling.teams.iloc[0]
    assert (row.images, row.accuracy, row.labels) == (10, 0.9, 0.9)
    assert row.above
    assert ranked_table(board, analyse(board, adjudicated)).above_ceiling[0]


def test_adjudicated_labels_are_read_or_refused(tmp_path, truth):
    path = tmp_path / "a.csv"
    path.write_text("image_id,Pneumothorax\ni0,YES\ni1,no\nelsewhere,NO\n")
    assert read_adjudicated(path, truth) == {"i0": True, "i1": False}
    for text, sentence in [
        ("image_id,Nodule\ni0,YES\n", "has no column Pneumothorax"),
        ("image_id,Pneumothorax\ni0,perhaps\n", "'perhaps', not yes or no"),
        ("image_id,Pneumothorax\nx,YES\n", "has none of the images"),
        ("image_id,Pneumothorax\ni0,YES\ni0,NO\n", "row 3: image 'i0' was given before"),
        ("a,Pneumothorax\ni0,YES\n", "has no image column"),
    ]:
        path.write_text(text)
        with pytest.raises(PneumoError, match=sentence):
            read_adjudicated(path, truth)


@needs_real
def test_real_ceiling_and_follow_up_number():
    """Figures of the tables' owner: agreement 88.9% (85.8 to 91.4), kappa 0.68, 488 images; follow-up number 0.714."""
    tables = REAL / "siim_tables"
    truth = read_truth(
        tables / "train-rle.csv.gz",
        ids=tables / "stage1_test_ids.csv",
        patients=tables / "nih_id.csv",
        metadata=tables / "Data_Entry_2017_v2020.csv.gz",
    )
    adjudicated = read_adjudicated(tables / "google2019_nih-chest-xray-labels.csv.gz", truth)
    ceiling = noise_ceiling(board_of(truth, resamples=2), adjudicated)
    assert ceiling.images == 488
    assert round(ceiling.agreement, 3) == 0.889
    assert (round(ceiling.interval.low, 3), round(ceiling.interval.high, 3)) == (0.858, 0.914)
    assert round(ceiling.kappa, 2) == 0.68
    from keras_pneumo.evaluation.inputs.metadata import features

    whole = pd.concat([truth.cases, truth.development])
    number = features(truth.metadata, whole.image_id)["Follow-up #"][:, 0]
    assert round(metrics.auroc(whole.pneumothorax.to_numpy() == 1, number), 3) == 0.714
