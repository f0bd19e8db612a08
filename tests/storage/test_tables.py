"""Reading csv files row by row, ids of images, and texts that do no harm in a spreadsheet, a page or a terminal."""

import csv
import gzip

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage import tables
from keras_pneumo.storage.tables import (
    image_id_of,
    one_line,
    read_columns,
    read_rows,
    read_table,
    set_aside_sentences,
    slug,
    spreadsheet_safe,
    table_text,
    visible,
)


def test_rows_come_with_the_number_of_their_line(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfa, b\n\n  \n 1 ,2\n"))
    assert list(read_rows(path)) == [(1, ["a", "b"]), (4, ["1", "2"])]
    assert csv.field_size_limit() == 131_072  # other users of the csv module keep their own limit


def test_a_table_has_text_cells_and_line_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,\n01,nan,\n\nx\n")
    table = read_table(path)
    assert table.to_dict("list") == {"a": ["01", "x"], "b": ["nan", ""], "": ["", ""], "row": [2, 4]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,a\n1,2\n", "names the column 'a' twice"),
        (f"{'a' * 9999},{'a' * 9999}\n", f"names the column '{'a' * 79}…' twice"),
        ("a,row\n1,2\n", "has a column called 'row'"),
        ("a\n1,2\n", "line 2, has 2 cells, but the header has 1"),
        ('a\n"1\n', "is not csv"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(PneumoError, match=message):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("cell", ["a", " a ", "a.dcm", "a.PNG", "a.png.png", "a.dcm.jpeg"])
def test_an_image_id_has_no_file_ending(cell):
    assert image_id_of(cell) == "a"


def test_other_endings_belong_to_the_id():
    assert image_id_of("1.2.276.0.3") == "1.2.276.0.3"
    assert image_id_of("e\u0301.png") == "\u00e9"


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_names_are_harmless_everywhere(text):
    name = slug(text, taken=["team"])
    assert name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert name != "team"
    line = one_line(text, 40)
    assert len(line) <= 40
    assert line.isprintable() or line == ""
    assert not spreadsheet_safe(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_row_36_a_line_without_end_and_a_row_of_commas_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_MAX_CELL", 1000)
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n" + "3," * 1500)
    with pytest.raises(PneumoError, match="line 3, is longer than 2,000 characters"):
        read_table(path)
    path.write_text("," * 5000)
    monkeypatch.setattr(tables, "_MAX_CELL", 10_000)
    with pytest.raises(PneumoError, match="has 5,001 cells"):
        read_table(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system(tmp_path, end):
    (tmp_path / "a.csv").write_bytes(f'a,b{end}1,"x{end}y"{end}{end}2,z'.encode())
    assert [cells for _, cells in read_rows(tmp_path / "a.csv")] == [["a", "b"], ["1", f"x{end}y"], ["2", "z"]]


def test_row_24_names_that_attack():
    assert spreadsheet_safe('=HYPERLINK("http://x","y")') == '\'=HYPERLINK("http://x","y")'
    assert slug("../../x") == "x"
    assert slug("<script>alert(1)</script>") == "script-alert-1-script"
    assert slug("Team", ["team", "team-2"]) == "team-3"
    assert one_line("a\x1b[31mred\u202egnp.exe") == "a [31mred gnp.exe"
    text = table_text(pd.DataFrame({"team": ["=1+1", "ok"], "dice": [-0.5, 0.25]}))
    assert text == "team,dice\n'=1+1,-0.5\nok,0.25\n"


@given(
    st.lists(st.lists(st.text(' ab,"\n', max_size=4), max_size=4), max_size=6),
    st.lists(st.sampled_from(["a", "B ", "b", "c", "d"]), min_size=1, max_size=3),
)
def test_columns_are_those_of_the_rows(tmp_path_factory, rows, names):
    path = tmp_path_factory.getbasetemp() / "columns.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["A", "b", " c "], *rows])
    (_, header), *expected = read_rows(path)
    columns = read_columns(path, names)
    assert columns.numbers == [number for number, _ in expected]
    for name in names:
        place = {"a": 0, "b": 1, "c": 2}.get(name.strip().lower())
        assert columns.column(name) == [
            cells[place] if place is not None and place < len(cells) else "" for _, cells in expected
        ]
    assert header == ["A", "b", "c"]


def test_columns_of_no_table(tmp_path):
    (tmp_path / "empty.csv").write_text("\n")
    assert read_columns(tmp_path / "empty.csv", ["a"]).column("a") == []
    (tmp_path / "bad.csv").write_text('a\n"1" 2\n')
    with pytest.raises(PneumoError, match=r"bad.csv, line 2, is not csv"):
        read_columns(tmp_path / "bad.csv", ["a"])


def test_control_characters_of_a_name_are_shown_and_not_obeyed():
    assert visible("a\x1b[31m\u202eb\nc") == "a\\x1b[31m\\u202eb\\nc"
    assert visible("two  blanks ž.dcm") == "two  blanks ž.dcm"


def test_what_was_set_aside_is_said_once_for_each_reason_with_its_files():
    rows = [{"file": f"{number}.nii", "reason": "not read."} for number in range(5)]
    rows += [{"file": "a\x1b.dcm", "reason": "empty"}, {"file": "b.dcm", "reason": "cut"}]
    assert set_aside_sentences(rows) == [
        "0.nii, 1.nii, 2.nii and 2 more: not read.",
        r"a\x1b.dcm: empty.",
        "b.dcm: cut.",
    ]
    assert set_aside_sentences(rows, most=1)[1:] == ["2 more are listed in quarantine.csv."]
    assert set_aside_sentences([]) == []
