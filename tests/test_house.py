"""The structure of the package: modules per folder, small modules, modules that nothing imports, and private words."""

import ast
import collections
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_pneumo"
REPOSITORY = PACKAGE.parent
MOST_MODULES = 14
SMALL = 60

REASONS: dict[str, str] = {}
"""Small modules with one importer that are not part of it, and why."""

PRIVATE_WORDS = re.compile(
    r"\b(films?|dealt|stance|rivals?|rungs?|climb(s|ed|ing)?|no-pixel|befall\w*|made to stand|lies on the table)\b",
    re.IGNORECASE,
)
"""Words that only the makers of this project would understand, where the field has a word of its own."""

FILE_FORMATS = {"keras_pneumo/parity/run.py": ['"rungs":']}
"""Keys of files that keep their old words, so that old files stay readable."""


def modules():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in ("__init__.py", "__main__.py")]


def name_of(path):
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def importers():
    """Which modules import each module, the package's own ones only."""
    names = {name_of(path) for path in modules()}
    users = collections.defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            wanted = []
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            for name in wanted:
                if name in names and name != name_of(path):
                    users[name].add(name_of(path))
    return users


@pytest.mark.parametrize(
    "room", sorted({path.parent for path in modules()}), ids=lambda room: str(room.relative_to(REPOSITORY))
)
def test_no_room_is_too_full(room):
    assert len([path for path in room.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]) <= MOST_MODULES


def test_a_small_module_with_one_importer_has_a_reason():
    users = importers()
    small = {
        name_of(path)
        for path in modules()
        if len(path.read_text(encoding="utf-8").splitlines()) < SMALL and len(users[name_of(path)]) == 1
    }
    assert small == set(REASONS)


def test_every_module_is_imported_by_another_or_is_a_way_in():
    users = importers()
    ways_in = {
        "keras_pneumo.api",
        "keras_pneumo.models.fastai",
    }  # fastai: the twin of another team's network, for a notebook
    unused = {name_of(path) for path in modules() if not users[name_of(path)]} - ways_in
    assert not {name for name in unused if not name.startswith("keras_pneumo.cli.")}


def pages():
    kinds = ("*.py", "*.html", "*.js", "*.css")
    files = [path for kind in kinds for path in PACKAGE.rglob(kind)]
    return files + sorted((REPOSITORY / "docs").glob("*.md")) + [REPOSITORY / "README.md"]


def test_no_private_words_are_used():
    used = {}
    for path in pages():
        name, text = str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8")
        for key in FILE_FORMATS.get(name, []):
            assert key in text
            text = text.replace(key, "")
        words = sorted({match.group(0).lower() for match in PRIVATE_WORDS.finditer(text)})
        if words:
            used[name] = words
    assert used == {}
