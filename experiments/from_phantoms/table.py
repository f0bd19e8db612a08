"""Prints what a start from phantoms changes: scores by seed, and the paired difference by seed and patient.

In: a prepared folder of radiographs, and the folder of runs that ``train.sh`` fills. Out: a table. The interval counts
both seeds and patients (see :mod:`keras_pneumo.parity.seeds.equivalence`); the seeds are those that both have.

    python experiments/from_phantoms/table.py PREPARED_RADIOGRAPHS OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from keras_pneumo.evaluation.board.entries import entry_sums, team_entry
from keras_pneumo.evaluation.compare import align_all
from keras_pneumo.evaluation.inputs.submission import examine_submission
from keras_pneumo.evaluation.inputs.truth import Truth, read_truth
from keras_pneumo.evaluation.scoring.scores import COMMON_SENSITIVITY, point_scores, replicate_scores
from keras_pneumo.evaluation.scoring.statistics import leave_one_out
from keras_pneumo.parity.seeds.equivalence import equivalence_verdict, signed
from keras_pneumo.parity.seeds.study import paired_differences

FIRST, SECOND = "from_phantoms", "random"
SCORES = ("auroc", "auprc")


def finished_seeds(out: Path) -> list[int]:
    """The seeds that both kinds of runs have finished, in order."""
    seeds = {
        kind: {int(path.parent.name.rpartition("_")[2]) for path in out.glob(f"{kind}_*/report.html")}
        for kind in (FIRST, SECOND)
    }
    return sorted(seeds[FIRST] & seeds[SECOND])


def lines(truth: Truth, out: Path, seeds: list[int]) -> list[str]:
    """The table and the verdict, as text."""
    folders = [out / f"{kind}_{seed}" / "submission" for kind in (FIRST, SECOND) for seed in seeds]
    aligned = align_all([examine_submission(folder) for folder in folders], truth)
    names = [folder.parent.name for folder in folders]
    sums = [
        entry_sums(team_entry(name, name, one, truth), truth, COMMON_SENSITIVITY)
        for name, one in zip(names, aligned, strict=True)
    ]
    points = [point_scores(table) for table in sums]
    left_out = replicate_scores(sums, leave_one_out(truth.n_patients))
    n = len(seeds)
    differences = paired_differences(points, left_out, range(n), range(n, 2 * n), truth)
    text = [
        f"{len(truth.cases)} test images of {truth.n_patients} patients, {int(truth.pneumothorax.sum())} positive.",
        "",
        "| seed | score | random start | start from phantoms | difference |",
        "|---|---|---|---|---|",
    ]
    for score in (score for score in SCORES if score in differences):
        for number, seed in enumerate(seeds):
            one, other = points[number][score], points[n + number][score]
            text.append(f"| {seed} | {score} | {other:.4f} | {one:.4f} | {signed(one - other)} |")
        difference = differences[score]
        means = [sum(points[at][score] for at in group) / n for group in (range(n, 2 * n), range(n))]
        low, high = difference.interval()
        text.append(
            f"| mean | {score} | {means[0]:.4f} | {means[1]:.4f} | {signed(difference.value)} "
            f"({signed(low)} to {signed(high)}) |"
        )
    text.append("")
    for score in (score for score in SCORES if score in differences):
        verdict = equivalence_verdict(differences[score])
        text += verdict.sentences(score, differences[score], "start from phantoms", "random start")
    return text


def main() -> None:
    """Print the table of the folders that the command line names."""
    prepared, out = map(Path, sys.argv[1:3])
    seeds = finished_seeds(out)
    if not seeds:
        sys.exit(f"{out} holds no seed whose two runs have finished. Run experiments/from_phantoms/train.sh first.")
    print("\n".join(lines(read_truth(prepared), out, seeds)))


if __name__ == "__main__":
    main()
