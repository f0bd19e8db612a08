"""Finding radiographs in folders, and reading them whatever their format."""

import os
import re
import socket
from pathlib import Path

import pytest
from small_siim import radiograph, write_dicom, write_png

from keras_pneumo.data.radiographs.reading import (
    LINK_OUT,
    NOT_READ,
    find_files,
    find_images,
    other_format_notes,
    read_or_reason,
    require_radiographs,
)
from keras_pneumo.errors import PneumoError


def test_images_are_found_at_any_depth_and_masks_are_not(tmp_path):
    for name in ("a/b/c/1.dcm", "2.DCM", "png/3.png", "jpg/4.JPEG", "mit Leerzeichen/ž 5.png"):
        write_png(tmp_path / name, radiograph(1))
    write_dicom(tmp_path / "d" / "1.2.826.0.123456", radiograph(1), uid="1.2.826.0.123456")
    for name in ("png_masks/3.png", ".hidden/6.png", ".7.png", "notes.txt", "train-rle.csv", "d/8.1234"):
        write_png(tmp_path / name, radiograph(1))
    for name in ("prepared/manifest.json", "prepared/cases.csv", "prepared/images_64/9.png", "out/10.png"):
        write_png(tmp_path / name, radiograph(1))
    paths, mask_folders, links_out, other_formats = find_images(tmp_path, skip=[tmp_path / "out"])
    assert not links_out
    assert not other_formats
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert sorted(names) == sorted(
        ["a/b/c/1.dcm", "2.DCM", "png/3.png", "jpg/4.JPEG", "mit Leerzeichen/ž 5.png", "d/1.2.826.0.123456"]
    )
    assert paths == sorted(paths)
    assert mask_folders == ["png_masks"]


def test_images_of_formats_that_are_not_read_are_named(tmp_path):
    write_png(tmp_path / "1.png", radiograph(1))
    names = ["2.dcm.gz", "3.NII.GZ", "b/4.tiff", "b/5.nii", "b/6.nii.gz"]
    for name in (*names, "notes.txt", "train.csv.gz", ".7.nii", "masks/8.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_images(tmp_path)
    assert [path.name for path in found.paths] == ["1.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in found.other_formats] == names
    assert other_format_notes(tmp_path, found) == [
        "5 files beside the radiographs cannot be read (2.dcm.gz, 3.NII.GZ, b/4.tiff and 2 more). Convert what is "
        "meant to be one to DICOM, PNG or JPEG."
    ]
    assert find_files([tmp_path]).refused == [{"file": name, "reason": NOT_READ} for name in names]
    (tmp_path / "1.png").unlink()
    named = re.escape(
        f"{tmp_path}: there is no DICOM, PNG or JPEG file. 2.dcm.gz, 3.NII.GZ, b/4.tiff and 2 more: {NOT_READ}."
    )
    with pytest.raises(PneumoError, match=named):
        find_files([tmp_path])
    with pytest.raises(PneumoError, match=named):
        require_radiographs(tmp_path, find_images(tmp_path))


def test_linked_folders_are_followed_once(tmp_path):
    data = tmp_path / "data"
    write_png(data / "z real" / "1.png", radiograph(1))
    (data / "link").symlink_to(data / "z real")
    (data / "z real" / "loop").symlink_to(data)
    found = find_images(data)
    assert [path.name for path in found.paths] == ["1.png"]
    assert not found.links_out
    (tmp_path / "elsewhere").symlink_to(data)
    assert len(find_images(tmp_path / "elsewhere").paths) == 1, "the folder itself may be a link"


def test_row_45_links_out_of_the_folder_are_named_and_not_followed(tmp_path):
    data = tmp_path / "data"
    outside = write_png(tmp_path / "outside" / "1.png", radiograph(1))
    inside = write_png(data / "2.png", radiograph(2))
    links = {
        "3.png": outside, "folder": outside.parent, "4": outside, "1.2.840.5": outside, "5.png": inside,
        "6.dcm": tmp_path / "nowhere.dcm", "up.png": "../outside/1.png", "notes.txt": outside, ".hidden.png": outside,
        "7.png": data / "5.png", "8.png": data / "gone.png",
    }  # fmt: skip
    for name, target in links.items():
        (data / name).symlink_to(target)
    found = find_images(data)
    assert [path.name for path in found.paths] == ["2.png", "5.png", "7.png", "8.png"]
    assert [path.name for path in found.links_out] == ["1.2.840.5", "3.png", "4", "6.dcm", "folder", "up.png"]
    files, refused = find_files([data, data / "3.png"])
    assert [name for _, name in files] == ["2.png", "5.png", "7.png", "8.png", "3.png"], "what is named is followed"
    assert refused == [{"file": path.name, "reason": LINK_OUT} for path in found.links_out]
    inside.unlink()
    for name in ("5.png", "7.png", "8.png"):
        (data / name).unlink()
    with pytest.raises(PneumoError, match=r"1\.2\.840\.5, 3\.png, 4 and 3 more: it is a link to outside of the folder"):
        find_files([data])


def test_row_45_pipes_devices_and_sockets_are_neither_opened_nor_waited_for(tmp_path):
    write_png(tmp_path / "1.png", radiograph(1))
    for name in ("pipe", "1.2.840.113", "pipe.dcm"):
        os.mkfifo(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.png"))
        assert [path.name for path in find_images(tmp_path).paths] == ["1.png", "pipe.dcm", "socket.png"]
        for name in ("pipe.dcm", "socket.png"):
            assert "only regular files" in read_or_reason(tmp_path / name)
    assert "only regular files" in read_or_reason(find_files([tmp_path / "pipe"]).files[0][0])
    assert "only regular files" in read_or_reason(find_files([Path("/dev/zero")]).files[0][0])


def test_data_folder_that_is_none(tmp_path):
    with pytest.raises(PneumoError, match="not a folder"):
        find_images(tmp_path / "none")


def test_no_radiograph_at_all_is_refused(tmp_path):
    with pytest.raises(PneumoError, match="There is no"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(PneumoError, match="no DICOM"):
        find_files([tmp_path])
