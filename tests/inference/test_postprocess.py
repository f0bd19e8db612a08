from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.maps import level_histogram
from keras_pneumo.inference.postprocess import (
    BOTTOMS,
    COMPONENTS,
    TOPS,
    PixelCounts,
    PostprocessingParameters,
    count_pixels,
    draw_search,
    fit_postprocessing,
    lowest_level,
    read_postprocessing,
    read_threshold,
    stack_counts,
    write_postprocessing,
    write_threshold,
)
from keras_pneumo.storage.files import with_content_hash, write_json


def map_of(*blocks):
    """A map with squares of given (row, column, side, level)."""
    quantised = np.zeros((1024, 1024), np.uint8)
    for row, column, side, value in blocks:
        quantised[row : row + side, column : column + side] = value
    return quantised


def positions(mask):
    return np.flatnonzero(mask).astype(np.int32)


def test_an_image_has_a_mask_from_the_top_score_on_and_it_is_cut_at_the_bottom_one():
    quantised = map_of((100, 100, 40, 120), (110, 110, 10, 220))  # 100 pixels pass 0.75, 1600 pass 0.3
    assert PostprocessingParameters(0.75, 100, 0.3).mask(quantised).sum() == 1600
    assert PostprocessingParameters(0.75, 101, 0.3).mask(quantised).sum() == 0, "one pixel short"
    assert PostprocessingParameters(0.75, 100, 0.6).mask(quantised).sum() == 100
    assert PostprocessingParameters(0.9, 1, 0.3).mask(quantised).sum() == 0


def test_small_components_are_dropped_and_corners_connect():
    quantised = map_of((0, 0, 30, 255), (30, 30, 10, 255), (500, 500, 9, 255))
    assert PostprocessingParameters(0.5, 1, 0.5, component=100).mask(quantised).sum() == 900 + 100
    assert PostprocessingParameters(0.5, 1, 0.5, component=1001).mask(quantised).sum() == 0


def test_the_gate_forbids_a_mask():
    quantised = map_of((0, 0, 30, 255))
    parameters = PostprocessingParameters(0.5, 1, 0.5, gate=0.4, gate_source="own head")
    assert parameters.mask(quantised, 0.39).sum() == 0
    assert parameters.mask(quantised, 0.4).sum() == 900


@pytest.mark.parametrize("top", TOPS)
def test_the_image_score_reaches_the_top_exactly_where_there_is_a_mask(top):
    for value in (lowest_level(top) - 1, lowest_level(top)):
        quantised = map_of((0, 0, 10, value))
        parameters = PostprocessingParameters(top, 100, 0.1)
        score = parameters.score(level_histogram(quantised, positions(quantised * 0))[None])[0]
        assert (score >= top) == bool(parameters.mask(quantised).any()) == (value == lowest_level(top))


def random_case(seed):
    generator = np.random.default_rng(seed)
    blocks = [
        (int(generator.integers(0, 900)), int(generator.integers(0, 900)), int(side), int(generator.integers(1, 256)))
        for side in generator.integers(2, 110, size=generator.integers(1, 6))
    ]
    truth = map_of(*[(r, c, s, 1) for r, c, s, _ in blocks[: generator.integers(0, 2)]])
    return map_of(*blocks), positions(truth)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_the_counts_are_those_of_the_drawn_masks(seed):
    quantised, truth = random_case(seed)
    histogram, areas, overlaps = count_pixels(quantised, truth)
    assert histogram.sum(axis=1).tolist() == [1024**2, len(truth)]
    inside = np.zeros(1024**2, bool)
    inside[truth] = True
    for row, bottom in enumerate(BOTTOMS):
        for column, component in enumerate(COMPONENTS):
            mask = PostprocessingParameters(bottom, 1, bottom, component).mask(quantised).ravel() > 0
            assert areas[row, column] == mask.sum()
            assert overlaps[row, column] == (mask & inside).sum()


def test_the_search_finds_the_best_parameters_and_their_dice_is_that_of_the_masks():
    cases = [random_case(seed) for seed in range(12)]
    image = np.random.default_rng(0).random(12)
    search = fit_postprocessing(stack_counts([count_pixels(*case) for case in cases]), image, "own head")
    dice = []
    for (quantised, truth), probability in zip(cases, image, strict=True):
        mask = search.parameters.mask(quantised, probability).ravel() > 0
        inside = np.zeros(1024**2, bool)
        inside[truth] = True
        total = mask.sum() + inside.sum()
        dice.append(1.0 if total == 0 else 2 * (mask & inside).sum() / total)
    assert search.dice == pytest.approx(np.mean(dice), abs=1e-6)
    assert search.dice == pytest.approx(np.nanmax(search.surface), abs=1e-6)
    assert search.images == 12


def test_a_perfect_gate_is_used_and_one_without_information_is_not():
    """Negatives with a certain false mask: only the gate can reject them."""
    block = map_of((200, 200, 60, 255))
    positive, negative = count_pixels(block, positions(block)), count_pixels(block, positions(block * 0))
    rows = [positive] * 5 + [negative] * 5
    perfect = fit_postprocessing(stack_counts(rows), np.array([0.9] * 5 + [0.1] * 5), "own head")
    assert perfect.dice == 1
    assert 0.1 < perfect.parameters.gate <= 0.9
    assert perfect.parameters.gate_source == "own head"
    constant = fit_postprocessing(stack_counts(rows), np.full(10, 0.5), "own head")
    assert constant.parameters.gate == 0
    assert constant.parameters.gate_source == ""
    assert constant.dice == 0.5


def test_all_negatives_left_empty_is_perfect():
    search = fit_postprocessing(stack_counts([count_pixels(map_of((0, 0, 5, 20)), positions(map_of()))]))
    assert search.dice == 1
    assert np.isnan(search.dice_positives)


def test_parameters_are_written_read_and_drawn(tmp_path):
    search = fit_postprocessing(stack_counts([count_pixels(*random_case(seed)) for seed in range(4)]))
    write_postprocessing(tmp_path, search)
    assert read_postprocessing(tmp_path / "postprocess.json") == search.parameters
    draw_search(search, tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("text", ["", "{}", '{"rule": {"top": 2}}', '{"rule": {"top": 2, "area": 1, "bottom": 0.1}}'])
def test_a_file_without_parameters_is_refused(tmp_path, text):
    (tmp_path / "postprocess.json").write_text(text)
    with pytest.raises(PneumoError, match="no postprocessing of masks"):
        read_postprocessing(tmp_path / "postprocess.json")
    with pytest.raises(PneumoError, match="There is no"):
        read_postprocessing(tmp_path / "gone.json")


def test_a_search_without_images_is_refused():
    none = PixelCounts(np.zeros((0, 2, 256)), np.zeros((0, 7, 1)), np.zeros((0, 7, 1)), (0,))
    with pytest.raises(PneumoError, match="no validation images"):
        fit_postprocessing(none)


@pytest.mark.parametrize(("old", "new"), [('"top": 0.', '"top": 0.1'), ('"area": ', '"area": 1'), ('"dice"', '"dyce"')])
def test_row_37_a_changed_postprocessing_is_refused_and_one_of_an_earlier_version_is_read(tmp_path, old, new):
    parameters = PostprocessingParameters(0.5, 100, 0.25)
    record = with_content_hash({"rule": asdict(parameters), "fitted_on_validation": {"dice": 0.5}})
    path = tmp_path / "postprocess.json"
    write_json(path, record)
    assert read_postprocessing(path) == parameters
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(PneumoError, match="was changed after it was written: its hash does not match"):
        read_postprocessing(path)
    write_json(path, {"rule": asdict(parameters)})
    assert read_postprocessing(path) == parameters


def test_row_37_a_changed_threshold_is_refused(tmp_path):
    write_threshold(tmp_path, 0.5, 10)
    assert read_threshold(tmp_path) == 0.5
    path = tmp_path / "postprocess.json"
    path.write_text(path.read_text().replace("0.5", "0.75"))
    with pytest.raises(PneumoError, match="was changed after it was written"):
        read_threshold(tmp_path)
