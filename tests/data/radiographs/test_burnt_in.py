"""Text in the border: found where it is drawn, and not where there is none."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from keras_pneumo.data.radiographs.burnt_in import burnt_in_text
from keras_pneumo.data.radiographs.reading import find_images, read_radiograph
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))
needs_real = pytest.mark.skipif(not (REAL / "siim_mini").exists(), reason="no real radiographs beside the repository")


def body(side=512, seed=0):
    """A smooth picture with fine noise, as bright in the middle as a radiograph."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(20, 230, (6, 6)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 4, (side, side)), 0, 255).astype(np.uint8)


def with_text(image, text, at, scale=0.5, grey=255):
    image = image.copy()
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, grey, 1, cv2.LINE_AA)
    return image


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_nothing_is_found_where_nothing_is_written(side):
    assert [burnt_in_text(body(side, seed)) for seed in range(5)] == [[]] * 5
    for flat in (0, 128, 255):
        assert burnt_in_text(np.full((side, side), flat, np.uint8)) == []


@pytest.mark.parametrize(
    ("text", "at"), [("DOE JOHN 1970", (8, 20)), ("12345678", (400, 500)), ("ST. ELSEWHERE", (10, 480))]
)
@pytest.mark.parametrize("grey", [255, 0])
def test_a_line_of_letters_is_found_where_it_stands(text, at, grey):
    image = np.full((512, 512), 120, np.uint8) if grey == 0 else body() // 3
    found = burnt_in_text(with_text(image, text, at, grey=grey))
    assert found
    left, bottom = min(box.left for box in found), max(box.top + box.height for box in found)
    assert abs(left - at[0]) < 30
    assert abs(bottom - at[1]) < 8


def test_letters_with_an_edge_of_the_other_grey_and_letters_below_one_another_are_found():
    image = with_text(np.full((512, 512), 110, np.uint8), "PORTABLE", (300, 60), grey=0)
    for shift in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        image = np.minimum(image, np.roll(image, shift, (0, 1)))
    image = with_text(image, "PORTABLE", (300, 60))
    (box,) = [box for box in burnt_in_text(image) if box.letters >= 6]
    assert abs(box.left - 300) < 8
    turned = np.full((512, 512), 40, np.uint8)
    for number, letter in enumerate("DOEJANE"):
        turned = with_text(turned, letter, (10, 30 + 20 * number))
    assert any(box.height > 3 * box.width and box.left < 30 for box in burnt_in_text(turned))


def test_a_side_marker_and_text_over_the_lungs_are_not_told():
    image = body() // 3
    assert burnt_in_text(with_text(image, "L", (460, 60), scale=1.2)) == []
    assert burnt_in_text(with_text(image, "DOE JOHN 1970", (190, 256))) == []


def test_a_large_picture_is_searched_in_its_own_pixels():
    image = cv2.resize(body() // 3, (3000, 3600))
    (box, *_) = burnt_in_text(with_text(image, "DOE JOHN 1970", (60, 3500), scale=2.5))
    assert abs(box.left - 60) < 180
    assert abs(box.top + box.height - 3500) < 30


@pytest.mark.parametrize("shape", [(63, 900), (1, 1), (64, 64), (64, 4000), (4000, 64)])
def test_any_shape_is_taken(shape):
    assert burnt_in_text(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)) is not None


@pytest.mark.slow
def test_names_drawn_into_phantoms_are_found(tmp_path):
    write_phantoms(tmp_path / "phantoms", PhantomSettings(images=12, seed=3), workers=2)
    images = [read_radiograph(path).pixels for path in sorted((tmp_path / "phantoms").rglob("*.dcm"))]
    assert len(images) == 12
    for number, image in enumerate(images):
        side = image.shape[0]
        at = [(10, 30), (int(0.6 * side), side - 20), (10, side - 20)][number % 3]
        drawn = with_text(image, "DOE^JANE 4711", at, scale=side / 1000)
        # Text of the phantom's own, near it, may become part of the same box.
        found = [box for box in burnt_in_text(drawn) if box not in burnt_in_text(image)]
        assert any(
            box.left < at[0] + 0.2 * side
            and at[0] < box.left + box.width
            and abs(box.top + box.height - at[1]) < 0.03 * side
            for box in found
        ), number


@needs_real
@pytest.mark.slow
def test_on_real_radiographs_what_is_found_is_text():
    """Looked at one by one: PORTABLE, SUPINE and the like in the border of 22, and no bone or tube."""
    paths = find_images(REAL / "siim_mini").paths
    found = [path for path in paths if burnt_in_text(read_radiograph(path).pixels)]
    assert (len(paths), len(found)) == (90, 22)
