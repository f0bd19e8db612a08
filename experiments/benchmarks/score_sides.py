"""Worker: ways to score a submission, ours and others, on the same synthetic truth and answers.

    python score_sides.py SIDE FOLDER      # SIDE: a name of SIDES; FOLDER: what write_inputs wrote

A fifth of the images are positive, with crescents of about 0.8% of the image, as SIIM's are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from worker import serve

IMAGES = 1372
FEW = 256
RESAMPLES = 10_000
SIDE = 1024


def write_inputs(folder: Path, images: int = IMAGES) -> None:
    """Write ``truth.csv``, the answers of two teams (``first.csv``, ``second.csv``), and the first's submission."""
    import numpy as np
    import pandas as pd

    from keras_pneumo.data.labels import rle
    from keras_pneumo.evaluation.inputs.submission import SubmissionInfo, write_submission

    rng = np.random.default_rng(0)
    masks = [crescent(rng) for _ in range(60)]
    ids = [f"image-{number}" for number in range(images)]
    positive = rng.random(images) < 0.22
    true = np.where(positive, rng.choice(masks, images), rle.EMPTY)
    patients = [f"patient-{number}" for number in rng.integers(0, int(images / 1.2), images)]
    folder.mkdir(parents=True, exist_ok=True)
    truth = pd.DataFrame({"image_id": ids, "patient_id": patients, "pneumothorax": positive.astype(int)})
    truth.assign(subset="test", encoded_pixels=true).to_csv(folder / "truth.csv", index=False)
    for name in ("second", "first"):
        probability = 1 / (1 + np.exp(-(3 * positive - 1.5 + rng.normal(size=images))))
        right = rng.random(images) < 0.7
        text = np.where(probability > 0.5, np.where(right, true, rng.choice(masks, images)), rle.EMPTY)
        answers = pd.DataFrame({"image_id": ids, "probability": probability, "encoded_pixels": text})
        answers.to_csv(folder / f"{name}.csv", index=False)
    write_submission(folder / "team", SubmissionInfo(team="First", task="joint", threshold=0.5), answers)


def crescent(rng):
    """The run-length text of a crescent inside the upper rim of an ellipse, about 9,000 pixels."""
    import numpy as np

    from keras_pneumo.data.labels import rle

    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx, h, w = rng.integers(350, 650), rng.choice([300, 720]), rng.integers(250, 330), rng.integers(130, 180)
    thick = rng.uniform(0.03, 0.14)
    outer = ((y - cy) / h) ** 2 + ((x - cx) / w) ** 2
    return rle.encode((outer < 1) & (outer > (1 - thick) ** 2) & (y < cy))


# ---------------------------------------------------------------- from csv to the Dice of every image


def dice_ours(folder: Path) -> Callable[[], object]:
    """``kp.dice`` on the two tables."""
    import pandas as pd

    import keras_pneumo as kp

    return lambda: kp.dice(pd.read_csv(folder / "truth.csv"), pd.read_csv(folder / "first.csv"))


def dice_on_read_truth(folder: Path) -> Callable[[], object]:
    """What a board does for each further submission: read it, align it with the truth, compare the masks."""
    from keras_pneumo.evaluation.inputs.alignment import align_submission
    from keras_pneumo.evaluation.inputs.submission import read_submission
    from keras_pneumo.evaluation.inputs.truth import read_truth
    from keras_pneumo.evaluation.scoring.masks import overlap

    truth = read_truth(folder / "truth.csv")

    def score() -> object:
        answers = align_submission(read_submission(folder / "team"), truth)
        return overlap(truth.runs, answers.runs, truth.areas).dice.to_numpy()

    return score


def dice_numpy(folder: Path) -> Callable[[], object]:
    """Both masks of each image drawn run by run with numpy, as the competition's notebooks do."""
    import numpy as np
    import pandas as pd

    def score() -> object:
        truth, answers = (pd.read_csv(folder / f"{name}.csv", dtype=str) for name in ("truth", "first"))
        table = answers.set_index("image_id")["encoded_pixels"].to_dict()
        dice = []
        for image_id, text in zip(truth["image_id"], truth["encoded_pixels"], strict=True):
            true, predicted = drawn(text), drawn(table[image_id])
            total = int(true.sum()) + int(predicted.sum())
            dice.append(2 * int((true & predicted).sum()) / total if total else 1.0)
        return np.array(dice)

    return score


def dice_monai(folder: Path) -> Callable[[], object]:
    """MONAI's DiceMetric on masks drawn with numpy, 64 images at a time; of the first images only, since it is slow."""
    import numpy as np
    import pandas as pd
    import torch
    from monai.metrics import DiceMetric

    def score() -> object:
        truth, answers = (pd.read_csv(folder / f"{name}.csv", dtype=str) for name in ("truth", "first"))
        table = answers.set_index("image_id")["encoded_pixels"].to_dict()
        metric = DiceMetric(include_background=True, reduction="none", ignore_empty=False)
        for start in range(0, min(len(truth), FEW), 64):
            part = truth.iloc[start : min(start + 64, FEW)]
            true, predicted = (
                torch.from_numpy(np.stack([drawn(text) for text in texts]).reshape(-1, 1, SIDE, SIDE))
                for texts in (part["encoded_pixels"], [table[name] for name in part["image_id"]])
            )
            metric(y_pred=predicted, y=true)
        return metric.aggregate().numpy().ravel()

    return score


def drawn(text: str):
    """A flat mask of 1024x1024, uint8, drawn with numpy run by run."""
    import numpy as np

    flat = np.zeros(SIDE * SIDE, np.uint8)
    if text.strip() != "-1":
        numbers = np.array(text.split(), int)
        ends = np.cumsum(numbers)
        for start, end in zip(ends[0::2], ends[1::2], strict=True):
            flat[start:end] = 1
    return flat


# ---------------------------------------------------------------- the difference of two AUROCs in resamples by patient


def read_teams(folder: Path):
    """Truth, patients' numbers and the two teams' probabilities, as arrays."""
    import pandas as pd

    truth = pd.read_csv(folder / "truth.csv")
    teams = [pd.read_csv(folder / f"{name}.csv")["probability"].to_numpy() for name in ("first", "second")]
    return truth["pneumothorax"].to_numpy(), pd.factorize(truth["patient_id"])[0], teams


def bootstrap_ours(folder: Path, resamples: int = RESAMPLES) -> Callable[[], object]:
    """What the referee's board computes: all scores of both teams that need probabilities, AUROC among them."""
    from keras_pneumo.evaluation.scoring.scores import replicate_scores, sum_by_patient
    from keras_pneumo.evaluation.scoring.statistics import resample_patients

    truth, patients, teams = read_teams(folder)

    def score() -> object:
        sums = [sum_by_patient(truth, patients, team) for team in teams]
        first, second = replicate_scores(sums, resample_patients(patients.max() + 1, resamples, 0))
        return first["auroc"] - second["auroc"]

    return score


def bootstrap_sklearn(folder: Path, resamples: int = 200) -> Callable[[], object]:
    """A loop over scikit-learn's roc_auc_score, on the images of the patients that each resample draws."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    from keras_pneumo.evaluation.scoring.statistics import resample_patients

    truth, patients, teams = read_teams(folder)
    counts = np.concatenate(list(resample_patients(patients.max() + 1, resamples, 0)))

    def score() -> object:
        differences = []
        for times in counts:
            rows = np.repeat(np.arange(len(truth)), times[patients])
            values = [roc_auc_score(truth[rows], team[rows]) for team in teams]
            differences.append(values[0] - values[1])
        return np.array(differences)

    return score


SIDES: dict[str, tuple[Callable[[Path], Callable[[], object]], int]] = {
    "dice_ours": (dice_ours, IMAGES),
    "dice_on_read_truth": (dice_on_read_truth, IMAGES),
    "dice_numpy": (dice_numpy, IMAGES),
    "dice_monai": (dice_monai, FEW),
    "bootstrap_ours": (bootstrap_ours, RESAMPLES),
    "bootstrap_sklearn": (bootstrap_sklearn, 200),
}
"""Each way to score: what makes the function, and the images or resamples of one call."""


def main() -> None:
    """Serve the way that the command line names."""
    make, work = SIDES[sys.argv[1]]

    def set_up() -> Callable[[int], float]:
        score = make(Path(sys.argv[2]))

        def run(count: int) -> float:
            for _ in range(count):
                score()
            return count * work

        return run

    serve(set_up)


if __name__ == "__main__":
    main()
