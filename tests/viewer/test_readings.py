"""Tests of readings: exact agreement, and a csv that is locked and goes on."""

import pandas as pd
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.viewer.readings import Reading, Readings, agreement_of, open_readings


def test_agreement_is_exact():
    def rows(yes_agree, yes_disagree, no_agree, no_disagree, unsure):
        kinds = [("yes", "agree")] * yes_agree + [("yes", "disagree")] * yes_disagree
        kinds += [("no", "agree")] * no_agree + [("no", "disagree")] * no_disagree + [("yes", "unsure")] * unsure
        return [Reading("", "", str(n), "d", 0.5, answer, verdict) for n, (answer, verdict) in enumerate(kinds)]

    agreement = agreement_of(rows(20, 5, 15, 10, 3))
    assert agreement["share"] == pytest.approx(0.7)
    assert agreement["kappa"] == pytest.approx(0.4)  # the textbook's table: 20, 5, 10, 15
    assert "35 of 50" in agreement["sentence"]
    assert "3 unsure" in agreement["sentence"]
    assert agreement_of([])["share"] is None
    assert agreement_of(rows(4, 0, 0, 0, 0))["kappa"] is None


def test_readings_are_continued_and_other_files_refused(tmp_path):
    first = Readings(tmp_path / "r.csv")
    first.add('=cmd|"x".dcm', "k1", "d", 0.25, False, "unsure")
    first.add("b.dcm", "k2", "d", 0.75, True, "agree")
    again = Readings(tmp_path / "r.csv")
    again.add("b.dcm", "k2", "d", 0.75, True, "disagree")
    assert again.verdicts("d") == {"k1": "unsure", "k2": "disagree"}
    table = pd.read_csv(tmp_path / "r.csv")
    assert len(table) == 2
    assert not table["file"].str.startswith("=").any()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PneumoError, match="not a csv of readings"):
        Readings(tmp_path / "other.csv")


def test_a_csv_of_readings_is_locked_by_one_page(tmp_path):
    csv = tmp_path / "new" / "r.csv"
    with open_readings(csv) as readings:
        (tmp_path / "link").symlink_to(tmp_path / "new")
        for name in (csv, tmp_path / "link" / "r.csv"):
            with pytest.raises(PneumoError, match=r"Another keras-pneumo view .* with --readings"), open_readings(name):
                pass
        with open_readings(csv.with_name("other.csv")) as other:
            other.add("b.dcm", "k2", "d", 0.75, True, "agree")
        readings.add("a.dcm", "k1", "d", 0.25, False, "agree")
    with open_readings(csv) as again:
        assert again.verdicts("d") == {"k1": "agree"}
    csv.write_text("a,b\n1,2\n")
    for _ in range(2):  # a refusal holds nothing
        with pytest.raises(PneumoError, match="not a csv of readings"), open_readings(csv):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(PneumoError, match=r"cannot be saved in .* --readings"), open_readings(tmp_path / "file/r.csv"):
        pass
