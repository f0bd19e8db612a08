"""The notebooks as they are kept: no outputs; links, commands and names exist. `make notebooks` runs them."""

import ast
import json
import re
from pathlib import Path

import pytest

import keras_pneumo as kp
from keras_pneumo.cli import COMMANDS

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def trees(path):
    return [ast.parse("".join(cell["source"])) for cell in cells(path, "code")]


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["compare_your_pytorch_model", "first_steps"]


@notebooks
def test_no_output_is_kept(path):
    for cell in cells(path, "code"):
        assert (cell["outputs"], cell["execution_count"], cell["metadata"]) == ([], None, {})


@notebooks
def test_names_commands_and_links_exist(path):
    for tree in trees(path):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "kp":
                assert node.attr in kp.__all__
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command":
                assert ast.literal_eval(node.args[0]) in COMMANDS
    text = "".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (FOLDER / target).is_file(), target


def test_torch_is_imported_only_where_it_is():
    """TensorFlow is in a process of its own there, so the two never meet."""
    (tree,) = [tree for tree in trees(FOLDER / "compare_your_pytorch_model.ipynb") if "'torch'" in ast.dump(tree)]
    at_the_top = [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
    assert "torch" not in at_the_top
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & {"train", "load_run", "build_classifier", "dataset"}
