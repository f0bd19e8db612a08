"""Reads, checks and writes a team's submission.

In: a folder (``submission.json``, ``predictions.csv``, perhaps ``validation.csv``) from any framework, or a bare Kaggle
CSV. Out: a :class:`Submission`; an error message names the file and the row. Whether it fits the truth's
images is checked in :mod:`keras_pneumo.evaluation.inputs.alignment`. Writing replaces a folder, so it refuses a folder
that holds anything but an older submission.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from keras_pneumo.data.labels.cases import read_label_rows, refuse_rejected
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import is_temporary, write_bytes
from keras_pneumo.storage.tables import MAX_BYTES, image_id_of, listed, one_line, read_rows, read_table, read_text

INFO_FILE, PREDICTIONS_FILE, VALIDATION_FILE = "submission.json", "predictions.csv", "validation.csv"
OWN_NAMES = frozenset({INFO_FILE, PREDICTIONS_FILE, VALIDATION_FILE, "postprocess.json", "postprocess.png"})
"""All files that are written into a submission's folder, those of the postprocessing search included."""

Task = Literal["classification", "segmentation", "joint"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Pretraining(BaseModel):
    """Images used for pre-training; ``image_ids`` are SIIM or NIH names, which are compared with the test set."""

    images: str = "none"
    image_ids: list[str] = []


class SubmissionInfo(BaseModel):
    """The content of ``submission.json``: what a team declares about its predictions. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    team: str = Field(min_length=1)
    framework: str = ""
    task: Task
    split_sha256: str | None = None
    subset: str = "test"
    threshold: Annotated[Finite, Field(ge=0, le=1)] | None = None
    pretraining: Pretraining = Pretraining()
    image_size: Annotated[int, Field(gt=0)] | None = None
    seeds: list[int] = []
    deterministic: bool | None = None
    """Whether the training used only operations that give the same result each time."""
    training_hours: Annotated[Finite, Field(ge=0)] | None = None
    hardware: str = ""
    preprocessing: str = ""

    @field_validator("team", "framework", "hardware", "preprocessing", "subset")
    @classmethod
    def _plain(cls, text: str) -> str:
        return one_line(text, 200)

    @field_validator("team")
    @classmethod
    def _named(cls, text: str) -> str:
        if not text:
            raise ValueError("the team's name must have visible characters")
        return one_line(text, 80)


@dataclass(frozen=True)
class Submission:
    """One submission as read: ``predictions`` has ``image_id``, ``row`` and ``probability`` and/or ``encoded_pixels``.

    A bare Kaggle file may have several rows for one image; a team folder has one.
    """

    path: Path
    info: SubmissionInfo
    predictions: pd.DataFrame
    validation: pd.DataFrame | None = None
    bare: bool = False

    @property
    def predictions_file(self) -> Path:
        """The file of the predictions, for messages about a row."""
        return self.path if self.bare else self.path / PREDICTIONS_FILE


def read_submission(path: Path, max_bytes: int = MAX_BYTES) -> Submission:
    """Read a team folder or a bare Kaggle CSV (plain or gzipped).

    Args:
        path: the folder that holds ``submission.json``, or the file.
        max_bytes: largest file read; a larger one is refused by its size, before it is opened.

    Raises:
        PneumoError: a file is missing, too large or not what it should be, or a probability is not a number from 0 to
            1; the message names file, rows and reason.
    """
    path = Path(path)
    if not path.exists():
        raise PneumoError(f"There is no {path}.")
    if not path.is_dir():
        name = path.name.removesuffix(".gz").removesuffix(".csv")
        info = SubmissionInfo(team=one_line(name, 80) or "unnamed", task="segmentation")
        return Submission(path, info, _read_bare(path, max_bytes), bare=True)
    info = _read_info(path / INFO_FILE, max_bytes)
    predictions = _read_predictions(path / PREDICTIONS_FILE, info.task, max_bytes)
    validation = path / VALIDATION_FILE
    validation_table = _read_predictions(validation, info.task, max_bytes) if validation.exists() else None
    return Submission(path, info, predictions, validation_table)


def write_submission(
    folder: Path, info: SubmissionInfo, predictions: pd.DataFrame, validation: pd.DataFrame | None = None
) -> Path:
    """Write a submission folder; if that fails, an older one of that name stays as it was.

    Args:
        folder: the folder to write; its parent is made. An existing folder must hold an older submission and nothing
            else.
        info: what the team declares.
        predictions: ``image_id`` and ``probability`` (0 to 1) and/or ``encoded_pixels`` (text, ``-1`` for empty).
        validation: the same for the validation subset.

    Raises:
        PneumoError: the tables lack a column that the task needs, the folder holds other files, or it cannot be
            written.
    """
    folder = require_replaceable(folder)
    tables = {PREDICTIONS_FILE: predictions} | ({VALIDATION_FILE: validation} if validation is not None else {})
    texts = {INFO_FILE: info.model_dump_json(indent=2) + "\n"}
    for name, table in tables.items():
        columns = [column for column in ("image_id", "probability", "encoded_pixels") if column in table.columns]
        _need_columns(table, info.task, folder / name)
        # Seventeen significant digits bring a float back bit for bit, so a score can be repeated exactly.
        texts[name] = table[columns].to_csv(index=False, lineterminator="\n", float_format="%.17g")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise PneumoError(f"{folder} could not be written ({error.strerror}).") from error
    try:
        new.chmod(0o755)
        for name, text in texts.items():
            write_bytes(new / name, text.encode())
        read_submission(new)
        _put_in_place(new, folder)
    except OSError as error:
        raise PneumoError(f"{folder} could not be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def require_replaceable(folder: Path) -> Path:
    """The real path of a folder that a submission may replace: a new one, an empty one, or an older submission.

    Raises:
        PneumoError: it is a file, or a folder that holds anything else, which writing would delete.
    """
    real = Path(folder).resolve()
    if not real.exists():
        return real
    if not real.is_dir():
        raise PneumoError(f"{folder} is a file, but a submission is a folder. Give another name; nothing was changed.")
    try:
        others = sorted(path.name for path in real.iterdir() if not _own(path))
    except OSError as error:
        raise PneumoError(f"{folder} cannot be read ({error.strerror}). Give another folder.") from error
    if others:
        named = ", ".join(repr(name) for name in others[:3]) + (", ..." if len(others) > 3 else "")
        raise PneumoError(
            f"{folder} holds files that are not part of a submission ({named}), and writing a submission replaces the "
            "whole folder. Give a new or an empty folder; nothing was changed."
        )
    return real


def _read_info(path: Path, max_bytes: int) -> SubmissionInfo:
    if not path.exists():
        raise PneumoError(
            f"{path.parent} has no {path.name}. A submission folder needs this file with the fields team and task."
        )
    try:
        content = json.loads(read_text(path, max_bytes))
    except (ValueError, RecursionError) as error:
        raise PneumoError(f"{path} is not JSON ({one_line(str(error))}).") from None
    if not isinstance(content, dict):
        raise PneumoError(f"{path} must hold one JSON object with the fields team, task, ...")
    try:
        return SubmissionInfo.model_validate(content)
    except ValidationError as error:
        raise PneumoError(f"{path} cannot be used: {_sentences(error)}.") from None


def _sentences(error: ValidationError) -> str:
    errors: list[dict[str, Any]] = [dict(item) for item in error.errors()]
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {one_line(str(item['msg']))}" for item in errors[:5])


def _need_columns(table: pd.DataFrame, task: Task, path: Path) -> None:
    wanted = {
        "classification": ["probability"],
        "segmentation": ["encoded_pixels"],
        "joint": ["probability", "encoded_pixels"],
    }[task]
    missing = [column for column in ["image_id", *wanted] if column not in table.columns]
    if missing:
        raise PneumoError(f"{path} has no column {' and no column '.join(missing)}, which the task {task!r} needs.")


def _read_bare(path: Path, max_bytes: int) -> pd.DataFrame:
    """A bare Kaggle file: ``image_id``, ``encoded_pixels`` and ``row``, a line per mask."""
    _, header = next(read_rows(path, max_bytes), (0, []))
    if any(name.lower() == "probability" for name in header):
        raise PneumoError(
            f"{path} has a column probability, but a single file may hold masks only. "
            "Put it in a folder as predictions.csv, with a submission.json beside it."
        )
    rows, rejected = read_label_rows(path, max_bytes=max_bytes)
    refuse_rejected(path, rejected)
    if rows.empty:
        raise PneumoError(f"{path} has no rows.")
    return rows[["image_id", "encoded_pixels", "row"]]


def _read_predictions(path: Path, task: Task, max_bytes: int) -> pd.DataFrame:
    if not path.exists():
        raise PneumoError(f"{path.parent} has no {path.name}.")
    table = read_table(path, max_bytes)
    _need_columns(table, task, path)
    if table.empty:
        raise PneumoError(f"{path} has no rows.")
    columns = [name for name in ("image_id", "probability", "encoded_pixels", "row") if name in table.columns]
    table = table[columns].assign(image_id=table.image_id.map(image_id_of))
    blank = table.row[table.image_id == ""]
    if len(blank):
        raise PneumoError(f"{path}, row {blank.iloc[0]}: the image id is blank.")
    again = table[table.image_id.duplicated()]
    if len(again):
        rows = listed(f"row {row} ({image!r})" for row, image in zip(again.row, again.image_id, strict=True))
        raise PneumoError(f"{path} gives {len(again):,} images more than one row: {rows}. Give one row per image.")
    if "probability" in table.columns:
        table = table.assign(probability=_probabilities(table, path))
    return table


def _probabilities(table: pd.DataFrame, path: Path) -> np.ndarray:
    values = pd.to_numeric(table.probability, errors="coerce").to_numpy(float)
    wrong = ~(np.isfinite(values) & (values >= 0) & (values <= 1))
    if wrong.any():
        cells = zip(table.row[wrong], table.probability[wrong], strict=True)
        rows = listed(f"row {row} ({text[:20]!r})" for row, text in cells)
        outside = np.isfinite(values[wrong]).all()
        hint = (
            "If they are logits, apply a sigmoid first."
            if outside
            else "Give every image a number with a decimal point."
        )
        raise PneumoError(f"{path}: {int(wrong.sum()):,} probabilities are not numbers from 0 to 1: {rows}. {hint}")
    return values


def _put_in_place(new: Path, folder: Path) -> None:
    """Give a finished folder its name; the older folder is deleted only after that."""
    if not folder.exists():
        new.rename(folder)
        return
    old = folder.with_name(new.name + ".old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _own(path: Path) -> bool:
    return path.is_file() and (path.name in OWN_NAMES or is_temporary(path.name))
