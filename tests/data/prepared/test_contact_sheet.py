"""The contact sheet: which images are on it, where the outlines lie, and that it names no one."""

import cv2
import numpy as np
import pytest
from PIL import ImageDraw
from small_siim import radiograph, write_labels, write_png, write_siim

from keras_pneumo.data.prepared import contact_sheet
from keras_pneumo.data.prepared.contact_sheet import draw_contact_sheet
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.prepared.prepare import prepare
from keras_pneumo.errors import PneumoError

ORANGE = (0, 176, 255)  # as OpenCV reads it: blue, green, red


@pytest.fixture
def written(monkeypatch):
    """Every text that is put on a sheet."""
    texts = []
    real = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, text, *args, **kw: (texts.append(text), real(self, xy, text, *args, **kw)),
    )
    return texts


def prepared_folder(tmp_path, count=20, rows=None):
    ids = write_siim(tmp_path / "data", count=count, kinds=("png",))
    if rows:
        write_labels(tmp_path / "data" / "train-rle.csv", rows(ids))
    prepare(tmp_path / "data", tmp_path / "prepared", [32, 64], workers=1)
    return load_prepared(tmp_path / "prepared")


def test_all_groups_are_there_and_captions_say_what_they_show(tmp_path, written):
    prepared = prepared_folder(tmp_path)
    out = draw_contact_sheet(prepared, tmp_path / "sheets" / "sheet.png")
    sheet = cv2.imread(str(out))
    assert sheet.shape[0] > 6 * 224
    headings = [text for text in written if "pneumothorax," in text and ":" in text]
    assert [heading.partition(",")[0] for heading in headings] == [
        f"{subset}: {label}"
        for subset in ("train", "validation", "test")
        for label in ("pneumothorax", "no pneumothorax")
    ]
    shown = {text for text in written if text.startswith("1.2.276.")}
    assert shown == set(prepared.cases["image_id"])
    share = 100 * prepared.cases["mask_pixels"].max() / 1024**2
    assert f"mask {share:.2f}%" in written
    assert any("Research use only" in text for text in written)
    assert "20 radiographs, 10 with pneumothorax, 64 x 64 pixels" in written
    assert not any("patient" in text or "Nemo" in text for text in written)


def test_a_sheet_of_phantoms_says_so(tmp_path, written):
    prepared = prepared_folder(tmp_path)
    draw_contact_sheet(prepared, tmp_path / "plain.png")
    assert not any("ynthetic" in text for text in written)
    prepared.manifest["synthetic"] = True
    draw_contact_sheet(prepared, tmp_path / "marked.png")
    assert "Synthetic (phantoms): 20 radiographs, 10 with pneumothorax, 64 x 64 pixels" in written


def test_outline_lies_on_the_masks_border(tmp_path):
    # Left half of the image, full height: the outline's right side is at half the tile, in no other place.
    prepared = prepared_folder(
        tmp_path, rows=lambda ids: [(i, f"0 {512 * 1024}" if n % 2 else "-1") for n, i in enumerate(ids)]
    )
    image_id = prepared.cases.loc[prepared.cases["pneumothorax"] == 1, "image_id"].iloc[0]
    tile = np.asarray(contact_sheet._tile(prepared, image_id, 64))
    orange = (tile == ORANGE[::-1]).all(axis=-1)
    assert orange[100].nonzero()[0].tolist() == [0, 111]
    assert orange[:, 111].all()
    assert not orange[:, 112:].any()


def test_tiny_mask_gets_a_ring(tmp_path):
    # 16 x 16 pixels at 1024 are one pixel at 64.
    square = " ".join([f"{208 * 1024 + 800} 16"] + ["1008 16"] * 15)
    prepared = prepared_folder(tmp_path, rows=lambda ids: [(i, square if n % 2 else "-1") for n, i in enumerate(ids)])
    image_id = prepared.cases.loc[prepared.cases["pneumothorax"] == 1, "image_id"].iloc[0]
    tile = np.asarray(contact_sheet._tile(prepared, image_id, 64)).astype(int)
    orange = (tile[..., 0] - tile[..., 2] > 60).nonzero()
    # Row 808 and column 216 of 1024 are 177 and 47 of 224.
    assert abs(np.mean(orange[0]) - 177) < 3
    assert abs(np.mean(orange[1]) - 47) < 3
    assert np.ptp(orange[0]) >= 15


def test_vanished_mask_is_noted(tmp_path, written):
    prepared = prepared_folder(tmp_path, rows=lambda ids: [(i, "5000 3" if n % 2 else "-1") for n, i in enumerate(ids)])
    draw_contact_sheet(prepared, tmp_path / "sheet.png", size=32)
    assert "mask 0.00%, none left at 32" in written


def test_same_sheet_each_time_and_another_for_another_seed(tmp_path, written):
    prepared = prepared_folder(tmp_path)
    first = draw_contact_sheet(prepared, tmp_path / "1.png", per_group=1).read_bytes()
    assert sum(text.startswith("1.2.276.") for text in written) == 6
    assert draw_contact_sheet(prepared, tmp_path / "2.png", per_group=1).read_bytes() == first
    assert draw_contact_sheet(prepared, tmp_path / "3.png", per_group=1, seed=5).read_bytes() != first


def test_long_ids_keep_their_end(tmp_path, written):
    write_siim(tmp_path / "data", count=10, kinds=("png",))
    for path in (tmp_path / "data" / "png").iterdir():
        path.rename(path.with_name("9" * 40 + path.name))
    labels = tmp_path / "data" / "train-rle.csv"
    labels.write_text(labels.read_text().replace("1.2.276", "9" * 40 + "1.2.276"))
    prepare(tmp_path / "data", tmp_path / "prepared", [32], workers=1)
    draw_contact_sheet(load_prepared(tmp_path / "prepared"), tmp_path / "sheet.png")
    assert "..." + "9" * 11 + "1.2.276.3.5" in written


def test_many_images_wrap(tmp_path, written):
    prepared = prepared_folder(tmp_path, count=40)
    sheet = cv2.imread(str(draw_contact_sheet(prepared, tmp_path / "sheet.png", per_group=30)))
    assert sheet.shape[1] < 9 * 240
    assert sum(text.startswith("1.2.276.") for text in written) == 40


def test_the_default_size_is_the_smallest_from_256_on(tmp_path, written):
    ids = write_siim(tmp_path / "data", count=10, kinds=("png",))
    for number, image_id in enumerate(ids):
        write_png(tmp_path / "data" / "png" / f"{image_id}.png", radiograph(number, side=512))
    prepare(tmp_path / "data", tmp_path / "prepared", [64, 256, 512], workers=1)
    draw_contact_sheet(load_prepared(tmp_path / "prepared"), tmp_path / "sheet.png")
    assert "10 radiographs, 5 with pneumothorax, 256 x 256 pixels" in written


def test_what_cannot_be_drawn(tmp_path):
    prepared = prepared_folder(tmp_path)
    with pytest.raises(PneumoError, match="no images of 128"):
        draw_contact_sheet(prepared, tmp_path / "sheet.png", size=128)
    with pytest.raises(PneumoError, match="at least one image"):
        draw_contact_sheet(prepared, tmp_path / "sheet.png", per_group=0)
    victim = next((tmp_path / "prepared" / "images_64").iterdir())
    victim.write_bytes(b"")
    with pytest.raises(PneumoError, match="missing or damaged"):
        draw_contact_sheet(prepared, tmp_path / "sheet.png", per_group=30)
    assert not (tmp_path / "sheet.png").exists()
