"""Tests that refusals reach the user: no handler of damaged files or of unexpected errors catches a PneumoError."""

import ast
import io
from pathlib import Path

import pytest
from PIL import Image

from keras_pneumo.data.radiographs import dicom, raster
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.training import checkpoints

PACKAGE = Path(checkpoints.__file__).parents[1]
MODULES = sorted(PACKAGE.rglob("*.py"))


def names_of(handler):
    """The exceptions that a handler catches; BaseException where it names none."""
    if handler.type is None:
        return {"BaseException"}
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {node.id if isinstance(node, ast.Name) else node.attr for node in types}


def raises_again(handler):
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def swallowing_handlers(source):
    """Lines of handlers of every exception that neither name PneumoError, nor come after one of it, nor raise again."""
    for block in ast.walk(ast.parse(source)):
        if not isinstance(block, ast.Try):
            continue
        caught = set()
        for handler in block.handlers:
            names = names_of(handler)
            if (
                names & {"Exception", "BaseException"}
                and "PneumoError" not in caught | names
                and not raises_again(handler)
            ):
                yield handler.lineno
            caught |= names


def test_a_refusal_is_no_value_error():
    assert not issubclass(PneumoError, ValueError)
    assert not issubclass(Stopped, ValueError)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_handler_of_every_exception_takes_a_refusal_for_its_own(path):
    assert not list(swallowing_handlers(path.read_text()))


def test_a_swallowing_handler_is_found():
    assert list(swallowing_handlers("try:\n    f()\nexcept Exception:\n    pass\n")) == [3]
    assert not list(swallowing_handlers("try:\n    f()\nexcept PneumoError:\n    raise\nexcept Exception:\n    pass\n"))


def test_an_interruption_while_a_file_is_decoded_is_no_damaged_file(monkeypatch):
    def interrupted(*arguments):
        raise Stopped("SIGTERM came.")

    monkeypatch.setattr(raster, "check_size", interrupted)
    stream = io.BytesIO()
    Image.new("L", (2, 2)).save(stream, "PNG")
    with pytest.raises(Stopped):
        raster.decode_image(stream.getvalue(), "x")
    monkeypatch.setattr(dicom, "check_deflated", interrupted)
    with pytest.raises(Stopped):
        dicom.open_dataset(b"", stop_before_pixels=True)
