"""The report page: well-formed, offline, escaped, without patient ids; and its charts."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.board.subgroups import scores_within
from keras_pneumo.evaluation.board.verdict import LABELS
from keras_pneumo.evaluation.report.calibration_report import calibration_report
from keras_pneumo.evaluation.report.error_gallery import MOST
from keras_pneumo.evaluation.report.page import headings
from keras_pneumo.evaluation.report.report import flat_facts, write_comparison_report, write_run_report
from keras_pneumo.evaluation.report.subgroup_report import subgroup_report

VOID = {"meta", "img", "br", "hr", "input", "link", "wbr"}


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
    facts = {"experiment": {"seed": 3}, "trained_on": "SIIM (40 images)", "versions": {"keras": "3.15"}}
    facts |= {"command": "<script>alert(1)</script>", "ids": list(range(40))}
    history = pd.DataFrame({"image_id": ["v"], "pneumothorax": [1], "epoch_1": [0.4], "epoch_2": [0.6]})
    subgroups = subgroup_report(scores_within(board, {"view": pd.Series(["PA", "AP"] * 30)}), "auroc")
    calibration = calibration_report(board, board.teams[0].probability, board.teams[0].probability, ["Fitted."])
    more = {"subgroups": subgroups, "calibration": calibration, "history": history}
    path = write_run_report(tmp_path / "r" / "report.html", board, log, facts, radiograph, **more)
    page = path.read_text()
    sound(page)
    assert "Keras &lt;b&gt;&amp;&lt;/b&gt;" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "40 entries" in page
    assert "data:image/jpeg;base64," in page
    assert "Errors by kind" in page
    assert page.count("<dt>seed</dt>") == 1, "what a reader looks for first is shown without opening the list"
    assert "<summary>All 5 recorded values</summary>" in page
    assert "It learned from SIIM (40 images)." in page
    assert "Predictions over the training" in page
    assert "Scores by subgroup" in page
    assert "Calibration, before and after" in page
    assert len(headings(page)) == page.count('<a href="#')
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
    missed = page[page.index("False negatives (") : page.index("False positives (")]
    assert missed.index(f"<small>{first}</small>") == missed.index("<small>")
    count = int(wrong.sum())
    assert f"False negatives ({min(count, MOST)} of {count} shown, lowest probability first)" in page
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
    assert "False positives (4 of 4 shown, highest predicted area first)" in page


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
        assert f'data-label="{LABELS[name]}' in table
        assert f">{entry.point[name]:.3f}<small>" in table
    assert f"{int(truth.pneumothorax.sum())} images" in table  # all masks of these phantoms are small
    assert "All empty" in table
    share, point = truth.pneumothorax.mean(), entry.point
    parts = (1 - share) * point["negatives_left_empty"] + share * (1 - point["positives_missed"]) * point["dice_found"]
    assert point["dice"] == pytest.approx(parts)
