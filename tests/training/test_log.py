"""The log of a training: its rows, and the pictures and events that are made from them."""

import matplotlib
import pandas as pd
import pytest

from keras_pneumo.training.log import draw_curves


def curves_text(table, tmp_path):
    """The curves as SVG, whose words can be read."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_curves(table, tmp_path / "curves.svg")
    return (tmp_path / "curves.svg").read_text()


@pytest.mark.parametrize(("dice", "label"), [(0.412, "best 0.412"), (None, "best 0.876")])
def test_the_best_epoch_is_labelled_with_the_score_of_its_curve(tmp_path, dice, label):
    """A segmenter's with its Dice, a classifier's with its AUROC."""
    table = pd.DataFrame(
        {
            "epoch": [1, 2],
            "loss": [0.9, 0.5],
            "validation_loss": [0.8, 0.6],
            "validation_auroc": [0.5, 0.876],
            "learning_rate": [1e-3, 1e-4],
            "best": [1, 1],
        }
    )
    if dice is not None:
        table["validation_dice"] = [0.1, dice]
    text = curves_text(table, tmp_path)
    assert label in text
    assert f"Validation {'AUROC' if dice is None else 'Dice'}" in text
