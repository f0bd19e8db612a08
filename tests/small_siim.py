"""Makes small SIIM folders for tests."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom import config
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, SecondaryCaptureImageStorage

from keras_pneumo.data.labels.pseudonyms import patient_hash, read_key
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.prepared.manifest import prepared_sha256, read_prepared_table
from keras_pneumo.data.prepared.split import split_sha256
from keras_pneumo.storage.files import sha256_file, write_json

SIDE = 64

# The tests write wrong values on purpose.
config.settings.writing_validation_mode = config.IGNORE
config.settings.reading_validation_mode = config.IGNORE


def radiograph(seed, side=SIDE):
    """A smooth grey picture, different for each seed; uint8, shape (side, side)."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)


def dicom(pixels, uid="1.2.3.4", syntax=ExplicitVRLittleEndian, **tags):
    """A DICOM data set around uint8 or uint16 pixels; tags given as None are left out."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = uid
    dataset.PatientName = "Nemo^Captain"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def write_dicom(path, pixels, uid=None, **tags):
    """Writes :func:`dicom` to a file; the default of the uid is the stem of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dicom(pixels, uid or path.stem, **tags).save_as(path, enforce_file_format=True)
    return path


def write_jpeg_dicom(path, pixels, uid=None, **tags):
    """A DICOM file in JPEG Baseline, as SIIM's are."""
    jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    dataset = dicom(pixels, uid or path.stem, JPEGBaseline8Bit, **tags)
    dataset.PixelData = encapsulate([jpeg])
    dataset["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


def write_labels(path, rows, header=("ImageId", " EncodedPixels"), bom=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as stream:
        csv.writer(stream).writerows([header, *rows] if header else rows)
    return path


def block(seed):
    """EncodedPixels of a rectangle of 100 to 400 pixels height and width, placed by the seed."""
    left, top, height, width = (int(v) for v in np.random.default_rng(seed).integers(100, 400, 4))
    rest = f" {1024 - height} {height}" * (width - 1)
    return f"{left * 1024 + top} {height}{rest}"


def write_siim(folder, count=12, kinds=("jpeg", "png", "dicom")):
    """A folder of ``count`` images nested as SIIM's are, every other one positive, with its label csv; returns ids."""
    rows, ids = [], []
    for number in range(count):
        image_id = f"1.2.276.{number}.5"
        kind = kinds[number % len(kinds)]
        nested = folder / "dicom-images-train" / f"1.2.{number}" / f"1.3.{number}"
        tags = {"PatientID": f"tag-{number}", "PatientSex": "FM"[number % 2], "PatientAge": f"0{20 + number}Y"}
        if kind == "png":
            write_png(folder / "png" / f"{image_id}.png", radiograph(number))
        elif kind == "jpeg":
            write_jpeg_dicom(nested / f"{image_id}.dcm", radiograph(number), **tags, ViewPosition="PA")
        else:
            write_dicom(nested / f"{image_id}.dcm", radiograph(number), **tags)
        rows += [(image_id, block(number)), (image_id, block(number + 100))] if number % 2 else [(image_id, "-1")]
        ids.append(image_id)
    write_labels(folder / "train-rle.csv", rows)
    return ids


def hashes(folder):
    """Path -> bytes of every file under ``folder``: what two runs must have in common."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def save(dataset, path):
    """Write a data set without pydicom's checks; returns the path."""
    pydicom.dcmwrite(path, dataset, enforce_file_format=False)
    return path


def without_key(out, tags):
    """Makes of a prepared folder one as versions before keys wrote it: patients are plain hashes; returns it, loaded.

    Args:
        out: the folder.
        tags: every PatientID in its files.
    """
    manifest = json.loads((out / "manifest.json").read_text())
    key = read_key(out)
    for name in ("cases.csv", "split.csv", "truth.csv"):
        text = (out / name).read_text()
        for tag in tags:
            text = text.replace(key.pseudonym(patient_hash(tag)), patient_hash(tag))
        (out / name).write_text(text)
        manifest["tables"][name] = sha256_file(out / name)
    del manifest["pseudonym_key"], manifest["tables_without_key"]
    manifest["split_sha256"] = split_sha256(read_prepared_table(out / "split.csv"))
    manifest["prepared_sha256"] = prepared_sha256(manifest["tables"], manifest["pixels"])
    write_json(out / "manifest.json", manifest)
    (out / "pseudonym.key").unlink()
    return load_prepared(out)
