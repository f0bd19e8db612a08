"""Which run's weights a training began from, and that a start that goes on with it does not change the answer.

In: what the user named now, and the run folder. Out: what ``experiment.json`` says of it, by which submissions declare
what the weights have seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.run import RunFolder
from keras_pneumo.storage.files import sha256_file
from keras_pneumo.training.checkpoints import Checkpoint
from keras_pneumo.training.place import record_of

Origin = dict[str, Any]


def origin_of(start_from: RunFolder | None, folder: Path, found: Checkpoint | None, resume: bool) -> Origin | None:
    """What the record is to say of where the weights came from; None where they came from no other run.

    Args:
        start_from: the run that the user named for this start of the program.
        folder: the run folder.
        found: the checkpoint that is gone on from.
        resume: whether the folder may hold this training's record.

    Raises:
        PneumoError: the training in the folder began otherwise, or has to begin anew and its origin is not named.
    """
    given = _described(start_from) if start_from is not None else None
    record = record_of(folder) if resume else {}
    if not record:
        return given
    before: Origin | None = record.get("start_from")
    if given is None:
        if before is not None and found is None:
            raise PneumoError(
                f"The training in {folder} is to start from the weights of {before.get('name', 'another run')} and has "
                "no checkpoint yet. Name that run with --start-from again."
            )
        return before
    began = "its own first weights" if before is None else f"other weights, those of {before.get('name', 'a run')}"
    # Earlier versions forgot the origin when they went on; the log still has the row of such a start.
    forgotten = before is None and found is not None and any(row["epoch"] == 0 for row in found.state["rows"])
    if not forgotten and (before is None or before.get("weights_sha256") != given["weights_sha256"]):
        raise PneumoError(
            f"The training in {folder} began from {began}, not from {given['name']}'s as --start-from says. Go on with "
            "it as it began, or train into another folder with --out."
        )
    return before or given


def _described(run: RunFolder) -> Origin:
    return {
        "name": run.experiment.name,
        "image_size": run.experiment.image_size,
        "weights_sha256": sha256_file(run.weights),
        "pretraining": run.pretraining,
    }
