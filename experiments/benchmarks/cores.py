"""How input grows with cores: the threads that put batches together, against DataLoader with images in memory.

As in ``input.py``, without TensorFlow's datasets, which only hand finished batches on: so these rows can be measured
where TensorFlow cannot be brought. On machines of one or two cores ``input.py`` has said it all, and there is no row.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from worker import serve

if TYPE_CHECKING:
    from lab import Lab
    from measuring import Row

HERE = Path(__file__).resolve().parent
RADIOGRAPHS, SIZE, BATCH, EPOCHS, GOAL = 400, 512, 16, 4, 2.0


def rows(lab: Lab) -> Iterator[Row]:
    """One row for 1, 2, 4 ... cores."""
    from measuring import Row, Worker

    cpus = sorted(os.sched_getaffinity(0))
    counts = [2**power for power in range(len(cpus).bit_length())] if len(cpus) > 2 else []
    for cores in counts:
        folder = lab.folder / f"phantoms-input-prepared-{SIZE}"
        bound = ["taskset", "-c", ",".join(map(str, cpus[:cores]))]
        their_side = [*bound, lab.torch_python or "", HERE / "input.py", "theirs", "memory", folder, "labels"]
        yield Row(
            f"input without TensorFlow: later epochs at {SIZE}, against its images in memory, {cores} cores",
            "images/s",
            GOAL,
            Worker([*bound, lab.python, Path(__file__), folder], EPOCHS, lab.environment),
            Worker(their_side, EPOCHS, {**lab.torch_environment, "NO_ALBUMENTATIONS_UPDATE": "1"}),
            f"DataLoader with albumentations, {cores if cores > 1 else 'no'} worker processes, its images in memory",
            prepare=lambda: lab.prepared(lab.phantoms(RADIOGRAPHS, name="phantoms-input"), SIZE),
            unmeasurable=lab.missing(lab.torch_python, "torch", "albumentations"),
        )


def set_up(folder: Path) -> Callable[[int], int]:
    """A function that takes some epochs of the training images, augmented, and gives their number."""
    from keras_pneumo.config import Augmentation
    from keras_pneumo.data.batches.assembly import training_assembly
    from keras_pneumo.data.batches.images import open_source
    from keras_pneumo.data.batches.order import TrainingPlan
    from keras_pneumo.data.prepared.folder import load_prepared

    prepared = load_prepared(folder)
    source = open_source(prepared, prepared.subset("train", fold=0), SIZE)
    plan = TrainingPlan(
        seed=0, batch_size=BATCH, first_epoch=0, last_epoch=1000, positive_rate=(), augmentation=Augmentation()
    )
    batches, steps = training_assembly(source, plan)
    numbers = iter(range(steps))

    def run(epochs: int) -> int:
        images = 0
        while images < epochs * len(source):
            images += len(batches.take(next(numbers), steps)[0])
        return images

    return run


if __name__ == "__main__":
    serve(lambda: set_up(Path(sys.argv[1])))
