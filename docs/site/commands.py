"""Writes the page of all commands from their functions: what ``keras-pneumo COMMAND --help`` says.

``python docs/site/commands.py build/commands.md``, in the program's environment; ``make docs`` does it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from keras_pneumo.cli import COMMANDS

EXIT_CODES = (
    "Exit codes: 0 done, 1 done but something was set aside, 2 refused, 70 a fault of the program, 75 stopped and to "
    "be started again, 130 interrupted, 141 nobody reads the output any more."
)


def page() -> str:
    """The whole page, Markdown: every command with its arguments and options."""
    lines = ["# Command line", "", "`keras-pneumo COMMAND`, or `python -m keras_pneumo COMMAND`.", "", EXIT_CODES, ""]
    lines += ["| command | what it does |", "|---|---|"]
    lines += [f"| [`{name}`](#keras-pneumo-{name}) | {_cell(command.summary)} |" for name, command in COMMANDS.items()]
    for name, command in COMMANDS.items():
        module = importlib.import_module(f"keras_pneumo.cli.{command.module}")
        lines += ["", *section(name, getattr(module, f"{name.replace('-', '_')}_command"))]
    return "\n".join(lines) + "\n"


def section(name: str, function: Callable[..., None]) -> list[str]:
    """One command: its docstring, and a table of its arguments and options, from the function's signature."""
    types_of = typing.get_type_hints(function, include_extras=True)
    rows, arguments = [], []
    for parameter in inspect.signature(function).parameters.values():
        kind, *notes = typing.get_args(types_of[parameter.name])
        (info,) = (note for note in notes if isinstance(note, ArgumentInfo | OptionInfo))
        if info.hidden:
            continue
        needed = parameter.default is inspect.Parameter.empty
        if isinstance(info, ArgumentInfo):
            word = info.metavar or parameter.name.upper()
            arguments.append(word if needed or word.startswith("[") else f"[{word}]")
            names = f"`{word}`"
        else:
            names = ", ".join(f"`{each}`" for each in _names_of(parameter.name, kind, info))
            if needed:
                arguments.append(f"{_names_of(parameter.name, kind, info)[0]} ...")
        default = "required" if needed else _shown(parameter.default)
        rows.append(f"| {names} | {_cell(' '.join(filter(None, (info.help, _allowed(kind)))))} | {default} |")
    return [
        f"## keras-pneumo {name}",
        "",
        *inspect.cleandoc(function.__doc__ or "").splitlines(),
        "",
        "```",
        f"keras-pneumo {name} {' '.join(arguments)}".rstrip(),
        "```",
        *(["", "| argument or option | what it is | default |", "|---|---|---|", *rows] if rows else []),
    ]


def _names_of(name: str, kind: Any, info: OptionInfo) -> list[str]:
    """The option as it is written; a switch also as it is turned off."""
    declared = (info.default, *(info.param_decls or ()))  # within Annotated the first name stands as the default
    if names := [each for text in declared if isinstance(text, str) for each in text.split("/") if each[:1] == "-"]:
        return names
    word = name.replace("_", "-")
    return [f"--{word}", f"--no-{word}"] if kind is bool else [f"--{word}"]


def _allowed(kind: Any) -> str:
    """The values of a choice, in words; nothing for other types."""
    if isinstance(kind, types.UnionType):
        (kind,) = (one for one in typing.get_args(kind) if one is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return f"One of {', '.join(f'`{value}`' for value in typing.get_args(kind))}."
    return ""


def _shown(default: Any) -> str:
    if default is None or default is False or default in ([], ()):  # 0 is a default
        return ""
    return "yes" if default is True else f"`{getattr(default, 'value', default)}`"


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(), encoding="utf-8")
