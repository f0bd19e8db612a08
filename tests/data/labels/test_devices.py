"""The table of tubes and markers: read, refused, written by phantoms, carried along by prepare."""

import hashlib
import shutil

import numpy as np
import pytest

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.devices import (
    FILE,
    LEADS,
    MARKER,
    TUBE,
    WORDS,
    box_pixels,
    devices_csv,
    kinds_of,
    read_devices,
)
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.prepared.prepare import prepare
from keras_pneumo.errors import PneumoError
from keras_pneumo.phantoms.cohort import list_images, make_case
from keras_pneumo.phantoms.devices import device_rows, draw_devices, position_patient
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms
from keras_pneumo.phantoms.render import render


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (3, 5, 4, 2), (1020, 1000, 50, 50), (0, 0, 1024, 1024), (-5, 10, 8, 3)])
def test_a_box_is_that_box(box):
    x, y, width, height = box
    expected = np.zeros((1024, 1024), np.uint8)
    expected[max(y, 0) : y + height, max(x, 0) : x + width] = 1
    np.testing.assert_array_equal(rle.decode(box_pixels(*box)), expected)


def test_a_box_beyond_the_border_is_empty():
    assert box_pixels(2000, 3, 5, 5) == "-1"


def test_devices_of_one_kind_on_one_image_are_united(tmp_path):
    path = tmp_path / FILE
    path.write_bytes(
        devices_csv([("a", TUBE, "0 3"), ("a", TUBE, "2 3"), ("a", MARKER, "10 1"), ("b", "pacemaker", "-1")])
    )
    masks = read_devices(path)
    assert rle.area(masks["a"][TUBE]) == 5
    assert rle.area(masks["a"][MARKER]) == 1
    assert rle.area(masks["b"]["pacemaker"]) == 0
    assert kinds_of(masks) == ["chest tube", "marker", "pacemaker"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,kind\na,tube\n", "no column encoded_pixels"),
        ("", "no column image_id"),
        ("image_id,kind,encoded_pixels\na,tube,1 2 3\n", "line 2: EncodedPixels holds 3 numbers"),
        ("image_id,kind,encoded_pixels\na,tube\n", "line 2, has 2 cells"),
    ],
)
def test_faults_are_named(tmp_path, text, message):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(PneumoError, match=message):
        read_devices(tmp_path / FILE)


def test_phantoms_say_where_tubes_leads_and_writing_are(phantoms):
    devices = read_devices(phantoms / FILE)
    settings = PhantomSettings(images=40, seed=5, positive_rate=0.5, size_scale=4.0)
    assert len(devices) == 40
    assert kinds_of(devices) == [TUBE, LEADS, MARKER, WORDS]
    seen = set()
    for patient in range(8):
        phantom = render(5, patient, 0, settings)
        masks = devices[phantom.case.image_id]
        _, _, width, height = phantom.marker_box
        assert rle.area(masks[MARKER]) == width * height
        assert bool(phantom.locations.words) == (WORDS in masks)
        for kind, mask in ((TUBE, phantom.tube), (LEADS, phantom.locations.leads)):
            assert mask.any() == (kind in masks)
            if kind in masks:
                np.testing.assert_array_equal(rle.draw(masks[kind]).astype(bool), mask)
        seen |= set(masks)
    assert seen == {TUBE, LEADS, MARKER, WORDS}


def test_their_locations_hold_all_that_is_drawn_and_little_else():
    """What adds attenuation lies in a place, but for the soft rim of its blur; what is lit lies in a box, snugly."""
    settings = PhantomSettings(images=40, seed=5, positive_rate=0.5, size_scale=4.0)
    leads, words = 0, 0
    for pair in list_images(5, 40, 0.5):
        case = make_case(5, *pair, settings)
        devices = draw_devices(case, *position_patient(case))
        drawn, locations = devices.leads.attenuation, devices.locations
        outside = np.where(locations.leads, 0, drawn)
        assert outside.sum() <= 0.1 * drawn.sum()
        assert (drawn[locations.leads] > 0).mean() > 0.6 if locations.leads.any() else not drawn.any()
        lit = np.maximum(devices.writing.lead, devices.writing.ink) > 64
        boxes = [locations.marker, *locations.words]
        for x, y, width, height in boxes:
            inside = lit[y : y + height, x : x + width]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            lit[y : y + height, x : x + width] = False
        assert not lit.any()
        leads, words = leads + locations.leads.any(), words + len(locations.words)
    assert leads > 5
    assert words > 10


def test_the_order_of_an_images_rows_is_that_of_before_words_and_leads():
    settings = PhantomSettings(images=40, seed=5, positive_rate=0.5, size_scale=4.0)
    order = [TUBE, MARKER, WORDS, LEADS]
    for pair in list_images(5, 40, 0.5):
        case = make_case(5, *pair, settings)
        kinds = [order.index(kind) for image_id, kind, _ in device_rows(case)]
        assert kinds == sorted(kinds)
        assert kinds.count(order.index(MARKER)) == 1
        assert (0 in kinds) == case.tube


def test_an_earlier_folder_gets_its_table_and_nothing_else_changes(tmp_path):
    settings = PhantomSettings(images=3, seed=2)
    write_phantoms(tmp_path, settings, workers=1)
    kept = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / FILE).unlink()
    assert not write_phantoms(tmp_path, settings, workers=1).written
    again = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.rglob("*") if path.is_file()}
    assert again == kept


def test_the_bytes_of_images_and_labels_are_those_of_before_the_table(tmp_path):
    """Hashes taken with the version that wrote no devices.csv."""
    write_phantoms(tmp_path, PhantomSettings(images=3, seed=2), workers=1)
    digest = hashlib.sha256()
    for name in ("train-rle.csv", "patients.csv", "phantom.csv", "phantom.json"):
        digest.update((tmp_path / name).read_bytes())
    assert digest.hexdigest() == "0f206b868b22aaffaac46760ce627f399e331395c81400cad8ee9144570ffdfe"


def test_prepare_carries_the_table_along(phantoms, prepared_folder):
    assert (prepared_folder / FILE).read_bytes() == (phantoms / FILE).read_bytes()
    assert FILE not in load_prepared(prepared_folder).manifest["tables"]


def test_prepare_refuses_a_broken_table_before_it_decodes(tmp_path, phantoms):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train-rle.csv", "patients.csv"):
        (data / name).write_bytes((phantoms / name).read_bytes())
    shutil.copytree(phantoms / "dicom-images-train", data / "dicom-images-train")
    (data / FILE).write_text("image_id,kind,encoded_pixels\na,tube,5\n")
    with pytest.raises(PneumoError, match=r"devices\.csv, line 2"):
        prepare(data, tmp_path / "out", [64])
    assert not list((tmp_path / "out").glob("images_*"))
