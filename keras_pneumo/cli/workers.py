"""What the commands that run on several devices or hosts share: their options, and how workers keep together."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_pneumo.cli.console import exit_code_of, report
from keras_pneumo.errors import PneumoError
from keras_pneumo.training.place import Place

if TYPE_CHECKING:
    from keras_pneumo.training.distribution import Engine

StrategyOption = Annotated[
    str,
    typer.Option(
        "--strategy", help="auto, one (device), mirrored (all GPUs of a host), or multiworker (several hosts)."
    ),
]
ReplicasOption = Annotated[
    int | None,
    typer.Option("--replicas", min=1, help="Devices of this host; without GPUs, parts that the CPU is divided in."),
]
WaitOption = Annotated[
    float, typer.Option("--wait-for-workers", min=1, help="Seconds that workers wait for one another.")
]


def shared_place(engine: Engine, find: Callable[[], Place]) -> Place:
    """What the chief finds, on every worker."""
    if engine.workers == 1:
        return find()
    place = find() if engine.chief else None
    text = engine.agree_text(json.dumps([str(place.folder), place.resume, place.finished]) if place else "")
    folder, resume, finished = json.loads(text)
    return Place(Path(folder), resume, finished)


@contextlib.contextmanager
def ended_together(engine: Engine) -> Iterator[None]:
    """With several workers, leave at once on a fault: TensorFlow would wait for those that are gone."""
    try:
        yield
    except PneumoError as fault:
        if engine.workers == 1:
            raise
        report(fault)
        os._exit(exit_code_of(fault))
    if engine.workers > 1:
        engine.agree(0)  # the others wait for the chief's report, lest it find them gone
