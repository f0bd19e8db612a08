"""Measures the referee: scoring on run-length text against drawing masks with numpy, and a board of ten submissions.

    python experiments/benchmarks/referee.py [--images 1372] [--json bench.json]

The masks are synthetic, like SIIM's: a fifth of the images are positive, with crescents of about 0.8% of the image.
Prints one line per measurement; ``--json`` also writes rows ``{"name", "ratio", "low", "high", "goal", "note"}``.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.evaluation.compare import compare
from keras_pneumo.evaluation.inputs.alignment import align_submission
from keras_pneumo.evaluation.inputs.submission import SubmissionInfo, read_submission, write_submission
from keras_pneumo.evaluation.inputs.truth import Truth, read_truth
from keras_pneumo.evaluation.scoring.masks import overlap

SPEED_GOAL = 20.0
SECONDS_GOAL = 20.0


def crescent(rng: np.random.Generator) -> str:
    """The run-length text of a crescent inside the upper rim of an ellipse, about 9,000 pixels."""
    y, x = np.mgrid[:1024, :1024]
    cy, cx, h, w = rng.integers(350, 650), rng.choice([300, 720]), rng.integers(250, 330), rng.integers(130, 180)
    thick = rng.uniform(0.03, 0.14)
    outer = ((y - cy) / h) ** 2 + ((x - cx) / w) ** 2
    return rle.encode((outer < 1) & (outer > (1 - thick) ** 2) & (y < cy))


def write_inputs(folder: Path, images: int, teams: int) -> Truth:
    """Writes a truth and ``teams`` submissions on it; gives the truth."""
    rng = np.random.default_rng(0)
    masks = [crescent(rng) for _ in range(60)]
    ids = [f"image-{number}" for number in range(images)]
    positive = rng.random(images) < 0.22
    true = np.where(positive, rng.choice(masks, images), rle.EMPTY)
    patients = [f"patient-{number}" for number in rng.integers(0, int(images / 1.2), images)]
    table = pd.DataFrame({"image_id": ids, "patient_id": patients, "pneumothorax": positive.astype(int)})
    table.assign(subset="test", encoded_pixels=true).to_csv(folder / "truth.csv", index=False)
    for number in range(teams):
        probability = 1 / (1 + np.exp(-(3 * positive - 1.5 + rng.normal(size=images))))
        text = np.where(
            probability > 0.5, np.where(rng.random(images) < 0.7, true, rng.choice(masks, images)), rle.EMPTY
        )
        predictions = pd.DataFrame({"image_id": ids, "probability": probability, "encoded_pixels": text})
        info = SubmissionInfo(team=f"Team {number}", task="joint", threshold=0.5, training_hours=number + 1)
        write_submission(folder / "teams" / f"team-{number}", info, predictions)
    return read_truth(folder / "truth.csv")


def dice_by_runs(folder: Path, truth: Truth) -> np.ndarray:
    """Dice per image, computed on the run-length text."""
    answers = align_submission(read_submission(folder), truth)
    assert truth.runs is not None
    assert answers.runs is not None
    return overlap(truth.runs, answers.runs, truth.areas).dice.to_numpy()


def draw(text: str) -> np.ndarray:
    """A flat mask of 1024x1024, drawn with numpy run by run."""
    flat = np.zeros(1024 * 1024, np.uint8)
    if text != rle.EMPTY:
        numbers = np.array(text.split(), int)
        ends = np.cumsum(numbers)
        for start, end in zip(ends[0::2], ends[1::2], strict=True):
            flat[start:end] = 1
    return flat


def dice_by_drawing(folder: Path, true_texts: pd.Series) -> np.ndarray:
    """Dice per image, computed on drawn masks."""
    table = pd.read_csv(folder / "predictions.csv", dtype=str).set_index("image_id")["encoded_pixels"].to_dict()
    dice = []
    for image_id, text in true_texts.items():
        true, predicted = draw(text), draw(table[str(image_id)])
        total = int(true.sum()) + int(predicted.sum())
        dice.append(2 * int((true & predicted).sum()) / total if total else 1.0)
    return np.array(dice)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=1372)
    parser.add_argument("--teams", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = write_inputs(folder, args.images, args.teams)
        team = folder / "teams" / "team-0"
        texts = pd.read_csv(folder / "truth.csv", dtype=str).set_index("image_id").encoded_pixels
        runs, drawing = [], []
        for _ in range(3):
            start = time.process_time()  # both run on one core, and other programs may run on the machine
            by_runs = dice_by_runs(team, truth)
            middle = time.process_time()
            by_drawing = dice_by_drawing(team, texts)
            runs.append(middle - start)
            drawing.append(time.process_time() - middle)
        assert np.array_equal(by_runs, by_drawing)
        ratios = [slow / fast for slow, fast in zip(drawing, runs, strict=True)]
        print(
            f"one submission, {args.images:,} images, processor time: {min(runs):.2f} s on runs, "
            f"{min(drawing):.2f} s drawn, {np.median(ratios):.0f} times"
        )
        start = time.perf_counter()
        compare(folder / "teams", folder / "truth.csv", folder / "board")
        seconds = time.perf_counter() - start
        print(f"{args.teams} submissions, 10,000 resamples, report: {seconds:.1f} s")
    if args.json:
        note = f"{args.images} images"
        rows = [
            {"name": "scoring on runs against drawing", "ratio": float(np.median(ratios)), "low": min(ratios),
             "high": max(ratios), "goal": SPEED_GOAL, "note": note},
            {"name": "a board of ten submissions against 20 s", "ratio": SECONDS_GOAL / seconds, "low": None,
             "high": None, "goal": 1.0, "note": f"{seconds:.1f} s"},
        ]  # fmt: skip
        args.json.write_text(json.dumps({"machine": platform.platform(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
