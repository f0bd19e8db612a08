"""The design that all pages share: contents, and tables that say their columns in every cell."""

import re

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from keras_pneumo.evaluation.report.page import FOLDS, breakable, folding, headings, render_page

TABLE = (
    '<table class="board"><thead><tr><th scope="col">Team</th><th scope="col">Dice<small>10 images</small></th></tr>'
    '</thead><tbody><tr class="baseline"><th scope="row">A</th><td class="best">0.9<small>0.8 to 1.0</small></td></tr>'
    "</tbody></table>"
)


def test_every_cell_says_its_column():
    page = folding(TABLE)
    assert '<td role="cell" data-label="Dice, 10 images" class="best">0.9<small>0.8 to 1.0</small></td>' in page
    assert '<th role="rowheader" data-label="Team" scope="row">A</th>' in page
    assert '<th role="columnheader" scope="col">Team</th>' in page
    assert f'<table role="table" class="fold-{FOLDS[3]} board">' in page
    assert '<tr role="row" class="baseline">' in page


@given(st.lists(st.text(max_size=8), min_size=1, max_size=14), st.integers(1, 4))
def test_nothing_of_a_table_is_lost(names, rows):
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    cells = "".join(f"<td>{number}</td>" for number in range(len(names)))
    page = folding(f"<table><thead><tr>{heads}</tr></thead><tbody>{f'<tr>{cells}</tr>' * rows}</tbody></table>")
    labels = re.findall(r'data-label="([^"]*)"', page)
    assert labels == [" ".join(str(escape(name)).split()) for name in names] * rows
    plain = re.sub(r' (role|data-label|class)="[^"]*"', "", page)
    assert plain.count("<td>") == len(names) * rows
    width = int(re.search(r"fold-(\d+)", page).group(1))
    assert width == FOLDS[next(most for most in FOLDS if len(names) <= most)]


def test_a_whole_table_stays_as_it_is():
    whole = TABLE.replace("board", "whole")
    assert folding(whole) == whole


def test_the_contents_are_the_headings():
    body = '<h2 id="a">Scores of <b>A &amp; B</b></h2><h2>none</h2><h2 id="c" class="x">C</h2>'
    assert headings(body) == [("a", "Scores of A &amp; B"), ("c", "C")]


def test_a_name_wraps_between_its_words():
    assert breakable("resnet50_v2/a.b") == "resnet50_<wbr>v2/<wbr>a.<wbr>b"
    assert breakable("a_ b__c.") == "a_ b__<wbr>c."
    assert breakable("<i>_x") == "&lt;i&gt;_<wbr>x"


def test_every_page_has_its_contents_its_limits_and_no_outside_resource(tmp_path):
    sections = "".join(f'<section><h2 id="s{n}">Section {n}</h2></section>' for n in range(3))
    (tmp_path / "some.html").write_text(
        '{% extends "base.html" %}{% block title %}T{% endblock %}{% block body %}'
        + sections
        + "{{ name }}{% endblock %}"
    )
    page = render_page("some.html", tmp_path, name="<script>")
    assert "<title>T</title>" in page
    assert page.count('<a href="#s') == 3
    assert page.count("Research use only") == 2
    assert "<script>" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)
    (tmp_path / "short.html").write_text('{% extends "base.html" %}{% block body %}<h2 id="s">S</h2>{% endblock %}')
    assert "Contents" not in render_page("short.html", tmp_path), "one section needs no contents"
