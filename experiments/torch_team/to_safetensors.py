"""Converts a PyTorch weight file (.pth, .pt, .bin) to safetensors, in PyTorch's own environment.

    python experiments/torch_team/to_safetensors.py model.pth model.safetensors

The file is read with ``weights_only=True``, which makes tensors and plain containers and runs no code. A bare state
dict is converted as it is; one under ``model``, ``state_dict`` or ``model_state_dict`` (fastai's ``learn.save`` and
most training scripts do this) is read from there; the ``module.`` that DataParallel puts before every name is removed.
Values are copied; bfloat16, which numpy lacks, is widened to float32, exactly.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch
from safetensors.torch import save_file

CONTAINERS = ("model", "state_dict", "model_state_dict")
"""Where training scripts put the state dict, beside an optimizer's state and more."""


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a file that torch.save wrote")
    parser.add_argument("target", type=Path, help="the safetensors file to write")
    given = parser.parse_args()
    if given.target.exists():
        refuse(f"{given.target} exists already; it was not changed. Name another file.")
    state = checked(load(given.source), given.source)
    temporary = given.target.with_name(given.target.name + ".part")
    try:
        save_file(state, temporary, metadata={"format": "pt"})
        temporary.replace(given.target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        refuse(f"{given.target} could not be written: {error}.")
    print(f"{len(state)} tensors, {sum(value.numel() for value in state.values()):,} values: {given.target}")


def load(path: Path) -> object:
    """Read the file's content without running any of its code."""
    try:
        with torch.serialization.safe_globals(fastai_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        refuse(f"There is no {path}.")
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            refuse(f"{path} is not a whole file that torch.save wrote. Copy it again, or name another.")
        refuse(
            f"{path} holds more than tensors and plain containers: {wanted.group(1)}, and loading that would run code "
            "that the file names. Save the state dict alone where the model was made: "
            "torch.save(model.state_dict(), 'model.pth'), or in fastai learn.save('model', with_opt=False)."
        )
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError):
        refuse(f"{path} is not a whole file that torch.save wrote. Copy it again, or name another.")


def fastai_types() -> list:
    """Return the list type that fastai's optimizers keep their settings in; fastai itself allows it in the same way."""
    with contextlib.suppress(ImportError):
        from fastcore.foundation import L

        return [L]
    return []


def checked(content: object, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in the content, with plain names; name and refuse everything that is not a tensor."""
    if not isinstance(content, Mapping):
        refuse(f"{path} holds a {type(content).__name__}, not a state dict (tensors by name).")
    for name in CONTAINERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others or not content:
        shown = ", ".join(others[:10]) + (", ..." if len(others) > 10 else "")
        refuse(f"{path} is no state dict: {f'what it names {shown} is no tensor' if others else 'it is empty'}.")
    strange = [name for name, value in content.items() if value.layout != torch.strided or value.is_quantized]
    if strange:
        refuse(f"{path} has sparse or quantized tensors, which safetensors cannot hold: {', '.join(strange[:10])}.")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    # Copies, since two names may share memory (tied weights), which safetensors refuses.
    wide = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in content.items()}
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in wide.items()}


def refuse(reason: str) -> NoReturn:
    """End with a sentence and exit code 2."""
    print(f"Refused. {reason}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
