"""The commands parity and compare-frameworks: Keras and PyTorch check by check, and by their scores over seeds."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import measure_renderables
from rich.table import Table

from keras_pneumo.cli.console import duration, err, out, say
from keras_pneumo.cli.referee import ROOMY
from keras_pneumo.cli.train import (
    DataArgument,
    LabelsOption,
    PatientsOption,
    PreparedOption,
    SetOption,
    WeightsOption,
    open_data,
)
from keras_pneumo.config import read_experiment, with_settings
from keras_pneumo.quiet import import_tensorflow

if TYPE_CHECKING:
    from keras_pneumo.parity.ladder import Ladder
    from keras_pneumo.parity.seeds.study import Progress


def parity_command(
    torch_python: Annotated[
        Path | None, typer.Option(help="Python of PyTorch's environment; default: .venv-torch of the checkout.")
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Where parity.html and parity.json go.")] = Path(
        "runs/parity"
    ),
    data: Annotated[
        Path | None, typer.Option(help="Radiographs or a prepared folder, read besides the phantoms.")
    ] = None,
    encoder: Annotated[str, typer.Option(help="resnet18, resnet34 or resnet50.")] = "resnet50",
    size: Annotated[int, typer.Option(help="Side of the networks' images, a multiple of 32.")] = 64,
    torch_script: Annotated[
        Path | None, typer.Option(help="PyTorch's script; default: experiments/torch_team/ladder.py of the checkout.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the files that the processes exchanged.")] = False,
) -> None:
    """Compare Keras with PyTorch, check by check, from DICOM pixels to scores, and show where they differ.

    It needs PyTorch in an environment of its own: `make setup-torch`. Exit code 1: a check is beyond its bound.

    Example (in a checkout of the project): `keras-pneumo parity --encoder resnet18`
    """
    from keras_pneumo.parity.backends import torch_python as find_python
    from keras_pneumo.storage.files import require_free

    find_python(torch_python)  # refuse before TensorFlow is loaded
    require_free(out_folder)
    import_tensorflow(for_command=True)
    from keras_pneumo.models.resnet import depth_of
    from keras_pneumo.parity.inputs import LadderPlan
    from keras_pneumo.parity.run import PAGE, run_ladder

    depth_of(encoder)
    plan = LadderPlan(encoder=encoder, size=size)
    with err.status("parity") as status:

        def show(now: str) -> None:
            status.update(f"parity: {now}")
            if not err.is_terminal:
                err.print(f"parity: {now}", highlight=False)

        ladder = run_ladder(out_folder, data, plan, torch_python, torch_script, keep, show)
    show_ladder(ladder)
    say(str(out_folder / PAGE))
    if ladder.broken:
        raise typer.Exit(1)


def show_ladder(ladder: Ladder) -> None:
    """Print the table, the remark on each check, and the verdict; plain where it is piped."""
    from keras_pneumo.parity.ladder import shown
    from keras_pneumo.parity.page import measured

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    jax = ["Keras on JAX"] if "keras_on_jax" in ladder.versions else []
    for name in ("check", "what", "absolute", "relative", "Keras on torch", *jax, "bound", "first beyond it", ""):
        table.add_column(name, no_wrap=True)
    for result in ladder.results:
        state = "[green]holds[/]" if result.passed else "[bold red]BROKEN[/]"
        figures = [shown(result.keras.absolute), shown(result.keras.relative), measured(result.keras_on_torch)]
        figures += [measured(result.keras_on_jax)] if jax else []
        cells = (f"{result.number}. {result.title}", result.what, *figures, result.bound, result.first)
        table.add_row(*map(escape, cells), state)
    wide = Console(file=out.file, width=max(out.width, measure_renderables(out, ROOMY, [table]).maximum))
    wide.print(table, highlight=False, crop=False)
    lines = []
    for result in ladder.results:
        absent = f" Keras on torch: {result.absent}." if result.absent else ""
        absent += f" Keras on JAX: {result.absent_on_jax}." if result.absent_on_jax else ""
        lines.append(f"{result.number}. {result.remark}{absent}")
    for line in dict.fromkeys(lines):
        say(line)
    say(ladder.verdict)


def compare_frameworks_command(
    experiment_file: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="Its name, or a file.")],
    data: DataArgument,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the comparison; default: runs/frameworks-EXPERIMENT.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each team; five say something.")] = 5,
    margin: Annotated[
        float, typer.Option(help="Scores that differ by less are equivalent; declared before the first training.")
    ] = 0.02,
    controls: Annotated[
        int, typer.Option(min=0, help="Seeds of which PyTorch trains again, its start changed in the last bit.")
    ] = 2,
    prepared_folder: PreparedOption = None,
    labels: LabelsOption = None,
    patients: PatientsOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    torch_python: Annotated[
        Path | None, typer.Option(help="Python of PyTorch's environment; default: .venv-torch of the checkout.")
    ] = None,
    keras_command: Annotated[
        str | None, typer.Option(help="How our side is started, before the word train; default: this program.")
    ] = None,
) -> None:
    """Train in Keras and in PyTorch with several seeds, and say whether their scores are equivalent.

    For each seed both teams start from the same weights, with the same order and augmentations. The verdict is
    equivalent, different or undecided, at a margin that is declared before the first training. What was interrupted
    goes on when the same command is started again; more --seeds may follow.

    It needs PyTorch in an environment of its own: `make setup-torch`.

    Example (in a checkout of the project): `keras-pneumo phantom data/phantom-try --images 60 &&
    keras-pneumo compare-frameworks experiments/smallest_classifier.py --data data/phantom-try --seeds 2 --controls 1`
    """
    from keras_pneumo.parity.backends import torch_python as find_python
    from keras_pneumo.parity.seeds.page import sentences_of, write_answer
    from keras_pneumo.parity.seeds.study import Study, compare_frameworks, team_name
    from keras_pneumo.storage.files import require_free

    find_python(torch_python)  # refuse before images are prepared
    experiment = with_settings(read_experiment(experiment_file), settings or ())
    out_folder = out_folder or Path("runs") / f"frameworks-{experiment.name}"
    require_free(out_folder)
    prepared = open_data(data, experiment, prepared_folder, labels, patients)
    study = Study(experiment, prepared, out_folder, seeds, margin, controls)
    with err.status("compare-frameworks") as status:
        shown: list[tuple[int, str]] = []

        def show(now: Progress) -> None:
            training = now.training
            left = "" if now.seconds_left is None else f", about {duration(now.seconds_left)} left"
            place = f"training {now.done + 1} of {now.total}: {team_name(training.team)}, seed {training.seed}{left}"
            status.update(f"{escape(place)}; {escape(now.line)}" if now.line else escape(place))
            if not err.is_terminal and (training.seed, training.team) not in shown:
                shown.append((training.seed, training.team))
                err.print(place, markup=False, highlight=False, soft_wrap=True)

        comparison = compare_frameworks(
            study, torch_python, None, shlex.split(keras_command) if keras_command else None, weights, show
        )
    for name in comparison.verdicts:
        for sentence in sentences_of(comparison, name):
            say(sentence)
    say(str(write_answer(comparison)))
