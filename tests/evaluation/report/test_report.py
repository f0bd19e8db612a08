"""The report page: well-formed, offline, escaped, without patient ids; and its charts."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.report.report import flat_facts, write_comparison_report, write_run_report

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Tree(HTMLParser):
    """Checks that every opened element is closed in order, and collects addresses."""

    def __init__(self, page):
        super().__init__()
        self.open, self.addresses, self.errors = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.errors += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)


def sound(page):
    tree = Tree(page)
    assert tree.open == []
    assert tree.errors == []
    assert all(address.startswith(("data:", "#")) for address in tree.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "Research use only" in page


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path)


def radiograph(_image_id):
    return np.full((64, 64), 90, np.uint8)


def test_run_report(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "Keras <b>&</b>", 1))
    log = pd.DataFrame({"epoch": [1, 2], "loss": [0.7, 0.5], "validation_auroc": [0.6, np.nan], "phase": ["a", "b"]})
    facts = {"seed": 3, "versions": {"keras": "3.15"}, "command": "<script>alert(1)</script>", "ids": list(range(40))}
    path = write_run_report(tmp_path / "r" / "report.html", board, log, facts, radiograph)
    page = path.read_text()
    sound(page)
    assert "Keras &lt;b&gt;&amp;&lt;/b&gt;" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "40 entries" in page
    assert "data:image/jpeg;base64," in page
    assert "The most confident errors" in page
    assert 'aria-label="ROC curves"' in page
    assert 'aria-label="Loss"' in page
    assert not any(f">{patient}<" in page or f" {patient} " in page for patient in truth.cases.patient_id)
    shown = [team.point["auroc"] for team in board.teams]
    assert f"{shown[0]:.3f}" in page


def test_the_errors_are_the_most_confident_ones(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 0.5))
    page = write_run_report(tmp_path / "r.html", board).read_text()
    entry = board.teams[0]
    wrong = truth.pneumothorax & ~entry.decision
    first = truth.cases.image_id[np.flatnonzero(wrong)[np.argmin(entry.probability[wrong])]]
    missed = page[page.index("Missed (") : page.index("False alarms (")]
    assert missed.index(f"<small>{first}</small>") == missed.index("<small>")
    assert f"Missed ({int(wrong.sum())})" in page
    assert "radiograph not available" in page


def test_comparison_report(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2), submit(tmp_path / "b", truth, "B", 2, seed=1))
    page = write_comparison_report(tmp_path / "c.html", board).read_text()
    sound(page)
    assert "Patient only" in page
    assert "Leads of" in page
    single = write_comparison_report(tmp_path / "d.html", board_of(truth, tmp_path / "a")).read_text()
    sound(single)


def test_report_of_masks_only_and_of_one_class(tmp_path):
    rows = "".join(f"i{n},p{n},test,0,-1\n" for n in range(4))
    (tmp_path / "truth.csv").write_text("image_id,patient_id,subset,pneumothorax,encoded_pixels\n" + rows)
    (tmp_path / "k.csv").write_text("ImageId,EncodedPixels\n" + "".join(f"i{n},{n} 9\n" for n in range(4)))
    from keras_pneumo.evaluation.inputs.truth import read_truth

    board = board_of(read_truth(tmp_path), tmp_path / "k.csv")
    page = write_run_report(tmp_path / "r.html", board).read_text()
    sound(page)
    assert "False alarms (4)" in page


def test_facts_are_flat_and_short():
    lines = flat_facts({"a": {"b": 1, "c": {"d": []}}, "e": None, "f": "x" * 999, "g_h": (1, 2)})
    assert lines[:3] == [("a · b", "1"), ("a · c · d", "–"), ("e", "–")]
    assert len(lines[3][1]) == 400
    assert lines[4] == ("g h", "1, 2")


def test_the_parts_of_the_dice_score(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2))
    page = write_run_report(tmp_path / "r.html", board).read_text()
    table = page[page.index("Parts of the Dice score") : page.index("Dice = share of negatives")]
    entry = board.teams[0]
    for name in ("dice", "negatives_left_empty", "positives_missed", "dice_found", "dice_small"):
        assert f"<td>{entry.point[name]:.3f}" in table
    assert f"{int(truth.pneumothorax.sum())} images" in table  # all masks of these phantoms are small
    assert "All empty" in table
    share, point = truth.pneumothorax.mean(), entry.point
    parts = (1 - share) * point["negatives_left_empty"] + share * (1 - point["positives_missed"]) * point["dice_found"]
    assert point["dice"] == pytest.approx(parts)
