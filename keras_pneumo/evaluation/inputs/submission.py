"""Reads, checks and writes a team's submission, and writes a template of one.

In: a folder (``submission.json``, ``predictions.csv``, perhaps ``validation.csv``) from any framework, a bare Kaggle
CSV, or a bare one of ``image_id`` and ``probability``. Out: a :class:`Submission`; an error message names the file and
the row. Whether it fits the truth's images is checked in :mod:`keras_pneumo.evaluation.inputs.alignment`. Writing
replaces an older submission, and refuses a folder that holds anything else; a template replaces nothing.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import CANONICAL, mask_sizes, read_label_rows
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import is_leftover, replacing_contents, write_bytes, write_table
from keras_pneumo.storage.tables import (
    MAX_BYTES,
    column_name,
    counted,
    image_id_of,
    listed,
    one_line,
    read_rows,
    read_table,
    read_text,
    shown_id,
    table_text,
)

INFO_FILE, PREDICTIONS_FILE, VALIDATION_FILE = "submission.json", "predictions.csv", "validation.csv"
OWN_NAMES = ("postprocess.json", "postprocess.png", "contamination.csv", VALIDATION_FILE, PREDICTIONS_FILE, INFO_FILE)
"""All files that are written into a submission's folder, those of the postprocessing search included; the last of them
makes a folder a submission."""

PLACEHOLDER = "FILL IN"
"""What a template has in the place of each prediction, and at the start of each text that a team must write."""

Task = Literal["classification", "segmentation", "joint"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


UNLISTED_SOURCES = ("torchxrayvision",)
"""Words in the names of published weights of whose images the data sets are known, but no list."""


class Pretraining(BaseModel):
    """Images used for pre-training; ``image_ids`` are SIIM or NIH names, which are compared with the test set."""

    images: str = "none"
    image_ids: list[str] = []

    @property
    def names_all_images(self) -> bool:
        """Whether ``image_ids`` can name every image: not where it is empty, or a source has published no list."""
        words = column_name(self.images)
        return bool(self.image_ids) and not any(source in words for source in UNLISTED_SOURCES)


class SubmissionInfo(BaseModel):
    """The content of ``submission.json``: what a team declares about its predictions.

    Unknown fields are not used, and a note says so, since one may be a misspelt ``threshold``.
    """

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
    synthetic: bool = False
    """Whether the training images were synthetic (phantoms)."""

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
class Fault:
    """One kind of error in a submission: the sentence about it, and every row that it is about."""

    sentence: str
    file: Path | None = None
    rows: tuple[tuple[int | None, str], ...] = ()
    """Number and image id of each row; no number where the row is missing. Empty: it is about the whole file."""

    def __str__(self) -> str:
        """The sentence."""
        return self.sentence


def write_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Write ``file``, ``row``, ``image_id`` and ``fault``: a line for every wrong row, or for a whole file.

    The row is blank for an image that has none, and for a whole file.
    """
    lines = [
        (str(f.file or ""), row, shown_id(name), f.sentence) for f in faults for row, name in f.rows or ((None, ""),)
    ]
    table = pd.DataFrame(lines, columns=["file", "row", "image_id", "fault"]).astype({"row": "Int64"})
    write_bytes(path, table_text(table).encode())


def rows_of(table: pd.DataFrame) -> tuple[tuple[int | None, str], ...]:
    """The rows of a table with ``row`` and ``image_id``, as a :class:`Fault` has them."""
    return tuple(zip(table.row.tolist(), table.image_id.tolist(), strict=True))


@dataclass(frozen=True)
class Submission:
    """One submission as read: ``predictions`` has ``image_id``, ``row`` and ``probability`` and/or ``encoded_pixels``.

    A bare file of masks may have several rows for one image; a team folder has one.
    """

    path: Path
    info: SubmissionInfo
    predictions: pd.DataFrame
    validation: pd.DataFrame | None = None
    bare: bool = False
    notes: list[str] = field(default_factory=list)
    """What the board says about the declaration: fields that are not known."""
    errors: list[Fault] = field(default_factory=list)
    """All that is wrong in its files, which :func:`read_submission` refuses."""

    @property
    def predictions_file(self) -> Path:
        """The file of the predictions, for messages about a row."""
        return self.path if self.bare else self.path / PREDICTIONS_FILE


def read_submission(path: Path, max_bytes: int = MAX_BYTES) -> Submission:
    """Read a team folder, a bare Kaggle CSV, or a bare one of ``image_id`` and ``probability`` (plain or gzipped).

    Args:
        path: the folder that holds ``submission.json``, or the file.
        max_bytes: largest file read; a larger one is refused by its size, before it is opened.

    Raises:
        PneumoError: a file is missing, too large or not what it should be, or a probability is not a number from 0 to
            1; the message names file, rows and reason.
    """
    submission = examine_submission(path, max_bytes)
    if submission.errors:
        raise PneumoError("\n".join(map(str, submission.errors)))
    return submission


def examine_submission(path: Path, max_bytes: int = MAX_BYTES) -> Submission:
    """Read a submission as :func:`read_submission` does, but go on after an error and collect all of them.

    Returns:
        The submission as far as it can be read, without its wrong rows and fields, and with ``errors``.
    """
    path = Path(path)
    if not path.exists():
        return _unreadable(path, [Fault(f"There is no {path}. Check the path.", path)])
    errors: list[Fault] = []
    if not path.is_dir():
        return _examine_bare(path, max_bytes)
    info, notes, task = _read_info(path / INFO_FILE, max_bytes, errors)
    table, file = path / PREDICTIONS_FILE, path / VALIDATION_FILE
    predictions = _collected(errors, table, lambda: _read_predictions(table, task, max_bytes, errors))
    validation = (
        _collected(errors, file, lambda: _read_predictions(file, task, max_bytes, errors)) if file.exists() else None
    )
    predictions = _NO_ROWS if predictions is None else predictions
    return Submission(path, info, predictions, validation, notes=notes, errors=errors)


def _examine_bare(path: Path, max_bytes: int) -> Submission:
    """A single file: Kaggle's masks, or a probability for each image, perhaps with its mask."""
    errors: list[Fault] = []
    task: Task = "segmentation"
    rows = _NO_ROWS
    try:
        _, header = next(read_rows(path, max_bytes), (0, []))
        columns = {cell: _BARE[column_name(cell)] for cell in header if column_name(cell) in _BARE}
        if "probability" in columns.values():
            task = "joint" if "encoded_pixels" in columns.values() else "classification"
            rows = _read_predictions(path, task, max_bytes, errors, columns)
        else:
            rows = _read_masks(path, max_bytes, errors)
    except PneumoError as error:
        errors.append(Fault(str(error), path))
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    info = SubmissionInfo(team=one_line(name, 80) or "unnamed", task=task)
    return Submission(path, info, rows, bare=True, errors=errors)


_BARE = {"imageid": "image_id", "probability": "probability", "encodedpixels": "encoded_pixels"}
"""The columns of a single file, as :func:`column_name` has them, and what a folder's ``predictions.csv`` calls them."""

_NO_ROWS = pd.DataFrame({"image_id": pd.Series(dtype=str), "row": pd.Series(dtype=int)})
_UNDECLARED = SubmissionInfo(team="unnamed", task="joint")
"""Stands for a declaration that cannot be read, so that the tables beside it are still checked."""


def _unreadable(path: Path, errors: list[Fault]) -> Submission:
    return Submission(path, _UNDECLARED, _NO_ROWS, errors=errors)


def _collected(errors: list[Fault], file: Path, read: Callable[[], pd.DataFrame]) -> pd.DataFrame | None:
    """What ``read`` returns; or None, and its error is added to the others."""
    try:
        return read()
    except PneumoError as error:
        errors.append(Fault(str(error), file))
        return None


def write_submission(
    folder: Path,
    info: SubmissionInfo,
    predictions: pd.DataFrame,
    validation: pd.DataFrame | None = None,
    write_more: Callable[[Path], object] | None = None,
) -> Path:
    """Write a submission folder; until it is written, and if that fails, an older one in it stays as it was.

    Args:
        folder: the folder to write; its parent is made. An existing folder must hold an older submission and nothing
            else.
        info: what the team declares.
        predictions: ``image_id`` and ``probability`` (0 to 1) and/or ``encoded_pixels`` (text, ``-1`` for empty).
        validation: the same for the validation subset.
        write_more: writes further files of a submission into the folder that it is given, which is not yet ``folder``.

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
    with replacing_contents(folder, OWN_NAMES) as new:
        for name, text in texts.items():
            write_bytes(new / name, text.encode())
        read_submission(new)
        if write_more is not None:
            write_more(new)
    return folder


def write_template(
    folder: Path,
    image_ids: Sequence[str],
    task: Task = "joint",
    subset: str = "test",
    split_sha256: str | None = None,
    synthetic: bool = False,
    validation_ids: Sequence[str] = (),
) -> Path:
    """Write a submission folder to be filled in: the ids to predict, and :data:`PLACEHOLDER` for all that is missing.

    Reading it is refused until the last placeholder is gone.

    Args:
        folder: where to write: a new or an empty folder.
        image_ids: a row of ``predictions.csv`` each.
        task: which columns ``predictions.csv`` has: ``probability``, ``encoded_pixels``, or both.
        subset: the subset that the ids are of.
        split_sha256: the split's hash, where it is known.
        synthetic: whether the images of this split are phantoms.
        validation_ids: a row of ``validation.csv`` each; without any that file is not written.

    Raises:
        PneumoError: the folder holds something, or cannot be written.
    """
    real = require_replaceable(folder)
    if real.exists() and any(not is_leftover(path.name) for path in real.iterdir()):
        raise PneumoError(f"{folder} holds a submission already. Give a new or an empty folder; nothing was changed.")
    declared = {
        "format": 1,
        "team": f"{PLACEHOLDER}: the name that the board shows",
        "task": task,
        "split_sha256": split_sha256,
        "subset": subset,
        "framework": f"{PLACEHOLDER}: the framework and its version",
        "pretraining": {
            "images": f"{PLACEHOLDER}: the images that the start weights learned from, or none",
            "image_ids": [],
        },
        "preprocessing": f"{PLACEHOLDER}: what is done to an image before the network",
        "hardware": f"{PLACEHOLDER}: the machine of the training",
        "image_size": None,
        "seeds": [],
        "deterministic": None,
        "training_hours": None,
        "synthetic": synthetic,
    }
    wanted = {"classification": ["probability"], "segmentation": ["encoded_pixels"]}
    columns = wanted.get(task, ["probability", "encoded_pixels"])
    if "probability" in columns:
        declared["threshold"] = None
    tables = {PREDICTIONS_FILE: image_ids} | ({VALIDATION_FILE: validation_ids} if len(validation_ids) else {})
    with replacing_contents(real, OWN_NAMES) as new:
        write_bytes(new / INFO_FILE, (json.dumps(declared, indent=2) + "\n").encode())
        for name, ids in tables.items():
            rows = pd.DataFrame({"image_id": list(ids)}).assign(**dict.fromkeys(columns, PLACEHOLDER))
            write_table(new / name, rows)
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


def _read_info(path: Path, max_bytes: int, errors: list[Fault]) -> tuple[SubmissionInfo, list[str], Task | None]:
    """The declaration without its wrong fields, which go to ``errors``; notes on unknown fields; the task, if valid."""
    if not path.exists():
        sentence = (
            f"{path.parent} has no {path.name}. A submission folder needs this file with the fields team and task."
        )
        errors.append(Fault(sentence, path))
        return _UNDECLARED, [], None
    try:
        content = json.loads(read_text(path, max_bytes))
    except PneumoError as error:
        errors.append(Fault(str(error), path))
        return _UNDECLARED, [], None
    except (ValueError, RecursionError) as error:
        errors.append(Fault(f"{path} is not JSON ({one_line(str(error))}). Write one JSON object.", path))
        return _UNDECLARED, [], None
    if not isinstance(content, dict):
        errors.append(Fault(f"{path} must hold one JSON object with the fields team, task, ...", path))
        return _UNDECLARED, [], None
    notes = _unknown_fields(content)
    content, unfilled = _filled_in(content)
    if unfilled:
        sentence = (
            f"{path} still has the template's placeholder {PLACEHOLDER!r} in {listed(unfilled, 12)}. Write there what "
            "it asks for, or remove the field; only team must stay."
        )
        errors.append(Fault(sentence, path))
        content = {"team": "unnamed"} | content
    try:
        info = SubmissionInfo.model_validate(content)
        return info, notes, info.task
    except ValidationError as error:
        errors.append(Fault(f"{path} cannot be used: {_sentences(error)}. Write what is asked for.", path))
        wrong = {str(item["loc"][0]) for item in error.errors()}
        rest = {key: value for key, value in content.items() if key not in wrong}
        info = SubmissionInfo.model_validate({"team": "unnamed", "task": "joint"} | rest)
        return info, notes, info.task if "task" in rest else None


def _filled_in(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A declaration without the fields in which the template's placeholder was left, and the names of these fields."""
    unfilled: list[str] = []

    def kept(fields: dict[str, Any], before: str = "") -> dict[str, Any]:
        rest = {}
        for name, value in fields.items():
            if isinstance(value, str) and value.strip().startswith(PLACEHOLDER):
                unfilled.append(before + name)
            else:
                rest[name] = kept(value, f"{name}.") if isinstance(value, dict) and not before else value
        return rest

    return kept(content), unfilled


def _unknown_fields(content: dict[str, Any]) -> list[str]:
    """A note for the board if the declaration has fields that are not known; each with the known name it is like."""
    known = list(SubmissionInfo.model_fields)
    unknown = [key for key in content if key not in known]
    pretraining = content.get("pretraining")
    if isinstance(pretraining, dict):
        inner = list(Pretraining.model_fields)
        unknown += [f"pretraining.{key}" for key in pretraining if key not in inner]
        known += [f"pretraining.{key}" for key in inner]
    if not unknown:
        return []
    names = []
    for name in unknown:
        alike = difflib.get_close_matches(name, known, 1, 0.75)
        names.append(repr(one_line(name, 40)) + (f" (is {alike[0]!r} meant?)" if alike else ""))
    return [f"not known and not used in {INFO_FILE}: {listed(names)}"]


def _sentences(error: ValidationError) -> str:
    errors: list[dict[str, Any]] = [dict(item) for item in error.errors()]
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {one_line(str(item['msg']))}" for item in errors[:12])


def _need_columns(table: pd.DataFrame, task: Task | None, path: Path) -> None:
    """Refuse a table without the columns of its task; of an unknown task, without ``image_id``."""
    wanted = {
        None: [],
        "classification": ["probability"],
        "segmentation": ["encoded_pixels"],
        "joint": ["probability", "encoded_pixels"],
    }[task]
    missing = [column for column in ["image_id", *wanted] if column not in table.columns]
    if missing:
        needed = f"the task {task!r} needs" if task else "every submission needs"
        raise PneumoError(f"{path} has no column {' and no column '.join(missing)}, which {needed}. Add it.")


def _read_masks(path: Path, max_bytes: int, errors: list[Fault]) -> pd.DataFrame:
    """A bare Kaggle file: ``image_id``, ``encoded_pixels``, ``row``, a line per mask; wrong rows go to ``errors``."""
    rows, rejected = read_label_rows(path, max_bytes=max_bytes)
    if rejected:
        named = listed(f"row {item.row} ({one_line(item.reason, 100)})" for item in rejected)
        rows_wrong = tuple((item.row, "") for item in rejected)
        errors.append(
            Fault(
                f"{path}: {counted(len(rejected), 'row')} cannot be used: {named}. Complete or remove them.",
                path,
                rows_wrong,
            )
        )
    if rows.empty:
        raise PneumoError(f"{path} has no rows. Write one row for each image.")
    if any(size != CANONICAL for size in mask_sizes(rows) or []):
        raise PneumoError(
            f"{path} has columns of height and width that are not {CANONICAL[0]} and {CANONICAL[1]}; the masks of a "
            f"submission are {CANONICAL[0]}x{CANONICAL[1]}. Bring them to that grid and leave these columns out."
        )
    return rows[["image_id", "encoded_pixels", "row"]]


def _read_predictions(
    path: Path, task: Task | None, max_bytes: int, errors: list[Fault], names: dict[str, str] | None = None
) -> pd.DataFrame:
    """The table without its wrong rows, which are added to ``errors``: all of them, each kind in one sentence.

    Args:
        path: the table.
        task: which columns it needs.
        max_bytes: largest file read.
        errors: gets what is wrong.
        names: what its columns are called here, where they may be written otherwise.
    """
    if not path.exists():
        raise PneumoError(f"{path.parent} has no {path.name}. Put it there.")
    table = read_table(path, max_bytes).rename(columns=names or {})
    _need_columns(table, task, path)
    if table.empty:
        raise PneumoError(f"{path} has no rows. Write one row for each image.")
    columns = [name for name in ("image_id", "probability", "encoded_pixels", "row") if name in table.columns]
    table = table[columns].assign(image_id=table.image_id.map(image_id_of))
    blank = table.image_id == ""
    if blank.any():
        sentence = f"{path}, row {listed(table.row[blank])}: the image id is blank. Complete it."
        errors.append(Fault(sentence, path, rows_of(table[blank])))
        table = table[~blank]
    again = table.image_id.duplicated()
    if again.any():
        images = counted(int(again.sum()), "image")
        sentence = f"{path} gives {images} more than one row: {named_rows(table[again])}. Give one row per image."
        errors.append(Fault(sentence, path, rows_of(table[again])))
        table = table[~again]
    for column, stand_in in (("probability", "0"), ("encoded_pixels", rle.EMPTY)):
        if column in table.columns and (unfilled := table[column].str.strip() == PLACEHOLDER).any():
            sentence = (
                f"{path} still has the template's placeholder {PLACEHOLDER!r} in the column {column}, in "
                f"{counted(int(unfilled.sum()), 'row')}: {named_rows(table[unfilled])}. Write the predictions there."
            )
            errors.append(Fault(sentence, path, rows_of(table[unfilled])))
            table = table.assign(**{column: table[column].mask(unfilled, stand_in)})
    if "probability" in table.columns:
        table = table.assign(probability=_probabilities(table, path, errors))
    return table


def named_rows(rows: pd.DataFrame) -> str:
    """The first rows of a table as a message names them: ``row 4 ('a'), row 9 ('b') and 3 more``."""
    return listed(f"row {row} ({shown_id(image)!r})" for row, image in zip(rows.row, rows.image_id, strict=True))


def _probabilities(table: pd.DataFrame, path: Path, errors: list[Fault]) -> np.ndarray:
    """The probabilities; NaN for a wrong one, which is added to ``errors``."""
    values = pd.to_numeric(table.probability, errors="coerce").to_numpy(float, copy=True)
    wrong = ~(np.isfinite(values) & (values >= 0) & (values <= 1))
    # pandas 2 finds a neighbour of some numbers; Python's reading is exact, and takes whatever pandas takes.
    values[~wrong] = [float(cell) for cell in table.probability[~wrong]]
    if wrong.any():
        cells = zip(table.row[wrong], table.probability[wrong], strict=True)
        rows = listed(f"row {row} ({text[:20]!r})" for row, text in cells)
        outside = np.isfinite(values[wrong]).all()
        hint = (
            "If they are logits, apply a sigmoid first."
            if outside
            else "Give every image a number with a decimal point."
        )
        count = int(wrong.sum())
        are = "probability is not a number" if count == 1 else "probabilities are not numbers"
        errors.append(Fault(f"{path}: {count:,} {are} from 0 to 1: {rows}. {hint}", path, rows_of(table[wrong])))
    return np.where(wrong, np.nan, values)


def _own(path: Path) -> bool:
    return is_leftover(path.name) or (path.is_file() and path.name in OWN_NAMES)
