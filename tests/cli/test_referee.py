"""The options of compare: each allows what its name says, and the board cites only options that were given."""

import pandas as pd
import pytest
from board_lab import write_truth
from command_lab import refused, run


@pytest.fixture
def masks(tmp_path):
    """A Kaggle file with one row of another image and one mask that ends past the last pixel."""
    truth = write_truth(tmp_path)
    rows = [f"{image_id},-1" for image_id in truth.cases.image_id[1:]]
    rows += [f"{truth.cases.image_id[0]},1 1048576", "elsewhere,-1"]
    (tmp_path / "masks.csv").write_text("ImageId,EncodedPixels\n" + "\n".join(rows) + "\n")
    return tmp_path


def compare(folder, *options):
    out = ("--out", folder / "board", "--resamples", 200)
    return run("compare", folder / "masks.csv", "--truth", folder, *out, *options)


@pytest.mark.parametrize("options", [["--allow-extra"], ["--allow-extra", "--no-clip-runs"]])
def test_allow_extra_does_not_cut_masks(masks, options):
    refused(compare(masks, *options), "ends at pixel 1048577", "--clip-runs")
    assert not (masks / "board").exists()


def test_the_board_cites_the_options_that_were_given(masks):
    result = compare(masks, "--allow-extra", "--clip-runs")
    assert result.returncode == 0, result.stderr
    notes = pd.read_csv(masks / "board" / "board.csv").notes[0]
    assert "1 row of other images set aside (--allow-extra)" in notes
    assert "1 mask cut at the last pixel (--clip-runs)" in notes
