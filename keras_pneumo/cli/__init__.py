"""The command line: the only place that parses arguments and prints to a person.

Exit codes: 0 done, 1 done but something was set aside, 2 refused, 75 stopped and to be run again, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys

import typer

from keras_pneumo import __version__
from keras_pneumo.cli import data, detect, explain, export, parity, predict, referee, train
from keras_pneumo.cli.console import REFUSED, err, exit_code_of, out, report
from keras_pneumo.errors import PneumoError

INTERRUPTED = 130

app = typer.Typer(
    name="keras-pneumo",
    help="Find pneumothorax on chest radiographs, and compare results fairly. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data.add_commands(app)
train.add_commands(app)
predict.add_commands(app)
explain.add_commands(app)
detect.add_commands(app)
export.add_commands(app)
referee.add_commands(app)
parity.add_commands(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"keras-pneumo {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Also print what is decided along the way."),
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code; faults of the user's become one sentence, never a traceback."""
    try:
        app(args=arguments)  # ends in SystemExit, and says what is wrong with the arguments itself
    except PneumoError as error:
        report(error)
        sys.exit(exit_code_of(error))
    except OSError as error:
        _refuse(f"{error.strerror or error}: {error.filename}." if error.filename else f"{error}.")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            err.print("Interrupted; what was complete is kept.", highlight=False)
        raise


def _refuse(reason: str) -> None:
    report(PneumoError(reason))
    sys.exit(REFUSED)
