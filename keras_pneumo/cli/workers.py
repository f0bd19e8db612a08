"""What several commands share: how runs and data are named, options of prediction, how workers keep together."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_pneumo.cli.console import exit_code_of, report, warn
from keras_pneumo.cli.failure import report_failure
from keras_pneumo.errors import REFUSED, PneumoError

if TYPE_CHECKING:
    from keras_pneumo.training.distributed.strategy import Distribution


def run_folder(name: str) -> Path:
    """The folder of a run or a detector; all commands take it as a folder, a zip of ``export``, or ``hf://OWNER/NAME``.

    Raises:
        PneumoError: the zip or the hub refuses.
    """
    from keras_pneumo.sharing.hub import received

    folder, address = received(name)
    if address not in ("", name):
        warn(f"{name} is {address}. Write that to get the same one again.")
    return folder


def require_out(folder: Path) -> None:
    """Refuse to write into a package that was received: it would no longer be what its sender made.

    Raises:
        PneumoError: ``folder`` is one.
    """
    from keras_pneumo.sharing.hub import is_received

    if is_received(folder):
        raise PneumoError("A zip or an address on a hub is not written into. Name a folder of your own with --out.")


DataOption = Annotated[
    list[Path] | None, typer.Option("--data", help="Another way to name what is named without an option.")
]


def data_of(named: Sequence[Path] | Path | None, option: Sequence[Path] | None, place: str) -> list[Path]:
    """The data that a command was given: all commands take ``--data``, and some take it without an option too.

    Args:
        named: without an option.
        option: with ``--data``.
        place: how the help names it without an option.

    Raises:
        PneumoError: both are given, or neither.
    """
    own = [named] if isinstance(named, Path) else list(named or [])
    if own and option:
        raise PneumoError(f"The data is named twice, as {place} and with --data. Name it once.")
    if not own and not option:
        raise PneumoError("No data is named. Name it with --data.")
    return own or list(option or [])


def one_of(folders: Sequence[Path]) -> Path:
    """The only one of the folders that ``--data`` named.

    Raises:
        PneumoError: there are several.
    """
    if len(folders) > 1:
        raise PneumoError(f"This command takes one folder, and --data names {len(folders)}. Leave out all but one.")
    return folders[0]


class EngineName(StrEnum):
    """The engines, for the command line."""

    KERAS = "keras"
    ONNX = "onnx"
    AUTO = "auto"


EngineOption = Annotated[
    EngineName,
    typer.Option(help="keras, onnx (ONNX Runtime, extra export), or auto: the faster one, where a trial pays."),
]
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


@contextlib.contextmanager
def ended_together(distribution: Distribution) -> Iterator[None]:
    """With several workers, leave at once on a fault: TensorFlow would wait for those that are gone."""
    from keras_pneumo.storage.interruption import stopped_at_once
    from keras_pneumo.training.distributed.strategy import lost_workers

    if distribution.workers == 1:
        yield
        return
    try:
        yield
        # The others wait for the chief's report, so that it does not find them gone.
        with stopped_at_once("The same command again predicts and reports."), lost_workers(distribution):
            distribution.broadcast(0)
    except PneumoError as fault:
        report(fault)
        _leave(exit_code_of(fault))
    except OSError as fault:  # a full disk, or one that cannot be written; as the command line says it otherwise
        report(PneumoError(f"{fault.strerror or fault}: {fault.filename}." if fault.filename else f"{fault}."))
        _leave(REFUSED)
    except Exception as fault:
        _leave(report_failure(fault))


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
