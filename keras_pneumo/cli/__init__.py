"""The command line: the only place that parses arguments and prints to a person.

A command's module is imported when that command is asked for, so that ``keras-pneumo --help`` comes at once and
``keras-pneumo compare`` works without TensorFlow.

Exit codes: 0 done, 1 done but something was set aside, 2 refused, 70 a fault of the program, 75 stopped and to be run
again, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import select
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import typer
import typer.core

from keras_pneumo import __version__
from keras_pneumo.cli.console import err, exit_code_of, out, report
from keras_pneumo.errors import REFUSED, PneumoError

INTERRUPTED = 130
UNREAD = 141
"""Whoever read the output has closed it: 128 and SIGPIPE, as a shell shows it for other programs."""


class Command(NamedTuple):
    """Where a command is written (``NAME_command`` in a module of this package), and its line in the list of all."""

    module: str
    summary: str
    """The first paragraph of the command's docstring."""


COMMANDS = {
    "doctor": Command(
        "data", "Print what this machine has and lacks, or what a folder tells of patients, with what to do."
    ),
    "phantom": Command(
        "data", "Write synthetic chest radiographs as a folder like SIIM-ACR's: DICOM files, label csv, patient table."
    ),
    "download": Command(
        "data",
        "Fetch the SIIM-ACR images and labels from Kaggle, with your own account and after you accepted their rules.",
    ),
    "prepare": Command(
        "data", "Turn radiographs into checked PNGs at one or more sizes, with a patient-level split and a manifest."
    ),
    "inspect": Command("data", "Draw a sheet of images with their masks outlined, by subset and label."),
    "experiments": Command(
        "train", "List the experiments that come with the program: each one's question, what it needs, and its result."
    ),
    "train": Command("train", "Train, predict the test patients, score them, and write report.html."),
    "find-lr": Command("train", "Raise the learning rate step by step, draw the loss, and suggest a rate."),
    "sweep": Command(
        "train",
        "Sweep settings: train trials, end the hopeless ones early, and write the best down as an experiment.",
    ),
    "predict": Command(
        "predict",
        "Predict a prepared subset, or any folder of radiographs: the probability, and by segmenters the mask.",
    ),
    "masks": Command(
        "masks",
        "Make masks from any team's probability maps: the postprocessing is fitted on validation and applied to test.",
    ),
    "explain": Command(
        "explain", "Draw heat maps of where a network looks; on a prepared folder also check what they are worth."
    ),
    "join": Command(
        "detect", "Join classifiers and segmenters into one detector: a folder that can be copied to another machine."
    ),
    "detect": Command(
        "detect",
        "Detect and outline pneumothorax on radiographs: a json and an overlay PNG each, and DICOM objects "
        "with --dicom.",
    ),
    "view": Command(
        "detect",
        "Open a local page that shows each radiograph with its outline, heat maps, and how often such an "
        "answer is wrong.",
    ),
    "export": Command(
        "export",
        "Export a run's best weights, checked on test images against the run itself; or all of it as one zip.",
    ),
    "unpack": Command(
        "export", "Unpack a run or a detector that somebody handed on, and check every file by its hash."
    ),
    "push": Command(
        "export",
        "Push a run or a detector to a model hub, with its model card; nothing that tells who a patient is goes "
        "with it.",
    ),
    "card": Command(
        "export",
        "Write the model card of a run or a detector: data, scores with intervals, baselines, limits, licence.",
    ),
    "track": Command(
        "export",
        "Send a run's log, test scores and curves to MLflow or Weights & Biases; what they have is not sent again.",
    ),
    "evaluate": Command(
        "evaluate",
        "Evaluate a run or a detector on data from elsewhere: prepare, predict, score by source and subgroup, report.",
    ),
    "submission-template": Command(
        "referee",
        "Write a submission to fill in: the ids to predict, and a plain placeholder for each thing that is missing.",
    ),
    "check-submission": Command(
        "referee",
        "Check a submission as `compare` reads it, score nothing, and name all its faults at once, by file and row.",
    ),
    "compare": Command("referee", "Score submissions of any framework by patient, beside metadata-only baselines."),
    "audit-split": Command(
        "referee",
        "Report how many validation images share a patient with training, and the patient-only baseline's score.",
    ),
    "parity": Command(
        "parity", "Compare Keras with PyTorch, check by check, from DICOM pixels to scores, and show where they differ."
    ),
    "compare-frameworks": Command(
        "parity",
        "Train in Keras and in PyTorch with several seeds, and say whether their scores are equivalent.",
    ),
}


class _Commands(Mapping[str, Any]):
    """The commands by name, each imported when it is looked up."""

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS

    def __getitem__(self, name: str) -> Any:
        module = importlib.import_module(f"keras_pneumo.cli.{COMMANDS[name].module}")
        single = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        single.command(name)(getattr(module, f"{name.replace('-', '_')}_command"))
        return typer.main.get_command(single)


class _Group(typer.core.TyperGroup):
    """The group of all commands; its help names them without importing them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment] # typer adds none when all are given here

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Typer would end two kinds of errors with 1, without a word, and a library by a code."""
        try:
            return super().invoke(ctx)
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # a console whose output nobody reads
                raise
            raise RuntimeError(f"a library ended the program with {end.code}") from end
        except (BrokenPipeError, EOFError) as error:
            # Of a worker or a damaged file, unless nobody reads our own output.
            if isinstance(error, BrokenPipeError) and _unread():
                sys.exit(UNREAD)
            raise RuntimeError(f"{type(error).__name__} within the command") from error

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        summaries = [typer.core.TyperCommand(name, help=command.summary) for name, command in COMMANDS.items()]
        plain = typer.core.TyperGroup(
            name=self.name,
            help=self.help,
            params=self.params,
            commands=summaries,
            rich_markup_mode=self.rich_markup_mode,
        )
        plain.format_help(ctx, formatter)


def _unread() -> bool:
    """Whether the reader of the output or of the messages has gone: of a long help, for instance, piped into head."""
    watched = select.poll()
    for stream in (1, 2):
        watched.register(stream, 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))


app = typer.Typer(
    name="keras-pneumo",
    cls=_Group,
    help="Find pneumothorax on chest radiographs, and compare results fairly. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _show_version(requested: bool) -> None:
    if requested:
        out.print(f"keras-pneumo {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Also print what is decided along the way."),
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code; a mistake or a fault becomes one sentence, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of few letters gets others for those that it lacks
            stream.reconfigure(errors="backslashreplace")
    threads: list[BaseException | None] = []
    before, threading.excepthook = threading.excepthook, lambda fault: threads.append(fault.exc_value)
    try:
        _run(arguments, threads)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich ends with 1 when a console cannot write
            _write_no_more()
            sys.exit(UNREAD)
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except OSError:  # a full disk, say
            _write_no_more()
            sys.exit(end.code or REFUSED)
        raise
    finally:
        threading.excepthook = before


def _write_no_more() -> None:
    """Let what is still to be written go nowhere: Python's last flush would complain, and end with 120."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(sink, stream)


def _run(arguments: list[str] | None, threads: list[BaseException | None]) -> None:
    """Run one command; always ends in SystemExit, after saying why. ``threads`` collects errors of other threads."""
    try:
        try:
            app(args=arguments)  # says what is wrong with the arguments itself
        finally:
            if threads and threads[0] is not None:
                raise RuntimeError("a thread of the command failed") from threads[0]
    except PneumoError as error:
        report(error)
        sys.exit(exit_code_of(error))
    except OSError as error:
        report(PneumoError(f"{error.strerror or error}: {error.filename}." if error.filename else f"{error}."))
        sys.exit(REFUSED)
    except Exception as error:
        from keras_pneumo.cli.failure import report_failure

        sys.exit(report_failure(error))
    except SystemExit as end:
        if end.code == INTERRUPTED:
            err.print("Interrupted. Everything that was complete is kept.", highlight=False)
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust, where memory is short, is no Exception
        from keras_pneumo.cli.failure import report_failure

        sys.exit(report_failure(error))
