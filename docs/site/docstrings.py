"""An extension of Griffe: docstrings as MkDocs reads them.

The package's docstrings have one ``Example:`` and Sphinx's roles, such as ``:func:`.read_truth```, which editors know.
"""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|meth|class|attr|data|mod|exc|const|obj):`~?\.?(?:[\w.]*\.)?(\w+)`")


def plain(text: str) -> str:
    """A docstring with ``Examples:`` for ``Example:``, and names in place of roles."""
    return ROLE.sub(r"`\1`", re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.MULTILINE))


class PlainDocstrings(griffe.Extension):
    """Changes the docstring of each object when it was read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change one object's docstring."""
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)
