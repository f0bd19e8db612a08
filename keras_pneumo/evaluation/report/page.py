"""The design that all pages share: head and style, a contents list, and tables that fold into cards where it is narrow.

In: a template that extends ``base.html`` and fills its blocks ``title``, ``verdict`` and ``body``. Out: one offline
HTML file as text. Every ``<h2 id=...>`` of the body becomes an entry of the contents list. Every table of the body that
has a ``<thead>`` learns the names of its columns in each cell, so that the style can show a row as a card where the
table is wider than its place: on a phone, and many columns on paper, too. Nothing is hidden and nothing slides.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

FOLDS = {3: 380, 5: 540, 7: 720, 9: 960, 20: 1064}
"""Most columns of a table -> the width of its place, in CSS pixels, up to which its rows are cards."""

_HEADING = re.compile(r'<h2 id="([^"]+)"[^>]*>(.*?)</h2>', re.DOTALL)
_TABLE = re.compile(r"<table(?![^>]*whole)([^>]*)>(.*?)</table>", re.DOTALL)
_CELL = re.compile(r"<(t[hd])((?:\s[^>]*)?)>(.*?)</\1>", re.DOTALL)
_ROW = re.compile(r"<tr([^>]*)>(.*?)</tr>", re.DOTALL)
_SMALL = re.compile(r"<small[^>]*>(.*?)</small>", re.DOTALL)
_BREAKS = re.compile(r"([_/\\](?=[^\s_/\\])|\.(?=[^\s.\d]))")


class Heading(NamedTuple):
    """A section of a page."""

    id: str
    text: str


def render_page(template: str, *folders: Path, **values: Any) -> str:
    """Render a page.

    Args:
        template: name of a template, which extends ``base.html``.
        folders: where it lies, if not beside the report's templates.
        values: what it shows.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).with_name("templates")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {"headings": headings, "folding": folding, "breakable": breakable}
    templates.globals["FOLDS"] = sorted(FOLDS.values())
    return templates.get_template(template).render(**values)


def headings(body: str) -> list[Heading]:
    """The sections of a page's body: each ``<h2>`` with an id, its text without tags."""
    return [Heading(name, _text(content)) for name, content in _HEADING.findall(body)]


def folding(body: str) -> Markup:
    """The body with the name of its column in every cell of a table (``data-label``), and the width at which it folds.

    The roles keep it a table for a screen reader when its rows are shown as cards. A table of class ``whole`` stays as
    it is.
    """
    return Markup(_TABLE.sub(_folding_table, str(body)))


def breakable(name: str) -> Markup:
    """A name that may wrap after ``_``, ``.``, ``/`` and ``\\``, so that it does not wrap within a word."""
    return Markup(_BREAKS.sub(r"\1<wbr>", str(escape(name))))


def _folding_table(match: re.Match[str]) -> str:
    attributes, content = match.groups()
    head, end, rest = content.partition("</thead>")
    labels = [_label(cell) for _, _, cell in _CELL.findall(head)]
    width = next(width for most, width in FOLDS.items() if len(labels) <= most)
    head = _ROW.sub(r'<tr role="row"\1>\2</tr>', head).replace("<th ", '<th role="columnheader" ')

    def row(found: re.Match[str]) -> str:
        names = iter(labels)
        return f'<tr role="row"{found[1]}>{_CELL.sub(lambda cell: _labelled(cell, next(names, "")), found[2])}</tr>'

    kind = f"fold-{width}"
    named = (
        attributes.replace('class="', f'class="{kind} ') if "class=" in attributes else f' class="{kind}"{attributes}'
    )
    return f'<table role="table"{named}>{head}{end}{_ROW.sub(row, rest)}</table>'


def _labelled(cell: re.Match[str], label: str) -> str:
    tag, attributes, content = cell.groups()
    role = "rowheader" if tag == "th" else "cell"
    return f'<{tag} role="{role}" data-label="{label}"{attributes}>{content}</{tag}>'


def _label(cell: str) -> str:
    """A column's name as text for an attribute, what is small in it after a comma."""
    text = _text(_SMALL.sub(r", \1", cell.replace("<wbr>", "")))
    return text.removeprefix(", ").replace('"', "&quot;")


def _text(content: str) -> Markup:
    """HTML without its tags, but for the places where a word may wrap; what is escaped stays so."""
    return Markup(" ".join(re.sub(r"<(?!wbr>)[^>]+>", "", str(content)).split()))
