"""The referee: a submission from csv to the Dice of each image, and paired resamples by patient.

The other sides are what people run today: masks drawn run by run with numpy as in the competition's notebooks, MONAI's
DiceMetric on such masks, and a loop over scikit-learn's roc_auc_score. All give the same numbers (a test holds them
beside each other). The loop runs 200 resamples at a time: its speed is per resample.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab import Lab
from measuring import Row, Worker

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "score_sides.py"


def rows(lab: Lab) -> Iterator[Row]:
    """Dice against numpy and MONAI, resamples against scikit-learn."""
    folder = lab.folder / "scoring"

    def prepare() -> None:
        if not (folder / "team").exists():
            from score_sides import write_inputs

            write_inputs(folder)

    def ours(side: str, runs: int) -> Worker:
        return Worker([lab.python, SCRIPT, side, folder], runs, lab.environment)

    yield Row(
        "scoring 1,372 images from csv to Dice, against numpy",
        "images/s", 50.0, ours("dice_ours", 20), ours("dice_numpy", 1),
        "kp.dice on two tables against masks drawn run by run with numpy, both on one core.",
        prepare=prepare,
    )  # fmt: skip
    yield Row(
        "scoring one more submission of 1,372 images, against numpy",
        "images/s", 50.0, ours("dice_on_read_truth", 20), ours("dice_numpy", 1),
        "As a board does it: the truth is read once, each submission is read, aligned and compared. The other side "
        "draws both masks of each image for every submission.",
        prepare=prepare,
    )  # fmt: skip
    monai = Worker([lab.torch_python or "", SCRIPT, "dice_monai", folder], 1, lab.torch_environment)
    yield Row(
        "scoring 1,372 images from csv to Dice, against MONAI",
        "images/s", 50.0, ours("dice_ours", 20), monai,
        "kp.dice on two tables against MONAI's DiceMetric on masks drawn with numpy, of the first 256 images; speeds "
        "are per image.",
        prepare=prepare, unmeasurable=lab.missing(lab.torch_python, "monai", "torch"),
    )  # fmt: skip
    yield Row(
        "paired resamples by patient, against scikit-learn",
        "resamples/s", 100.0, ours("bootstrap_ours", 3), ours("bootstrap_sklearn", 3),
        "10,000 resamples of two teams, all scores, against a loop over roc_auc_score; the loop at 200 resamples.",
        prepare=prepare,
    )  # fmt: skip
