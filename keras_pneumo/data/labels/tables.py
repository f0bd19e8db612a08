"""Reads the label table of any data set that :mod:`.known` declares into one label per image.

In comes a csv file, plain or gzipped, and what the user decided about uncertain and blank labels; out come
:class:`~.cases.Labels`, as the reader of SIIM's masks gives them: a label for each image, the rows that cannot be used,
and the images that are left out by decision. Boxes stay boxes. What a table does not say is asked, not guessed.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import Box, Facts, Label, Labels, Rejected, read_label_rows, read_labels
from keras_pneumo.data.labels.known import GENERIC, KNOWN, MASKS, SIIM, DataSet, LabelOptions, recognise
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.collection import without_collection
from keras_pneumo.storage.tables import (
    Columns,
    column_name,
    counted,
    image_id_of,
    listed,
    one_line,
    read_columns,
    read_rows,
    shown_id,
)

YES = frozenset({"1", "1.0", "yes", "y", "true", "t", "positive", "pos", "pneumothorax"})
NO = frozenset({"0", "0.0", "no", "n", "false", "f", "negative", "neg", "normal", "no finding", "no pneumothorax"})
UNCERTAIN = frozenset({"uncertain", "unsure", "unclear", "equivocal", "possible", "maybe"})
BLANK = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>"})
"""Words of a label, in lower case."""

FINDING = "pneumothorax"
"""The finding, as tables name it."""

_FINDINGS = frozenset({FINDING, "hydropneumothorax"})
"""Findings with air in the pleural space; a hydropneumothorax has fluid there as well."""

_FRONTAL = {"pa": "PA", "posteroanterior": "PA", "ap": "AP", "anteroposterior": "AP", "aphorizontal": "AP"}
_FRONTAL |= {"frontal": "", "": "", "unk": "", "unknown": "", "nan": ""}
"""Views that are frontal, or not known, and what they are called here; every other view is left out."""


class LabelQuestionError(PneumoError):
    """A table leaves open what the user has to say; the message names the option that says it."""


def is_label_table(path: Path, options: LabelOptions) -> bool:
    """Whether a csv file is one by its first line; a file that cannot be read is none."""
    try:
        return data_set_of(path, options) is not None
    except PneumoError:
        return False


def data_set_of(path: Path, options: LabelOptions) -> DataSet | None:
    """Which data set's table a csv file is, by its first line; None where none fits.

    Raises:
        PneumoError: the file cannot be read, or lacks a column that ``options`` name.
    """
    lines = first_lines(path, 1)
    header = next(iter(csv.reader(lines)), []) if lines else []
    return recognise(header, options)


def first_lines(path: Path, count: int = 3) -> list[str]:
    """The first lines of a text file, cut where they are long.

    Raises:
        PneumoError: it cannot be read.
    """
    opened = gzip.open if path.name.lower().endswith(".gz") else Path.open
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline=None) as stream:
            return [stream.readline(4096).rstrip("\n") for _ in range(count)]
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PneumoError(f"{path} cannot be read: {reason}. Check the path, or get the file again.") from error


# The collector would look again and again at hundreds of thousands of labels, none in a cycle. Without it, CheXpert's
# 223,414 rows take a third of the time.
@without_collection()
def read_table_labels(path: Path, options: LabelOptions) -> Labels:
    """Read a label table of any known form.

    Raises:
        PneumoError: it is none; the message quotes its first lines, and says what was expected.
        LabelQuestionError: labels are blank, and neither the data set nor the user says what that means.
    """
    data_set = data_set_of(path, options)
    if data_set is None:
        if _may_be_siim(path):  # without a header; or with semicolons, which its reader explains
            return _read_masks(path, SIIM, options)
        raise PneumoError(unknown_table(path))
    return _read_masks(path, data_set, options) if data_set.kind == "masks" else _Reader(path, data_set, options).read()


def unknown_table(path: Path) -> str:
    """The message for a csv file that is no label table that is known: its first lines, and what was expected."""
    lines = "".join(f"\n  {one_line(line, 100)}" for line in first_lines(path) if line.strip())
    start = f"It begins:{lines}\n" if lines else "It is empty. "
    names = listed((entry.name for entry in KNOWN), 20)
    return (
        f"{path} is no label table that is known. {start}Expected is a header with an image column (image, image_id, "
        f"filename) and a column pneumothorax, label or EncodedPixels, or the columns of {names}. Name the columns "
        "with --image-column and --label-column; docs/your-data.md shows each form."
    )


def _may_be_siim(path: Path) -> bool:
    lines = first_lines(path, 1)
    cells = next(iter(csv.reader(lines)), []) if lines else []
    return (len(cells) == 2 and (rle.is_empty(cells[1]) or cells[1].strip()[:1].isdigit())) or (
        len(cells) == 1 and ";" in cells[0]
    )


def _read_masks(path: Path, data_set: DataSet, options: LabelOptions) -> Labels:
    """A table of masks; a blank cell is what its data set, or the user, says."""
    labels = replace(read_labels(path, mask_size=options.mask_size), data_set=data_set.name)
    if options.mask_size is not None:
        labels.record["mask_size"] = "x".join(map(str, options.mask_size))
    elif any(label.mask_shapes for label in labels.images.values()):
        labels.record["mask_size"] = "by the columns of height and width"
    labels = replace(labels, images=_with_facts(labels))
    if data_set.blank is not None and options.blank is None:
        return labels
    rows, _ = read_label_rows(path)
    blank = rows.loc[rows["encoded_pixels"] == "", ["image_id", "row"]]
    meaning = options.blank or data_set.blank
    if not len(blank):
        return labels
    if meaning is None:
        raise LabelQuestionError(_question(path, int(blank["row"].iloc[0]), len(blank), data_set))
    record = labels.record | {"blank": meaning, "blank_rows": len(blank)}
    if meaning == "negative":
        return replace(labels, record=record)
    rows_of = zip(blank["image_id"], blank["row"], strict=True)
    left_out = {name: f"its mask is blank (row {row})" for name, row in rows_of}
    images = {name: label for name, label in labels.images.items() if name not in left_out}
    return replace(labels, images=images, left_out=left_out, record=record)


def _with_facts(labels: Labels) -> dict[str, Label]:
    """The images of a table of masks with what its further columns say, by the names of any table's."""
    names = {column_name(str(name)): str(name) for name in labels.rows.columns}
    wanted = {
        column_name(name): name for name in (GENERIC.patient, GENERIC.sex, GENERIC.age, GENERIC.view, GENERIC.source)
    }
    present = {wanted[name]: labels.rows[names[name]].tolist() for name in wanted if name in names}
    if not present:
        return labels.images
    first: dict[str, int] = {}
    for index, image_id in enumerate(labels.rows["image_id"].tolist()):
        first.setdefault(image_id, index)
    rows = [first[name] for name in labels.images]
    columns = _Facts(
        GENERIC, list(labels.images), lambda name: [present[name][row] if name in present else "" for row in rows]
    )
    return {
        name: replace(label, facts=columns.facts(index)) for index, (name, label) in enumerate(labels.images.items())
    }


def _question(path: Path, row: int, count: int, data_set: DataSet) -> str:
    cell = f"{data_set.label!r} is blank in {counted(count, 'row')} (first: row {row})"
    known = "" if data_set in (GENERIC, MASKS) or data_set.name == GENERIC.name else f" of {data_set.name}"
    return (
        f"{path}: the label {cell}, and the table{known} does not say whether that means no pneumothorax. Say it with "
        "--blank negative, or leave these images out with --blank ignore (keras-pneumo prepare, kp.prepare)."
    )


# -- Tables of labels --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    """What the rows of one image say."""

    facts: Facts
    view: str
    """Why the view is not frontal; blank when it may be."""
    states: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    boxes: list[Box] | tuple[()] = ()
    readers: dict[str, bool] | None = None

    def add_box(self, box: Box) -> None:
        """Add a box."""
        self.boxes = [*self.boxes, box]


class _Reader:
    """Reads one table; :meth:`read` is its only use."""

    def __init__(self, path: Path, data_set: DataSet, options: LabelOptions) -> None:
        self.path, self.data_set, self.options = path, data_set, options
        self.rejected: list[Rejected] = []
        self.blank: list[int] = []
        self.counts: Counter[str] = Counter()

    def read(self) -> Labels:
        """The labels of the table, and of the tables beside it that belong to it."""
        others: list[Path] = []
        wanted = self.data_set.all_columns
        table = read_columns(self.path, wanted)
        if self.data_set.images_beside:
            beside = self._beside(self.data_set.images_beside, required=True)
            others += beside
            table = _joined(table, read_columns(beside[0], wanted), self.data_set, wanted)
        numbers, column = table.numbers, table.column
        found = self._found(numbers, column)
        boxes = self._beside(self.data_set.boxes_beside)
        others += boxes
        for path in boxes:
            _add_boxes(path, found)
        parts = self._parts(found)
        images: dict[str, Label] = {}
        left_out: dict[str, str] = {}
        nothing = rle.unite([])
        for name, item in found.items():
            image_id = "-".join(name.split("/")[-parts:])
            answer = self._answer(item)
            if answer is None:
                listed_rows = listed(item.rows)
                reason = f"image {shown_id(image_id)}: its rows contradict each other (rows {listed_rows})"
                self.rejected += [Rejected(self.path.name, row, reason, image_id) for row in item.rows]
            elif isinstance(answer, str):
                left_out[image_id] = answer
            else:
                self.counts["positive" if answer else "negative"] += 1
                boxes_of = tuple(item.boxes) if answer else ()
                images[image_id] = Label(nothing, tuple(item.rows), answer, boxes_of, item.facts)
        meaning = self.options.blank or self.data_set.blank
        if self.blank and meaning is None:
            raise LabelQuestionError(_question(self.path, self.blank[0], len(self.blank), self.data_set))
        import pandas as pd

        return Labels(
            path=self.path,
            rows=pd.DataFrame(),
            images=images,
            rejected=sorted(self.rejected, key=lambda item: item.row or 0),
            data_set=self.data_set.name,
            has_masks=False,
            left_out=left_out,
            parts=parts,
            record=self._record(meaning),
            other_files=tuple(others),
        )

    def _record(self, meaning: str | None) -> dict[str, object]:
        """Which options counted, and what each met."""
        record: dict[str, object] = {name: self.counts[name] for name in ("positive", "negative")}
        if self.counts["uncertain"]:
            record |= {"uncertain": self.options.uncertain, "uncertain_images": self.counts["uncertain"]}
        if self.blank:
            record |= {"blank": meaning, "blank_rows": len(self.blank)}
        if self.data_set.reader:
            record |= {"readers": self.options.readers}
        if self.counts["not frontal"]:
            record |= {"not_frontal": self.counts["not frontal"]}
        if self.data_set.name == GENERIC.name:
            record |= {"image_column": self.data_set.image, "label_column": self.data_set.label}
        return record

    def _found(self, numbers: Sequence[int], column: Column) -> dict[str, _Found]:
        """What the rows say, by image: a column at a time, and each different text of a column once."""
        wanted = self.data_set
        names = [image_id_of(cell.replace("\\", "/")) for cell in column(wanted.image)]
        labels = column(wanted.label)
        states = {text: self._state(text) for text in set(labels)}
        facts = _Facts(wanted, names, column)
        readers = column(wanted.reader) if wanted.reader else None
        corners = list(zip(*map(column, wanted.box), strict=True)) if wanted.box else None
        found: dict[str, _Found] = {}
        for index, (number, name, text) in enumerate(zip(numbers, names, labels, strict=True)):
            if not name:
                self.rejected.append(Rejected(self.path.name, number, "the image id is blank"))
                continue
            state = states[text]
            if state is None:
                image_id = "-".join(name.split("/")[-wanted.parts :])
                reason = f"image {shown_id(image_id)}: {wanted.label} is {text[:20]!r}, neither yes (1) nor no (0)"
                self.rejected.append(Rejected(self.path.name, number, reason, image_id))
                continue
            item = found.get(name)
            if item is None:
                item = found[name] = _Found(facts.facts(index), facts.other_views[index])
            item.rows.append(number)
            if state == "blank":
                self.blank.append(number)
            if readers is None:
                item.states.append(state)
                continue
            item.readers = item.readers or {}
            item.readers[readers[index]] = item.readers.get(readers[index], False) or state == "positive"
            if corners is not None and state == "positive" and (box := _corners(corners[index])):
                item.add_box(box)
        return found

    def _state(self, text: str) -> str | None:
        """``positive``, ``negative``, ``uncertain`` or ``blank``; None for what is none of them."""
        wanted = self.data_set
        word = text.casefold()
        if wanted.kind == "findings":
            findings = {part.strip(" []'\"") for part in word.split(wanted.separator)} - BLANK
            if not findings:
                return "blank"
            if findings & _FINDINGS:
                return "positive"
            return "uncertain" if findings & set(wanted.unlabelled) else "negative"
        for words, state in ((YES, "positive"), (NO, "negative"), (UNCERTAIN, "uncertain"), (BLANK, "blank")):
            if word in words:
                return state
        return "uncertain" if wanted.minus_one_is_uncertain and word in ("-1", "-1.0") else None

    def _answer(self, item: _Found) -> bool | str | None:
        """Whether an image is positive; a text: why it is left out; None: its rows contradict each other."""
        if item.view and not self.options.any_view:
            self.counts["not frontal"] += 1
            return (
                f"{self.path.name} says that its view is {one_line(item.view, 30)}, not frontal (--any-view lets it in)"
            )
        if item.readers:
            return sum(item.readers.values()) >= self.options.readers
        states = set(item.states)
        if len(states) > 1:
            return None
        state = states.pop()
        decided = self.options.uncertain if state == "uncertain" else state
        if state == "uncertain":
            self.counts["uncertain"] += 1
        if state == "blank":
            decided = self.options.blank or self.data_set.blank or "ignore"
        if decided == "ignore":
            word = "uncertain" if state == "uncertain" else "blank"
            return f"its label in {self.path.name} is {word} (row {item.rows[0]})"
        return decided == "positive"

    def _parts(self, found: Iterable[str]) -> int:
        """How many parts of the paths make the image ids: as declared, or as many as it takes to be unique."""
        if self.data_set.parts > 1:
            return self.data_set.parts
        names = list(found)
        last = {name.rpartition("/")[2] for name in names}
        return 1 if len(last) == len(names) else max(name.count("/") for name in names) + 1

    def _beside(self, pattern: str, required: bool = False) -> list[Path]:
        """The table beside this one whose name fits ``pattern``; an empty list where none is needed."""
        fitting = sorted(self.path.parent.glob(pattern)) if pattern else []
        if not fitting and required:
            raise PneumoError(
                f"{self.path} labels studies, not images: the table that names the images of each ({pattern}) must lie "
                "beside it. Put it there."
            )
        return fitting[:1]


Column = Callable[[str], list[str]]
"""From a column's name to its cells, blank where there are none."""


class _Facts:
    """What the rows of a table say beside the label, by columns: each different text is understood once."""

    def __init__(self, wanted: DataSet, names: Sequence[str], column: Column) -> None:
        """Read the columns.

        Args:
            wanted: which columns say what.
            names: of the images, a row each.
            column: the cells of a column.
        """
        blank = [""] * len(names)

        def cells(name: str) -> list[str]:
            return column(name) if name else blank

        self.patients = cells(wanted.patient)
        if wanted.patient_pattern:
            pattern = re.compile(wanted.patient_pattern)
            matches = map(pattern.search, names)
            self.patients = [match[1] if match else own for match, own in zip(matches, self.patients, strict=True)]
        views, laterals = cells(wanted.view), cells(wanted.lateral)
        self.other_views = [
            next((text for text in pair if _view(text) not in _FRONTAL), "") if pair != ("", "") else ""
            for pair in zip(laterals, views, strict=True)
        ]
        """The view of each row where it is not frontal; else blank."""
        self.views = [_FRONTAL.get(_view(text), "") if text else "" for text in views]
        if wanted.birth:
            dates = zip(cells(wanted.study_date), cells(wanted.birth), strict=True)
            self.ages = [_age_at(date[:4], birth) for date, birth in dates]
        else:
            self.ages = list(map(_years, cells(wanted.age)))
        self.sexes = [_sex(text) for text in cells(wanted.sex)]
        self.sources = [one_line(text, 60) if text else "" for text in cells(wanted.source)]

    def facts(self, row: int) -> Facts:
        """Of one row."""
        return Facts(self.patients[row], self.sexes[row], self.ages[row], self.views[row], self.sources[row])


def _joined(studies: Columns, images: Columns, data_set: DataSet, names: Iterable[str]) -> Columns:
    """A row for each image of ``images``, with the columns of its study; images of no study are left out.

    A cell is the image's own, else its study's; the line number is the study's.
    """
    row_of = {study: row for row, study in enumerate(studies.column(data_set.study))}
    pairs = [(own, row_of[study]) for own, study in enumerate(images.column(data_set.study)) if study in row_of]
    cells = {}
    for name in names:
        own, theirs = images.column(name), studies.column(name)
        cells[column_name(name)] = [own[row] or theirs[study] for row, study in pairs]
    return Columns([studies.numbers[study] for _, study in pairs], cells)


def _add_boxes(path: Path, found: dict[str, _Found]) -> None:
    """NIH's boxes: ``Image Index, Finding Label, Bbox [x, y, w, h]``, the last as four columns of a broken header.

    Raises:
        PneumoError: a box of a pneumothorax is none.
    """
    for number, cells in islice(read_rows(path), 1, None):
        if len(cells) < 6 or cells[1].casefold() != FINDING:
            continue
        try:
            box = Box(*map(float, cells[2:6]))
        except ValueError:
            raise PneumoError(
                f"{path}, row {number}: {listed(cells[2:6])} is no box of x, y, width, height. Mend the row."
            ) from None
        if (item := found.get(image_id_of(cells[0]))) is not None:
            item.add_box(box)


def _corners(cells: Sequence[str]) -> Box | None:
    """A box from left, top, right and bottom; None where these are no numbers."""
    try:
        left, top, right, bottom = map(float, cells)
    except ValueError:
        return None
    return Box(left, top, right - left, bottom - top)


@lru_cache(4096)  # of a hundred thousand rows, most say the same
def _view(text: str) -> str:
    """A view in the form in which views are compared."""
    return column_name(text)


@lru_cache(64)
def _sex(text: str) -> str:
    """``M``, ``F`` or blank."""
    return text[:1].upper() if text[:1].upper() in ("M", "F") else ""


def _age_at(study_year: str, birth_year: str) -> float | None:
    """Years between two years; None where one is none, or they are no age of a person."""
    study, birth = _years(study_year), _years(birth_year)
    return study - birth if study is not None and birth is not None and 0 <= study - birth < 120 else None


@lru_cache(4096)
def _years(text: str) -> float | None:
    """An age (``58``, ``058Y``, ``58.0``) or a year as a number; None where it is none."""
    match = re.fullmatch(r"0*(\d{1,4})(?:\.\d*)?Y?", text.strip())
    return float(match.group(1)) if match else None
