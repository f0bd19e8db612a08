import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference import postprocess
from keras_pneumo.inference.maps import level_counts
from keras_pneumo.inference.postprocess import (
    BOTTOMS,
    COMPONENTS,
    TOPS,
    PostprocessingParameters,
    fit,
    gather,
    level,
    read_postprocessing,
    tally_one,
    write_postprocessing,
)
from keras_pneumo.inference.search_figure import draw_search


def map_of(*blocks):
    """A map with squares of given (row, column, side, level)."""
    levels = np.zeros((1024, 1024), np.uint8)
    for row, column, side, value in blocks:
        levels[row : row + side, column : column + side] = value
    return levels


def where(mask):
    return np.flatnonzero(mask).astype(np.int32)


def test_the_mask_opens_at_the_top_score_and_is_cut_at_the_bottom_one():
    levels = map_of((100, 100, 40, 120), (110, 110, 10, 220))  # 100 pixels pass 0.75, 1600 pass 0.3
    assert PostprocessingParameters(0.75, 100, 0.3).mask(levels).sum() == 1600
    assert PostprocessingParameters(0.75, 101, 0.3).mask(levels).sum() == 0, "one pixel short"
    assert PostprocessingParameters(0.75, 100, 0.6).mask(levels).sum() == 100
    assert PostprocessingParameters(0.9, 1, 0.3).mask(levels).sum() == 0


def test_small_components_go_and_corners_connect():
    levels = map_of((0, 0, 30, 255), (30, 30, 10, 255), (500, 500, 9, 255))
    assert PostprocessingParameters(0.5, 1, 0.5, component=100).mask(levels).sum() == 900 + 100
    assert PostprocessingParameters(0.5, 1, 0.5, component=1001).mask(levels).sum() == 0


def test_the_gate_shuts_the_mask():
    levels = map_of((0, 0, 30, 255))
    rule = PostprocessingParameters(0.5, 1, 0.5, gate=0.4, gate_source="own head")
    assert rule.mask(levels, 0.39).sum() == 0
    assert rule.mask(levels, 0.4).sum() == 900


@pytest.mark.parametrize("top", TOPS)
def test_the_image_score_says_yes_exactly_where_the_mask_opens(top):
    for value in (level(top) - 1, level(top)):
        levels = map_of((0, 0, 10, value))
        rule = PostprocessingParameters(top, 100, 0.1)
        score = rule.score(level_counts(levels, where(levels * 0))[None])[0]
        assert (score >= top) == bool(rule.mask(levels).any()) == (value == level(top))


def random_case(seed):
    generator = np.random.default_rng(seed)
    blocks = [
        (int(generator.integers(0, 900)), int(generator.integers(0, 900)), int(side), int(generator.integers(1, 256)))
        for side in generator.integers(2, 110, size=generator.integers(1, 6))
    ]
    truth = map_of(*[(r, c, s, 1) for r, c, s, _ in blocks[: generator.integers(0, 2)]])
    return map_of(*blocks), where(truth)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_the_tally_counts_what_the_rule_draws(seed):
    levels, truth = random_case(seed)
    counts, areas, shared = tally_one(levels, truth)
    assert counts.sum(axis=1).tolist() == [1024**2, len(truth)]
    inside = np.zeros(1024**2, bool)
    inside[truth] = True
    for row, bottom in enumerate(BOTTOMS):
        for column, component in enumerate(COMPONENTS):
            mask = PostprocessingParameters(bottom, 1, bottom, component).mask(levels).ravel() > 0
            assert areas[row, column] == mask.sum()
            assert shared[row, column] == (mask & inside).sum()


def test_the_search_finds_the_best_rule_and_its_dice_is_that_of_the_masks():
    cases = [random_case(seed) for seed in range(12)]
    image = np.random.default_rng(0).random(12)
    search = fit(gather([tally_one(*case) for case in cases]), image, "own head")
    dice = []
    for (levels, truth), probability in zip(cases, image, strict=True):
        mask = search.rule.mask(levels, probability).ravel() > 0
        inside = np.zeros(1024**2, bool)
        inside[truth] = True
        total = mask.sum() + inside.sum()
        dice.append(1.0 if total == 0 else 2 * (mask & inside).sum() / total)
    assert search.dice == pytest.approx(np.mean(dice), abs=1e-6)
    assert search.dice == pytest.approx(np.nanmax(search.surface), abs=1e-6)
    assert search.images == 12


def test_a_gate_that_knows_the_answer_is_used_and_one_that_knows_nothing_is_not():
    """Negatives with a sure false mask: only the gate can tell them."""
    block = map_of((200, 200, 60, 255))
    rows = [tally_one(block, where(block)) for _ in range(5)] + [tally_one(block, where(block * 0)) for _ in range(5)]
    knowing = fit(gather(rows), np.array([0.9] * 5 + [0.1] * 5), "own head")
    assert knowing.dice == 1
    assert 0.1 < knowing.rule.gate <= 0.9
    assert knowing.rule.gate_source == "own head"
    blind = fit(gather(rows), np.full(10, 0.5), "own head")
    assert blind.rule.gate == 0
    assert blind.rule.gate_source == ""
    assert blind.dice == 0.5


def test_all_negatives_left_empty_is_perfect():
    search = fit(gather([tally_one(map_of((0, 0, 5, 20)), where(map_of()))]))
    assert search.dice == 1
    assert np.isnan(search.dice_positives)


def test_a_rule_is_written_read_and_drawn(tmp_path):
    search = fit(gather([tally_one(*random_case(seed)) for seed in range(4)]))
    write_postprocessing(tmp_path, search)
    assert read_postprocessing(tmp_path / "postprocess.json") == search.rule
    draw_search(search, tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("text", ["", "{}", '{"rule": {"top": 2}}', '{"rule": {"top": 2, "area": 1, "bottom": 0.1}}'])
def test_a_file_that_is_no_rule_is_refused(tmp_path, text):
    (tmp_path / "postprocess.json").write_text(text)
    with pytest.raises(PneumoError, match="no rule"):
        read_postprocessing(tmp_path / "postprocess.json")
    with pytest.raises(PneumoError, match="There is no"):
        read_postprocessing(tmp_path / "gone.json")


def test_nothing_to_fit_on_is_said():
    with pytest.raises(PneumoError, match="no validation images"):
        fit(postprocess.Tally(np.zeros((0, 2, 256)), np.zeros((0, 7, 1)), np.zeros((0, 7, 1)), (0,)))
