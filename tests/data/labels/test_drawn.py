"""Labels that are no table: masks as pictures, COCO json, DICOM Segmentations, folders by label."""

import json

import cv2
import numpy as np
import pydicom
import pytest
from pycocotools import mask as coco
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage
from small_siim import radiograph, write_png

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.drawn import coco_labels, drawn_labels, read_mask, segmentation_labels
from keras_pneumo.data.labels.finding import search_labels
from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.data.labels.tables import LabelQuestionError
from keras_pneumo.errors import PneumoError

ASK, NEGATIVE, IGNORE = (LabelOptions(blank=meaning) for meaning in (None, "negative", "ignore"))


def rectangle(rows, columns, top, bottom, left, right):
    mask = np.zeros((rows, columns), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def drawn(label):
    return rle.draw(label.runs)


QUARTER = rectangle(1024, 1024, 256, 512, 128, 384)
"""Rows 16 to 32 and columns 8 to 24 of a grid of 64, on the canonical one."""


def small():
    return rectangle(64, 64, 16, 32, 8, 24)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".dcm") and "masks" not in path.parts)


# -- Pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image", "mask"), [("a.img", "a.mask"), ("a", "a_mask"), ("a", "a-mask")])
def test_masks_beside_their_images(tmp_path, image, mask):
    write_png(tmp_path / f"{image}.png", radiograph(1))
    write_png(tmp_path / f"{mask}.png", small() * 255)
    labels = drawn_labels(tmp_path, files(tmp_path), ASK)
    assert list(labels.images) == [image]
    assert (drawn(labels.images[image]) == QUARTER).all()
    assert [path.name for path in labels.files] == [f"{mask}.png"]


def test_masks_in_a_folder_of_their_own_and_a_black_one(tmp_path):
    for name in "ab":
        write_png(tmp_path / "images" / f"{name}.png", radiograph(1))
    write_png(tmp_path / "masks" / "a.png", small())
    write_png(tmp_path / "masks" / "b.png", small() * 0)
    labels = drawn_labels(tmp_path, files(tmp_path), ASK)
    assert {name: label.positive for name, label in labels.images.items()} == {"a": True, "b": False}
    assert (drawn(labels.images["a"]) == QUARTER).all()
    named = search_labels(tmp_path / "images", files(tmp_path / "images"), tmp_path / "masks").labels
    assert set(named.images) == {"a", "b"}


def test_an_image_without_a_mask_is_asked_about(tmp_path):
    for name in "abc":
        write_png(tmp_path / f"{name}.png", radiograph(1))
    write_png(tmp_path / "a_mask.png", small())
    with pytest.raises(LabelQuestionError, match=r"2 images of 3 have no mask \(b, c\).*--blank negative"):
        drawn_labels(tmp_path, files(tmp_path), ASK)
    labels = drawn_labels(tmp_path, files(tmp_path), NEGATIVE)
    assert {name: label.positive for name, label in labels.images.items()} == {"a": True, "b": False, "c": False}
    assert labels.record == {"blank": "negative", "without_mask": 2}
    labels = drawn_labels(tmp_path, files(tmp_path), IGNORE)
    assert (set(labels.images), set(labels.left_out)) == ({"a"}, {"b", "c"})


def test_a_damaged_mask_spoils_its_image_only(tmp_path):
    for name in "ab":
        write_png(tmp_path / f"{name}.png", radiograph(1))
        write_png(tmp_path / f"{name}_mask.png", small())
    (tmp_path / "b_mask.png").write_bytes(b"no picture")
    labels = drawn_labels(tmp_path, files(tmp_path), ASK)
    assert set(labels.images) == {"a"}
    assert [(item.file, item.image_id) for item in labels.rejected] == [("b_mask.png", "b")]


def test_every_way_to_store_a_mask(tmp_path):
    mask = small()
    colour = np.dstack([mask * 0, mask * 0, mask * 255])
    transparent = np.dstack([mask * 255, mask * 255, mask * 255, mask * 0 + 255])
    kinds = {"ones": mask, "grey": mask * 255, "deep": mask.astype(np.uint16) * 65535, "labels": mask * 2}
    for name, picture in (kinds | {"transparent": transparent}).items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
        assert (read_mask(tmp_path / f"{name}.png") == mask).all(), name
    cv2.imwrite(str(tmp_path / "red.png"), colour)
    assert (read_mask(tmp_path / "red.png") == mask).all()
    cv2.imwrite(str(tmp_path / "mask.jpg"), mask * 255)
    assert np.mean(read_mask(tmp_path / "mask.jpg") != mask) < 0.01


def test_a_mask_that_is_not_square_lies_on_the_padded_image(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((64, 128), np.uint8))
    write_png(tmp_path / "a_mask.png", rectangle(64, 128, 0, 16, 32, 64) * 255)
    labels = drawn_labels(tmp_path, files(tmp_path), ASK)
    # 32 black rows lie above the 64 of the image, and a pixel is 8 of the canonical frame.
    assert (drawn(labels.images["a"]) == rectangle(1024, 1024, 256, 384, 256, 512)).all()


# -- COCO --------------------------------------------------------------------------------------------------------------


def coco_file(path, annotations, categories=("Pneumothorax",), images=("a.png", "b.png"), side=64):
    path.write_text(
        json.dumps(
            {
                "images": [
                    {"id": number, "file_name": f"train/{name}", "height": side, "width": side}
                    for number, name in enumerate(images)
                ],
                "categories": [{"id": number, "name": name} for number, name in enumerate(categories)],
                "annotations": annotations,
            }
        )
    )
    return path


def test_coco_polygons_and_runs(tmp_path):
    compressed = coco.encode(np.asfortranarray(small()))
    counts = [8 * 64 + 16, 16, *[48, 16] * 15]
    counts = [*counts, 64 * 64 - sum(counts)]
    for shape in (
        [[8, 16, 24, 16, 24, 32, 8, 32]],
        {"size": [64, 64], "counts": compressed["counts"].decode()},
        {"size": [64, 64], "counts": counts},
    ):
        path = coco_file(tmp_path / "c.json", [{"image_id": 0, "category_id": 0, "segmentation": shape}])
        labels = coco_labels(path)
        assert {name: label.positive for name, label in labels.images.items()} == {"a": True, "b": False}
        assert (drawn(labels.images["a"]) == QUARTER).all()
        assert labels.has_masks


def test_coco_boxes_stay_boxes(tmp_path):
    annotations = [
        {"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]},
        {"image_id": 1, "category_id": 0, "bbox": [5, 6, 7, 8]},
    ]
    labels = coco_labels(coco_file(tmp_path / "c.json", annotations, ("mass", "left pneumothorax")))
    assert labels.images["a"].boxes == ((1, 2, 3, 4),)
    assert {name: label.positive for name, label in labels.images.items()} == {"a": True, "b": False}
    assert not labels.images["a"].has_mask
    assert not labels.has_masks


def test_coco_faults(tmp_path):
    with pytest.raises(PneumoError, match="no category called pneumothorax; its categories are 'mass'"):
        coco_labels(coco_file(tmp_path / "c.json", [], ("mass",)))
    wrong = {"image_id": 0, "category_id": 0, "segmentation": {"size": [9, 9], "counts": [81]}}
    labels = coco_labels(coco_file(tmp_path / "c.json", [wrong]))
    assert (list(labels.images), [item.image_id for item in labels.rejected]) == (["b"], ["a"])
    (tmp_path / "c.json").write_text('{"images": 3}')
    with pytest.raises(PneumoError, match="is no COCO file"):
        coco_labels(tmp_path / "c.json")


@pytest.mark.parametrize(
    "shape",
    [
        [[0, 0, 1e308, 0, 1e308, 1e308]],
        [[0, 0, float("nan"), 0, 5, 5]],
        [[1, 1, 20, 1]],
        [["1", 1, 20, 1, 20, 20]],
        {"size": [64, 64], "counts": [-1, 64 * 64 + 1]},
        {"size": [64, 64], "counts": [5, 2**70]},
        {"size": [64, 64], "counts": "oooooooo0"},
        {"size": [64, 64], "counts": "\x00"},
    ],
)
def test_row_43_numbers_that_pycocotools_would_trust_are_refused(tmp_path, shape):
    path = coco_file(tmp_path / "c.json", [{"image_id": 0, "category_id": 0, "segmentation": shape}])
    labels = coco_labels(path)
    assert list(labels.images) == ["b"]
    assert [item.image_id for item in labels.rejected] == ["a"]


def test_row_43_an_impossible_grid_is_refused_before_it_is_drawn(tmp_path):
    shape = [[1, 1, 20, 1, 20, 20]]
    for side in (0, -5, 2**31, 10**400):
        path = coco_file(tmp_path / "c.json", [{"image_id": 0, "category_id": 0, "segmentation": shape}], side=side)
        assert "a" in coco_labels(path).rejected_rows


def test_row_12_an_image_that_is_listed_twice_or_not_at_all_is_named(tmp_path):
    lost = {"image_id": 7, "category_id": 0, "bbox": [1, 2, 3, 4]}
    path = coco_file(tmp_path / "c.json", [lost], images=("a.png", "a.png"))
    labels = coco_labels(path)
    assert labels.images == {}
    reasons = sorted(item.reason for item in labels.rejected)
    assert reasons[0] == "1 annotation of a pneumothorax for images that the file does not list"
    assert reasons[1] == "image a: the file lists it 2 times"


def test_row_43_a_coco_file_nested_too_deeply_is_one_sentence(tmp_path):
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(PneumoError, match="is not JSON"):
        coco_labels(tmp_path / "c.json")


# -- DICOM Segmentation ------------------------------------------------------------------------------------------------


def segmentation(path, frames, sources, labels=("Pneumothorax",), numbers=None):
    """Writes a binary DICOM Segmentation; frame i refers to the image sources[i] and to the segment numbers[i]."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SegmentationStorage
    meta.MediaStorageSOPInstanceUID = "1.9.9"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = SegmentationStorage, "1.9.9", "SEG"
    dataset.SegmentSequence = []
    for number, name in enumerate(labels, start=1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, name
        dataset.SegmentSequence.append(segment)
    dataset.PerFrameFunctionalGroupsSequence = []
    for frame_source, number in zip(sources, numbers or [1] * len(sources), strict=True):
        source, derivation, identification, groups = Dataset(), Dataset(), Dataset(), Dataset()
        source.ReferencedSOPInstanceUID = frame_source
        derivation.SourceImageSequence = [source]
        identification.ReferencedSegmentNumber = number
        groups.DerivationImageSequence = [derivation]
        groups.SegmentIdentificationSequence = [identification]
        dataset.PerFrameFunctionalGroupsSequence.append(groups)
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = 0
    dataset.PixelData = pack_bits(frames.reshape(-1))
    dataset["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def test_segmentations_of_another_grid(tmp_path):
    frames = np.stack([small(), small() * 0, 1 - small()])
    path = segmentation(tmp_path / "s.dcm", frames, ["1.2", "1.3", "1.2"], ("Pneumothorax", "Lung"), [1, 1, 2])
    labels = drawn_labels(tmp_path, [path], ASK)
    assert {name: label.positive for name, label in labels.images.items()} == {"1.2": True, "1.3": False}
    assert (drawn(labels.images["1.2"]) == QUARTER).all()
    assert labels.files == (path,)


def test_segmentations_of_something_else_are_set_aside(tmp_path):
    path = segmentation(tmp_path / "s.dcm", small()[None], ["1.2"], ("Lung",))
    labels = segmentation_labels(tmp_path, [path], ASK)
    assert labels.images == {}
    assert "its segments are 'Lung'; none is called pneumothorax" in labels.rejected[0].reason


# -- Folders -----------------------------------------------------------------------------------------------------------


def test_folders_by_label(tmp_path):
    for place in ("train/Positive/1.png", "train/Negative/2.png", "other/3.png"):
        write_png(tmp_path / place, radiograph(1))
    labels = drawn_labels(tmp_path, files(tmp_path), ASK)
    assert {name: label.positive for name, label in labels.images.items()} == {"1": True, "2": False}
    assert not labels.has_masks


def test_folders_whose_files_have_the_same_names(tmp_path):
    for place in ("pneumothorax/1.png", "no pneumothorax/1.png"):
        write_png(tmp_path / place, radiograph(1))
    labels = drawn_labels(tmp_path, files(tmp_path), ASK)
    assert labels.parts == 2
    assert {name: label.positive for name, label in labels.images.items()} == {
        "no pneumothorax-1": False,
        "pneumothorax-1": True,
    }


def test_folders_of_one_label_only_are_none(tmp_path):
    write_png(tmp_path / "positive" / "1.png", radiograph(1))
    assert drawn_labels(tmp_path, files(tmp_path), ASK) is None
