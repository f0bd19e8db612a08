"""Finding radiographs in folders, and reading them whatever their format."""

import pytest
from small_siim import radiograph, write_dicom, write_png

from keras_pneumo.data.radiographs.reading import find_files, find_images
from keras_pneumo.errors import PneumoError


def test_images_are_found_at_any_depth_and_masks_are_not(tmp_path):
    for name in ("a/b/c/1.dcm", "2.DCM", "png/3.png", "jpg/4.JPEG", "mit Leerzeichen/ž 5.png"):
        write_png(tmp_path / name, radiograph(1))
    write_dicom(tmp_path / "d" / "1.2.826.0.123456", radiograph(1), uid="1.2.826.0.123456")
    for name in ("png_masks/3.png", ".hidden/6.png", ".7.png", "notes.txt", "train-rle.csv", "d/8.1234"):
        write_png(tmp_path / name, radiograph(1))
    for name in ("prepared/manifest.json", "prepared/cases.csv", "prepared/images_64/9.png", "out/10.png"):
        write_png(tmp_path / name, radiograph(1))
    paths, mask_folders = find_images(tmp_path, skip=[tmp_path / "out"])
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert sorted(names) == sorted(
        ["a/b/c/1.dcm", "2.DCM", "png/3.png", "jpg/4.JPEG", "mit Leerzeichen/ž 5.png", "d/1.2.826.0.123456"]
    )
    assert paths == sorted(paths)
    assert mask_folders == ["png_masks"]


def test_linked_folders_are_followed_once(tmp_path):
    write_png(tmp_path / "real" / "1.png", radiograph(1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "data")
    assert [path.name for path in find_images(tmp_path / "data")[0]] == ["1.png"]


def test_data_folder_that_is_none(tmp_path):
    with pytest.raises(PneumoError, match="not a folder"):
        find_images(tmp_path / "none")


def test_no_radiograph_at_all_is_refused(tmp_path):
    with pytest.raises(PneumoError, match="There is no"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(PneumoError, match="no DICOM"):
        find_files([tmp_path])
