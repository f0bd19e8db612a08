"""Mutated tables, run-length texts and json files, each read by the function that commands read it with.

A mutant is a function of one number. Of many the truth is known: a table quoted, ended, zipped or ordered otherwise
says the same; a run-length text is judged by the plain reader below, which shares no code with the program's; an
impossible value of a declaration must be refused, also where the hash beside it was made anew.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import gzip
import io
import json
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from fuzz.outcomes import Mutant, Outcome, outcome_of

from keras_pneumo.config import CLASSIFIER, read_experiment
from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import refuse_rejected
from keras_pneumo.data.labels.devices import read_devices
from keras_pneumo.data.labels.drawn import coco_labels
from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.data.labels.patients import read_patients
from keras_pneumo.data.labels.tables import read_table_labels
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.prepared.manifest import prepared_sha256
from keras_pneumo.data.prepared.split import split_sha256
from keras_pneumo.detector.calibration import read_calibration
from keras_pneumo.detector.record import check_files, networks_of, read_detector_record
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.split_audit import audit_split
from keras_pneumo.evaluation.inputs.alignment import examine_alignment
from keras_pneumo.evaluation.inputs.metadata import features, read_metadata
from keras_pneumo.evaluation.inputs.submission import examine_submission
from keras_pneumo.evaluation.inputs.truth import Truth, read_truth
from keras_pneumo.inference.postprocess import read_postprocessing, read_threshold
from keras_pneumo.storage.files import content_hash, read_json, sha256_bytes

PIXELS = rle.MASK_SIZE**2

# -- Tables ------------------------------------------------------------------------------------------------------------

MASKS = "ImageId,EncodedPixels\na,-1\nb,5 3\nb,100 7 20 9\nc, 1000 24\nd,-1\ne,0 1048576\n"
GENERIC = (
    "image,pneumothorax,patient,sex,age,view\na.png,1,p,F,58,PA\nb.png,0,q,M,70,AP\nc.png,1,r,F,31,PA\nd.png,0,r,,,\n"
)
NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
    "00000001_000.png,Cardiomegaly|Pneumothorax,0,1,58,M,PA\n00000002_000.png,No Finding,0,2,81,M,AP\n"
    "00000003_000.png,Pneumothorax,1,3,060Y,F,PA\n"
)
CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,Pneumothorax\nCheXpert/train/patient00001/study1/view1_frontal.jpg,Female,68,"
    "Frontal,AP,1.0\nCheXpert/train/patient00002/study1/view1_frontal.jpg,Male,87,Frontal,AP,-1.0\n"
    "CheXpert/train/patient00002/study2/view2_lateral.jpg,Male,87,Lateral,,0.0\n"
)
VINDR = (
    "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\na,R1,Pneumothorax,10,20,110,220\na,R2,Pneumothorax,12,20,100,"
    "200\na,R3,No finding,,,,\nb,R1,No finding,,,,\nb,R2,No finding,,,,\nb,R3,No finding,,,,\n"
)
TRUTH = (
    "image_id,patient_id,subset,fold,sex,age,view,pixel_spacing_mm,pneumothorax,encoded_pixels\n"
    "a,p,test,-1,F,58,PA,0.2,1,5 3\nb,q,test,-1,M,61,AP,0.14,0,-1\nc,r,train,0,F,30,PA,0.2,1,100 7\n"
    "d,s,validation,1,,,,,0,-1\n"
)
PREDICTIONS = "image_id,probability,encoded_pixels\na,0.75,5 3\nb,0.125,-1\n"
PATIENTS = "ImageId,patient_id\na,p\nb,q\nc,r\nd,s\n"
NIH_IDS = "Kaggle_ID,NIH_ID\na,00028864_007.png\nb,00028865_001.png\n"
METADATA = "Image Index,Patient Age,Patient Gender,View Position,Reading\na,58,M,PA,3.5\nb,60,F,AP,\nc,1e3,M,PA,nan\n"
SPLIT = (
    "image_id,patient_id,pneumothorax,subset,fold\na,p,1,train,0\nb,q,0,train,1\nc,r,1,test,-1\nd,q,0,validation,0\n"
)
DEVICES = "image_id,kind,encoded_pixels\na,chest tube,5 3\na,leads,50 3 10 4\nb,marker,9 9\n"


class Table(NamedTuple):
    """A kind of table."""

    text: str
    read: Callable[[Path], Any]
    """The function that commands call; it must give equal values for equal tables."""
    pixels: str = ""
    """Its column of run-length texts, where a wrong one must be noticed."""
    rows_may_move: bool = True


def _labels(path: Path) -> Any:
    labels = read_table_labels(path, LabelOptions())
    images = {
        name: (rle.encode_runs(label.runs), label.positive, sorted(label.boxes), label.facts)
        for name, label in sorted(labels.images.items())
    }
    return images, sorted(labels.rejected_rows), sorted(labels.left_out)


def _masks(path: Path) -> Any:
    """The masks of all rows; a rejected row, which ``prepare`` would set aside, refuses the table here."""
    labels = read_table_labels(path, LabelOptions())
    refuse_rejected(path, labels.rejected)
    return _labels(path)


def _truth(path: Path) -> Any:
    truth = read_truth(path)
    runs = (
        None if truth.runs is None else dict(zip(truth.cases.image_id, map(rle.encode_runs, truth.runs), strict=True))
    )
    columns = ["image_id", "patient_id", "pneumothorax", "age", "pixel_spacing_mm"]
    cases = truth.cases[columns].sort_values("image_id").to_csv(index=False)
    return cases, runs and sorted(runs.items()), sorted(truth.development.image_id)


@functools.cache
def _known_truth() -> Truth:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth-of-all.csv"
        path.write_text(TRUTH)
        return read_truth(path)


@contextlib.contextmanager
def _folder_beside(path: Path, ending: str) -> Iterator[Path]:
    """A new folder for a mutant that is read from one; it goes when the block ends."""
    folder = path.with_name(f"{path.name}.{ending}")
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _submission(path: Path) -> Any:
    with _folder_beside(path, "team") as folder:
        shutil.copy(path, folder / "predictions.csv")
        (folder / "submission.json").write_text(json.dumps({"team": "t", "task": "joint"}))
        return _aligned(folder)


def _aligned(path: Path) -> Any:
    submission = examine_submission(path)
    aligned, errors = examine_alignment(submission, _known_truth())
    if submission.errors or errors:
        raise PneumoError("\n".join(map(str, [*submission.errors, *errors])))
    runs = None if aligned.runs is None else [rle.encode_runs(each) for each in aligned.runs]
    return None if aligned.probability is None else aligned.probability.tolist(), runs


def _metadata(path: Path) -> Any:
    table = read_metadata(path)
    numbers = features(table, pd.Series(["a", "b", "c", "nowhere"]))
    if not all(values.ndim == 2 for values in numbers.values()):
        raise AssertionError("features of another shape")
    return sorted(table[sorted(table.columns)].fillna("").to_csv().splitlines())


def _split(path: Path) -> Any:
    return audit_split(path).images, audit_split(path).images_shared


def _devices(path: Path) -> Any:
    devices = read_devices(path)
    return {name: {kind: rle.encode_runs(runs) for kind, runs in kinds.items()} for name, kinds in devices.items()}


TABLES = {
    "masks.csv": Table(MASKS, _masks, "EncodedPixels"),
    "generic.csv": Table(GENERIC, _labels),
    "nih.csv": Table(NIH, _labels),
    "chexpert.csv": Table(CHEXPERT, _labels),
    "vindr.csv": Table(VINDR, _labels),
    "truth_table.csv": Table(TRUTH, _truth, "encoded_pixels"),
    "predictions.csv": Table(PREDICTIONS, _submission, "encoded_pixels"),
    "bare.csv": Table("ImageId,EncodedPixels\na,5 3\nb,-1\n", _aligned, "EncodedPixels"),
    "patients.csv": Table(PATIENTS, lambda path: sorted(read_patients(path).items())),
    "nih_id.csv": Table(NIH_IDS, lambda path: sorted(read_patients(path).items())),
    "metadata.csv": Table(METADATA, _metadata),
    "split.csv": Table(SPLIT, _split),
    "devices.csv": Table(DEVICES, _devices, "encoded_pixels"),
}

_CELLS = [
    *("", " ", "-1", "-1.0", " -1", "nan", "NaN", "None", "inf", "-inf", "1e308", "1e-320", "1e400", "0x10", "1_000"),
    *(
        "９",
        "١",
        "²",
        "Ⅷ",
        "1,5",
        "1.5",
        "-0",
        "+1",
        "00",
        "007",
        "9" * 18,
        "9" * 400,
        "1 " * 300,
        "true",
        "0 0",
        "1 2 3",
    ),
    *("=1+1", "@SUM(A1)", "<script>", "../../x", "-rf", "\x00", "\x1b[31m", "\u202e", "\ud7ff", "é", "é", "\U0001f600"),
    *('"', '""', "'", ",", ";", "\t", "\n", "\r", "a\nb", "a,b", "x" * 5000, "a" * 140_000, "image_id", "row", "p"),
    *("1048576 1", "1048575 1", "0 1048576", "1048576", "-5 3", "5 -3", "5 0", "5 3 5", "1 1 " * 2000, "5  3", "5\t3"),
    *("1.0 2.0", "5 3 -1", "٥ ٣", "5 3", "5 3 0", "4294967296 1", "-4294967291 3", "18446744073709551621 3", "1e1 2"),
]


def plain_runs(text: str) -> list[int] | None:
    """Gap and run lengths by the letter of SIIM's form, or None where it is none; shares no code with the program."""
    text = text.strip()
    if text in ("", "-1"):
        return []
    words = text.split()
    if not all(re.fullmatch("[+-]?[0-9]+", word, re.ASCII) for word in words) or len(words) % 2:
        return None
    numbers = [int(word) for word in words]
    if any(gap < 0 for gap in numbers[0::2]) or any(run < 1 for run in numbers[1::2]) or sum(numbers) > PIXELS:
        return None
    return numbers


def _drawn(numbers: list[int]) -> np.ndarray:
    flat = np.zeros(PIXELS, bool)
    position = 0
    for gap, run in zip(numbers[0::2], numbers[1::2], strict=True):
        flat[position + gap : position + gap + run] = True
        position += gap + run
    return flat


def _cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def _written(rows: list[list[str]], **form: Any) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, **({"lineterminator": "\n"} | form)).writerows(rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def _same_table(rng: random.Random, name: str) -> Mutant:
    """The same table in another form."""
    rows = _cells(TABLES[name].text)
    kind = rng.choice(["quoted", "crlf", "bom", "blank lines", "spaces", "columns", "more columns", "rows", "no end"])
    form: dict[str, Any] = {}
    if kind == "quoted":
        form["quoting"] = csv.QUOTE_ALL
    elif kind == "crlf":
        form["lineterminator"] = "\r\n"
    elif kind == "spaces":
        rows = [[f" {cell} " for cell in row] for row in rows]
    elif kind == "columns":
        order = list(range(len(rows[0])))
        rng.shuffle(order)
        rows = [[row[place] for place in order] for row in rows]
    elif kind == "more columns" and name not in ("metadata.csv",):
        rows = [
            [*row, "remark of nobody" if number == 0 else rng.choice(["", "x", "a b"])]
            for number, row in enumerate(rows)
        ]
    elif kind == "rows":
        body = rows[1:]
        rng.shuffle(body)
        rows = [rows[0], *body]
    data = _written(rows, **form)
    if kind == "bom":
        data = b"\xef\xbb\xbf" + data
    elif kind == "blank lines":
        data = data.replace(b"\n", b"\n\n   \n")
    elif kind == "no end":
        data = data.rstrip(b"\n")
    return Mutant(data, f"{name}: {kind}", "same", _wanted(name))


@functools.cache
def _wanted(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(TABLES[name].text, encoding="utf-8")
        return TABLES[name].read(path)


def _masks_judged(rng: random.Random) -> Mutant:
    """A run-length text at random in a table, judged by the plain reader."""
    name = rng.choice([name for name, table in TABLES.items() if table.pixels])
    rows = _cells(TABLES[name].text)
    column = rows[0].index(TABLES[name].pixels)
    drawn = [row for row in rows[1:] if row[column] != "-1"]
    row = rng.choice(drawn)
    kind = rng.random()
    if kind < 0.4:
        text = rng.choice(_CELLS)
    else:
        numbers = [rng.choice([0, 1, 3, 7, 1024, 500_000]) for _ in range(rng.randrange(1, 9))]
        if kind < 0.6:
            numbers = [max(1, number) for number in numbers]
        text = rng.choice([" ", "  "]).join(map(str, numbers))
        if rng.random() < 0.2:
            text = text.replace(rng.choice("0157"), rng.choice(["-1", ".", "x", "", "٣"]), 1)
    row[column] = text
    runs = plain_runs(text)
    # An empty mask where the table says that there is one is another question; more than 18 digits are never read.
    truth = "refused" if runs is None or any(len(word) > 12 for word in text.split()) else ""
    return Mutant(_written(rows), f"{name}: {text[:60]!r} among the masks", truth)


def _random_table(rng: random.Random, name: str) -> Mutant:
    rows = _cells(TABLES[name].text)
    changes = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        kind = rng.choice(["cell", "cell", "cell", "header", "drop", "twice", "column", "short", "long", "many"])
        row = rng.choice(rows) if rows else []
        if kind == "cell" and row:
            row[rng.randrange(len(row))] = rng.choice(_CELLS)
        elif kind == "header" and rows and rows[0]:
            rows[0][rng.randrange(len(rows[0]))] = rng.choice(
                [*_CELLS, "pneumothorax", "EncodedPixels", "age", "height"]
            )
        elif kind == "drop" and rows:
            rows.remove(row)
        elif kind == "twice" and rows:
            rows.append(list(row))
        elif kind == "column" and rows and rows[0]:
            place = rng.randrange(len(rows[0]))
            rows = [each[:place] + each[place + 1 :] for each in rows]
        elif kind == "short":
            del row[rng.randrange(len(row) + 1) :]
        elif kind == "long":
            cell = rng.choice(_CELLS)
            row += [cell] * rng.choice([1, 3, 5000 if len(cell) < 20 else 2])
        elif kind == "many" and sum(map(len, row)) < 5000:
            rows += [list(row)] * 200
        changes.append(kind)
    form: dict[str, Any] = rng.choice([{}, {"delimiter": ";"}, {"delimiter": "\t"}, {"lineterminator": "\r"}, {}])
    data = _written(rows, **form)
    if rng.random() < 0.4:
        data = _damaged(rng, data)
        changes.append("damaged")
    return Mutant(data, f"{name}: {', '.join(changes)}")


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with bits turned, pieces taken out or put in; also wrong UTF-8."""
    content = bytearray(data) or bytearray(b"\n")
    kind = rng.choice(["bits", "cut", "insert", "hole", "utf-16", "zeros"])
    place = rng.randrange(len(content))
    if kind == "bits":
        for _ in range(rng.choice([1, 2, 9])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[place:]
    elif kind == "insert":
        content[place:place] = rng.choice(
            [b'"', b"\xff", b"\xc3", b"\0", b"\xef\xbb\xbf", b"\x1a", b",", b"\r", rng.randbytes(9)]
        )
    elif kind == "hole":
        del content[place : place + rng.choice([1, 3, 20])]
    elif kind == "utf-16":
        return bytes(content).decode("utf-8", "replace").encode("utf-16")
    else:
        content[place:place] = b"\0" * 500
    return bytes(content)


# -- Json --------------------------------------------------------------------------------------------------------------

COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "height": 64, "width": 64},
        {"id": 2, "file_name": "b.png", "height": 64, "width": 48},
    ],
    "categories": [{"id": 1, "name": "pneumothorax"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [[1, 1, 20, 1, 20, 20, 1, 20]],
            "bbox": [1, 1, 19, 19],
        },
        {
            "id": 2,
            "image_id": 2,
            "category_id": 1,
            "segmentation": {"size": [64, 48], "counts": [10, 20, 3042]},
            "bbox": [],
        },
    ],
}
SUBMISSION = {
    "format": 1,
    "team": "t",
    "framework": "PyTorch",
    "task": "joint",
    "split_sha256": None,
    "subset": "test",
    "threshold": 0.5,
    "pretraining": {"images": "none", "image_ids": []},
    "image_size": 512,
    "seeds": [1],
    "deterministic": True,
    "training_hours": 1.5,
    "hardware": "a",
    "preprocessing": "b",
    "synthetic": False,
}
RULE = {
    "rule": {"top": 0.7, "area": 2000, "bottom": 0.3, "component": 100, "gate": 0.2, "gate_source": "own head"},
    "fitted_on_validation": {"dice": 0.8, "dice_positives": 0.5, "images": 100},
}
THRESHOLD = {"threshold": 0.35, "fitted_on_validation": {"images": 100}}
CALIBRATION = {"kind": "isotonic", "temperature": 1.0, "knots": [[0.0, 0.1], [0.5, 0.4], [1.0, 0.9]]}
DETECTOR_FILES = [
    "postprocess.json",
    *(
        f"{member}/{name}"
        for member in ("classifier_0", "segmenter_0")
        for name in ("experiment.json", "network_0.safetensors")
    ),
]
DETECTOR = {
    "format": 1,
    "name": "tiny",
    "versions": {"keras_pneumo": "0.1.0"},
    "classifiers": ["classifier_0"],
    "segmenters": ["segmenter_0"],
    "probability_source": "classifier",
    "threshold": 0.4,
    "outline_area": 100,
    "calibration": CALIBRATION,
    "synthetic": True,
    "files": {name: sha256_bytes(b"{}") for name in DETECTOR_FILES},
    "validation": {
        "split_sha256": "0" * 64,
        "counts": {
            "images": 10,
            "patients": 9,
            "true_positive": 3,
            "false_positive": 1,
            "false_negative": 1,
            "true_negative": 5,
        },
    },
}

_NUMBERS_BAD = [-5, float("nan"), float("inf"), 1e308, "x", None, [], {}]


class Declaration(NamedTuple):
    """A kind of json file."""

    value: Any
    read: Callable[[Path], Any]
    bad: dict[str, list[Any]]
    """Dotted path -> values that must be refused there."""
    finish: Callable[[Any], Any] = lambda value: value
    """Makes hashes anew, as an attacker would."""


def _coco(path: Path) -> Any:
    labels = coco_labels(path)
    return {name: (rle.encode_runs(label.runs), label.positive) for name, label in sorted(labels.images.items())}


def _declared(path: Path) -> Any:
    with _folder_beside(path, "team") as folder:
        (folder / "predictions.csv").write_text(PREDICTIONS)
        shutil.copy(path, folder / "submission.json")
        _aligned(folder)
        return examine_submission(folder).info.model_dump()


def _record(path: Path) -> Any:
    with _folder_beside(path, "detector") as folder:
        shutil.copy(path, folder / "detector.json")
        for name in DETECTOR_FILES:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"{}")
        record = read_detector_record(folder)
        check_files(folder, record)
        for member in [*record["classifiers"], *record["segmenters"]]:
            networks_of(folder, record, member)
        return {key: value for key, value in record.items() if key != "sha256"}


def _threshold(path: Path) -> Any:
    with _folder_beside(path, "run") as folder:
        shutil.copy(path, folder / "postprocess.json")
        threshold = read_threshold(folder)
        if threshold is None:  # as where there is none
            raise PneumoError("There is no threshold.")
        return threshold


def _calibration(path: Path) -> Any:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:  # the callers' own handling of a damaged detector.json
        raise PneumoError(f"It is no json: {error}") from None
    calibration = read_calibration(value)
    answered = calibration.apply(np.array([0.0, 0.3, 1.0]))
    if not (np.isfinite(answered).all() and (answered >= 0).all() and (answered <= 1).all()):
        raise AssertionError(f"calibrated probabilities of {answered}")
    return answered.tolist()


_TABLES_OF_FOLDER = {
    "cases.csv": "image_id,patient_id,sex,age,view,pixel_spacing_mm,pneumothorax,mask_pixels,label_rows,source,"
    "source_sha256\n"
    "a,p,F,58,PA,0.2,1,3,1,a.dcm,00\nb,q,M,61,AP,0.2,0,0,1,b.dcm,11\n",
    "split.csv": "image_id,patient_id,pneumothorax,subset,fold\na,p,1,test,-1\nb,q,0,test,-1\n",
    "truth.csv": "image_id,patient_id,subset,fold,sex,age,view,pixel_spacing_mm,pneumothorax,encoded_pixels\n"
    "a,p,test,-1,F,58,PA,0.2,1,5 3\nb,q,test,-1,M,61,AP,0.2,0,-1\n",
    "quarantine.csv": "file,row,reason\n",
}


def _split_hash() -> str:
    table = pd.read_csv(io.StringIO(_TABLES_OF_FOLDER["split.csv"]), dtype={"image_id": str, "patient_id": str})
    return split_sha256(table)


def _manifest() -> dict[str, Any]:
    return {
        "format": 1,
        "synthetic": True,
        "sizes": [64],
        "vanished": {"64": []},
        "pixels": {"a": "0" * 64, "b": "1" * 64},
        "tables": {name: sha256_bytes(text.encode()) for name, text in _TABLES_OF_FOLDER.items()},
        "files": {"images_64/a.png": "0" * 64, "images_64/b.png": "1" * 64, "masks_64/a.png": "2" * 64},
        "patients": "table",
        "notes": [],
        "counts": {"images": 2},
    }


def _hashed_manifest(value: Any) -> Any:
    try:
        hashes = {"prepared_sha256": prepared_sha256(value["tables"], value["pixels"]), "split_sha256": _split_hash()}
        return value | hashes
    except (KeyError, TypeError, ValueError, RecursionError):
        return value


def _prepared(path: Path) -> Any:
    with _folder_beside(path, "prepared") as folder:
        for name, text in _TABLES_OF_FOLDER.items():
            (folder / name).write_text(text)
        shutil.copy(path, folder / "manifest.json")
        prepared = load_prepared(folder)
        truth = read_truth(folder, subset="all")
        return prepared.manifest["sizes"], prepared.manifest["files"], len(truth.cases)


def _hashed_record(value: Any) -> Any:
    try:
        return value | {"sha256": content_hash(value)}
    except (TypeError, ValueError, AttributeError, RecursionError):
        return value


_SHARES = [-0.1, -5, 1.5, *_NUMBERS_BAD]
JSONS = {
    "coco.json": Declaration(COCO, _coco, {"images": [None, 3, "x", {}], "categories": [[], None, [[]]]}),
    "submission.json": Declaration(
        SUBMISSION,
        _declared,
        {
            "threshold": [value for value in _SHARES if value is not None],
            "team": ["", None, 3, [], "\u202e"],
            "task": ["detection", None, 1],
            "format": [2, None, "x"],
            "image_size": [0, -512, 1.5, "x", float("nan"), []],
            "training_hours": [-1, float("nan"), float("inf"), "x", []],
        },
    ),
    "experiment.json": Declaration(
        CLASSIFIER.model_dump(mode="json"),
        read_experiment,
        {
            "learning_rate": _NUMBERS_BAD,
            "image_size": [0, -512, 1.5, 10**9, "x", None, [], float("nan")],
            "global_batch_size": [0, -1, "x", None, 1.5],
            "encoder": ["resnet9000", None, 3, []],
            "name": ["../x", "", "a/b", "x" * 100, None, 5],
            "epochs": [-1, 0, "x", None, 1.5],
        },
    ),
    "postprocess.json": Declaration(
        RULE,
        read_postprocessing,
        {
            "rule.top": _SHARES,
            "rule.bottom": _SHARES,
            "rule.gate": _SHARES,
            "rule.area": [-1, 1.5, "x", None, []],
            "rule.component": [-1, 1.5, "x", None],
            "rule.gate_source": [3, None, []],
            "rule": [None, 3, [], {}],
        },
    ),
    "threshold.json": Declaration(THRESHOLD, _threshold, {"threshold": _SHARES}),
    "calibration.json": Declaration(
        CALIBRATION,
        _calibration,
        {
            "kind": ["x", None, 3, []],
            "temperature": [0, *_NUMBERS_BAD],
            "knots": [None, "x", [[1, 2, 3]], [[0.0, 0.9], [1.0, 0.1]], [[0, float("nan")]], [[0, -5], [1, 7]], []],
        },
    ),
    "detector.json": Declaration(
        DETECTOR,
        _record,
        {
            "threshold": _SHARES,
            "outline_area": [0, *_NUMBERS_BAD],
            "name": [None, 3, []],
            "versions": [None, [], "x", {}],
            "classifiers": [None, "x", [], [3], [None], ["../x"], {}],
            "segmenters": [None, "x", [], [3], ["a/b"]],
            "files": [None, [], {}, {"postprocess.json": 3}, {"../x": "0" * 64, "postprocess.json": "0" * 64}],
            "calibration": [None, 3, {}, {"kind": "x"}],
            "validation": [None, [], {}],
            "validation.counts.images": [-1, 1.5, "x", None],
            "validation.counts.true_positive": [-1, "x", None, []],
            "synthetic": ["x", None, 3],
        },
        _hashed_record,
    ),
    "manifest.json": Declaration(
        _manifest(),
        _prepared,
        {
            "sizes": [None, [], "x", [-64], ["x"], [None], [0], [1.5], [True], {}],
            "tables": [None, [], {}],
            "pixels": [None, [], "x"],
            "files": [None, [], "x", {"a": 3}, {"../../x": "0" * 64}],
            "vanished": [None, [], {"64": 3}],
            "format": [0, None, "x"],
            "synthetic": ["x", 3],
        },
        _hashed_manifest,
    ),
}

_VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        -5,
        2**31,
        2**63,
        2**70,
        10**400,
        1.5,
        1e308,
        -1e308,
        float("nan"),
        float("inf"),
        1e-320,
    ),
    *("", " ", "x", "-1", "nan", "\x00", "\x1b[31m", "\u202e", "\ud800", "../../x", "=1+1", "x" * 100_000, "0" * 64),
    *([], [[]], [None] * 1000, {}, {"": ""}, {"x": {"y": []}}, [[[[[[]]]]]], [1, "x", None]),
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    places = [path] if path else []
    if isinstance(value, dict):
        for key in value:
            places += _places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            places += _places(value[index], (*path, index))
    return places


def _set(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def _json_bytes(value: Any, **form: Any) -> bytes:
    return json.dumps(value, **form).encode("utf-8", "surrogatepass")


def _same_json(rng: random.Random, name: str) -> Mutant:
    declaration = JSONS[name]
    value = declaration.finish(copy.deepcopy(declaration.value))
    form: dict[str, Any] = rng.choice(
        [{"indent": 4}, {"sort_keys": True}, {"ensure_ascii": False}, {"separators": (",", ":")}]
    )
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        value = {key: value[key] for key in keys}
    data = _json_bytes(value, **form)
    return Mutant(
        rng.choice([b"", b" \n"]) + data + rng.choice([b"", b"\n\n"]), f"{name}: {form}", "same", _wanted_json(name)
    )


@functools.cache
def _wanted_json(name: str) -> Any:
    declaration = JSONS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(_json_bytes(declaration.finish(copy.deepcopy(declaration.value))))
        return declaration.read(path)


def _bad_json(rng: random.Random, name: str) -> Mutant:
    declaration = JSONS[name]
    value = copy.deepcopy(declaration.value)
    path = rng.choice(list(declaration.bad))
    bad = rng.choice(declaration.bad[path])
    _set(value, tuple(path.split(".")), copy.deepcopy(bad))
    return Mutant(_json_bytes(declaration.finish(value)), f"{name}: {path} is {bad!r:.60}", "refused")


def _random_json(rng: random.Random, name: str) -> Mutant:
    declaration = JSONS[name]
    value = copy.deepcopy(declaration.value)
    changes = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = _places(value)
        if not places:
            break
        place = rng.choice(places)
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        kind = rng.choice(["value", "value", "value", "drop", "rename", "more", "copy"])
        if kind == "value":
            parent[place[-1]] = copy.deepcopy(rng.choice(_VALUES))
        elif kind == "drop":
            del parent[place[-1]]
        elif kind == "rename" and isinstance(parent, dict):
            parent[rng.choice(["", "x", "é", str(place[-1]).upper()])] = parent.pop(place[-1])
        elif kind == "more" and isinstance(parent, dict):
            parent[rng.choice(["x", "", "row", "__class__", "\ud800", "=1"])] = copy.deepcopy(rng.choice(_VALUES))
        elif kind == "copy":
            source = value
            for key in rng.choice(places):
                if not isinstance(source, dict | list) or (isinstance(source, dict) and key not in source):
                    break
                if isinstance(source, list) and (not isinstance(key, int) or key >= len(source)):
                    break
                source = source[key]
            parent[place[-1]] = copy.deepcopy(source)
        changes.append(f"{kind} at {'.'.join(map(str, place))}")
    if rng.random() < 0.8:
        value = declaration.finish(value)
    data = _json_bytes(value)
    if rng.random() < 0.3:
        data = _damaged(rng, data)
        changes.append("damaged")
    elif rng.random() < 0.1:
        data = rng.choice(
            [
                b"[" * 100_000,
                b'{"a":' * 50_000,
                b"[" * 900 + b"]" * 900,
                b"null",
                b"3",
                b'"x"',
                b"",
                b"[]",
                b"{}",
                b"NaN",
                b'{"format": 1, "format": 2}',
                b"\xef\xbb\xbf" + data,
                b"1" * 5000,
                b"-" * 10,
                b'{"a":1}' * 2,
            ]
        )
        changes = ["another json"]
    return Mutant(data, f"{name}: {', '.join(changes)[:200]}")


# -- Both --------------------------------------------------------------------------------------------------------------


def mutant(number: int) -> tuple[str, Mutant]:
    """The kind of file, and the mutant, of this number: always the same."""
    rng = random.Random(number)
    part = rng.random()
    if rng.random() < 0.5:
        name = rng.choice(list(TABLES))
        if part < 0.15:
            return name, _same_table(rng, name)
        if part < 0.4:
            made = _masks_judged(rng)
            return made.change.partition(":")[0], made
        made = _random_table(rng, name)
        if part > 0.95 and name != "predictions.csv":  # in a team's folder no table is zipped
            packed = gzip.compress(made.data)
            packed = _damaged(rng, packed) if rng.random() < 0.5 else packed
            return f"{name}.gz", Mutant(packed, f"{made.change}, zipped")
        return name, made
    name = rng.choice(list(JSONS))
    if part < 0.1:
        return name, _same_json(rng, name)
    return name, _bad_json(rng, name) if part < 0.4 else _random_json(rng, name)


def try_number(job: tuple[int, str]) -> Outcome:
    """Read the mutant of a number from a file of the folder."""
    number, folder = job
    name, made = mutant(number)
    own = Path(folder) / str(number)
    own.mkdir()
    try:
        path = own / name
        path.write_bytes(made.data)
        return try_file(path, made)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def try_file(path: Path, made: Mutant) -> Outcome:
    """Read one file by the function of its name."""
    name = path.name.removesuffix(".gz")
    read = TABLES[name].read if name in TABLES else JSONS[name].read

    def differs(value: Any) -> str:
        if made.truth == "same" and value != made.wanted:
            return f"silently other values: {made.change}"
        return ""

    return outcome_of(made, lambda: read(path), differs)


def try_runs(number: int) -> str:
    """Compare the program's reader of run-length text with the plain one; what differs, in words, or blank."""
    rng = random.Random(number)
    numbers = [rng.choice([0, 1, 2, 5, 1023, 1024, 300_000]) for _ in range(rng.randrange(0, 9))]
    text = " ".join(map(str, numbers))
    if rng.random() < 0.4:
        text = rng.choice(_CELLS)
    wanted = plain_runs(text)
    try:
        mask = rle.decode(text)
    except PneumoError:
        return "" if wanted is None or any(len(word) > 12 for word in text.split()) else f"{text[:60]!r} is refused"
    if wanted is None:
        return f"{text[:60]!r} is read"
    same = np.array_equal(mask.ravel(order="F").astype(bool), _drawn(wanted))
    return "" if same and rle.area(rle.runs_of(text)) == int(mask.sum()) else f"{text[:60]!r} is read as another mask"
