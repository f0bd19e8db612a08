"""Brings a submission into the order of the truth's images, or refuses it and names the images that differ.

In: a :class:`Submission` and a :class:`Truth`. Out: an :class:`AlignedSubmission`, arrays in the truth's order. Nothing
is left out, filled in or repaired unless the user allowed it, and the board shows in a note what was allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.submission import Fault, Submission, SubmissionInfo, named_rows, rows_of
from keras_pneumo.evaluation.inputs.truth import Truth
from keras_pneumo.storage.tables import counted, listed, named_images, shown_id

_ENOUGH_MASKS = 10
"""If at least this number of masks all end before pixel 512 x 512, they were drawn on another grid."""


@dataclass(frozen=True)
class AlignedSubmission:
    """One team's probabilities and masks of the scored images, in the truth's order."""

    info: SubmissionInfo
    probability: np.ndarray | None
    """Probability of pneumothorax, float64 in 0..1, shape (images,), or None."""
    runs: list[rle.Runs] | None
    """Mask of each image as COCO runs, or None."""
    validation: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)


def align_submission(
    submission: Submission,
    truth: Truth,
    allow_missing: bool = False,
    allow_extra: bool = False,
    clip_runs: bool = False,
) -> AlignedSubmission:
    """Bring a submission's predictions into the truth's order, and check that they fit.

    Args:
        submission: from :func:`.submission.read_submission`.
        truth: the scored subset.
        allow_missing: an image without a row counts as "no pneumothorax" (probability 0, empty mask). It is
            not left out of the score, since a team could then raise its score by leaving out hard images.
        allow_extra: rows of other images, and exactly repeated rows, are left out.
        clip_runs: runs that end past the last pixel are cut there, as in files that write ``1 1048576`` for the whole
            image. Every other error in a mask is still refused.

    Returns:
        Arrays in the truth's order, and notes for the board on everything that was allowed.

    Raises:
        PneumoError: another split or subset; duplicate, missing or unknown ids; a wrong mask. The message has a line
            for each kind of error, which counts the ids or rows and names the first ones.
    """
    aligned, errors = examine_alignment(submission, truth, allow_missing, allow_extra, clip_runs)
    if errors:
        raise PneumoError("\n".join(map(str, errors)))
    return aligned


def examine_alignment(
    submission: Submission,
    truth: Truth,
    allow_missing: bool = False,
    allow_extra: bool = False,
    clip_runs: bool = False,
) -> tuple[AlignedSubmission, list[Fault]]:
    """Align a submission as :func:`align_submission` does, but go on after an error and return all of them.

    Of a submission whose table could not be read, which is among its own errors, only the declaration is examined.

    Returns:
        The submission without what is wrong in it, and the errors; only without errors is it fit to be scored.
    """
    errors: list[Fault] = []
    info, file = submission.info, submission.predictions_file
    notes = [*submission.notes, *_check_split(submission, truth, errors)]
    rows = submission.predictions
    if rows.empty:
        return AlignedSubmission(info, None, None, None, notes), errors
    scored = set(truth.cases.image_id)
    extra = ~rows.image_id.isin(scored)
    if extra.any():
        if not allow_extra:
            count = int(extra.sum())
            sentence = (
                f"{file} has {counted(count, 'row')} of {'an image that is' if count == 1 else 'images that are'} not "
                f"in {truth.subset_name}: {named_rows(rows[extra])}. "
                "Remove them, or allow them with --allow-extra; the board will say so."
            )
            errors.append(Fault(sentence, file, rows_of(rows[extra])))
        notes.append(f"{counted(int(extra.sum()), 'row')} of other images set aside (--allow-extra)")
        rows = rows[~extra]
    rows = _without_repeats(rows, submission, allow_extra, notes, errors)
    answered = set(rows.image_id)
    missing = [image_id for image_id in truth.cases.image_id if image_id not in answered]
    if missing:
        if not allow_missing:
            sentence = (
                f"{file} has no row for {len(missing):,} of {counted(len(scored), 'image')} of {truth.subset_name}: "
                f"{named_images(missing)}. Add them, or allow it with --allow-missing: each then counts as "
                "answered 'no pneumothorax', and the board will say so."
            )
            errors.append(Fault(sentence, file, tuple((None, image_id) for image_id in missing)))
        notes.append(f"{counted(len(missing), 'missing image')} counted as 'no pneumothorax' (--allow-missing)")
    probability = None
    if "probability" in rows.columns:
        by_id = rows.set_index("image_id").probability
        probability = truth.cases.image_id.map(by_id).fillna(0.0).to_numpy(float)
    runs = None
    if "encoded_pixels" in rows.columns:
        runs = _runs(rows, submission, truth, clip_runs, notes, errors)
    return AlignedSubmission(info, probability, runs, submission.validation, notes), errors


def _check_split(submission: Submission, truth: Truth, errors: list[Fault]) -> list[str]:
    """Notes on the declared split; another split or subset is added to ``errors``."""
    info = submission.info
    if submission.bare:
        return [] if truth.split_sha256 is None else ["a bare file: its split is not declared"]
    declared = not submission.errors or "subset" in info.model_fields_set  # a wrong declaration may lack what it says
    if declared and info.subset != truth.subset and truth.subset != "all":
        sentence = (
            f"{submission.path} holds predictions for the subset {info.subset!r}, but {truth.subset!r} is scored. "
            "Give the predictions of that subset, or name the other with --subset."
        )
        errors.append(Fault(sentence, submission.path))
    if truth.split_sha256 is None:
        return []
    if info.split_sha256 is None:
        return ["its split is not declared"]
    if info.split_sha256 != truth.split_sha256:
        sentence = (
            f"{submission.path} was made on the split {info.split_sha256[:12]!r}, but the truth has the split "
            f"{truth.split_sha256[:12]!r}. The team may have trained on images that are tested here. "
            "Train and predict again with this split."
        )
        errors.append(Fault(sentence, submission.path))
    return []


def _without_repeats(
    rows: pd.DataFrame, submission: Submission, allow_extra: bool, notes: list[str], errors: list[Fault]
) -> pd.DataFrame:
    """Refuse or leave out repeated rows of one image; several different masks of one image stay (they are united)."""
    several = rows[rows.image_id.duplicated(keep=False)]
    if several.empty:
        return rows
    file = submission.predictions_file
    empty = several.encoded_pixels.map(rle.is_empty)
    both = several.assign(empty=empty).groupby("image_id").empty.nunique() > 1
    if both.any():
        first = several[several.image_id == both.index[both][0]]
        sentence = (
            f"{file} says of {counted(int(both.sum()), 'image')} both that there is no mask and what the mask is, "
            f"first of {shown_id(first.image_id.iloc[0])!r} (rows {listed(first.row)}). Leave only one of the two."
        )
        errors.append(Fault(sentence, file, rows_of(several[several.image_id.isin(both.index[both])])))
    text = several.encoded_pixels.where(~empty, rle.EMPTY)
    again = pd.DataFrame({"image_id": several.image_id, "text": text}).duplicated()
    if not again.any():
        return rows
    repeated = several[again]
    if not allow_extra:
        sentence = (
            f"{file} repeats {counted(len(repeated), 'row')} exactly: {named_rows(repeated)}. "
            "Remove them, or allow them with --allow-extra; the board will say so."
        )
        errors.append(Fault(sentence, file, rows_of(repeated)))
    notes.append(f"{counted(len(repeated), 'repeated row')} set aside (--allow-extra)")
    return rows.drop(index=repeated.index)


def _runs(
    rows: pd.DataFrame, submission: Submission, truth: Truth, clip_runs: bool, notes: list[str], all_errors: list[Fault]
) -> list[rle.Runs]:
    """The united mask of each scored image; wrong masks are left out and added to ``all_errors``."""
    pixels = rle.MASK_SIZE * rle.MASK_SIZE
    by_image: dict[str, list[rle.Runs]] = {}
    errors: list[str] = []
    wrong: list[tuple[int | None, str]] = []
    clipped, absolute, masks, furthest = 0, 0, 0, 0
    # Lists, since pandas hands out text cells one by one ten times slower.
    cells = zip(rows.image_id.tolist(), rows.encoded_pixels.tolist(), rows.row.tolist(), strict=True)
    for image_id, text, row in cells:
        if rle.is_empty(text):
            continue
        try:
            try:
                counts = rle.counts_of(text)
            except rle.RleError:
                absolute += _absolute_starts(text, pixels)
                if not clip_runs:
                    raise
                counts = _clipped(text, pixels)
                clipped += 1
        except rle.RleError as error:
            errors.append(f"row {row} ({shown_id(image_id)}): {error}")
            wrong.append((row, image_id))
            continue
        masks += 1
        furthest = max(furthest, pixels - counts[-1])
        by_image.setdefault(image_id, []).append(rle.runs_of_counts(counts))
    file = submission.predictions_file
    past = sum("ends at pixel" in message for message in errors) + clipped
    if absolute and absolute == past:  # a file in which only some masks do has another error
        sentence = (
            f"{file}: {counted(past, 'mask')} would end past the last pixel, but would fit if the first number of each "
            "pair were the position of the run in the image. They look like absolute starts, but the first number must "
            f"be the gap from the end of the run before. {errors[0] + '. ' if errors else ''}Write gaps."
        )
        all_errors.append(Fault(sentence, file, tuple(wrong)))
    elif errors:
        hint = " Runs past the last pixel can be cut there with --clip-runs; the board will say so." if past else ""
        sentence = (
            f"{file}: {counted(len(errors), 'mask')} {'is' if len(errors) == 1 else 'are'} wrong. "
            + ". ".join(errors[:5])
            + (f" (and {len(errors) - 5:,} more)" if len(errors) > 5 else "")
            + f".{hint}"
        )
        all_errors.append(Fault(sentence, file, tuple(wrong)))
    elif masks >= _ENOUGH_MASKS and furthest <= pixels // 4 < _furthest(truth):
        sentence = (
            f"{file}: all {masks:,} masks end before pixel {pixels // 4:,}, as masks drawn at 512x512 do. "
            f"EncodedPixels refer to {rle.MASK_SIZE}x{rle.MASK_SIZE} pixels. Bring the masks to that grid "
            "before encoding them."
        )
        all_errors.append(Fault(sentence, file))
    if clipped:
        notes.append(f"{counted(clipped, 'mask')} cut at the last pixel (--clip-runs)")
    empty = rle.runs_of(rle.EMPTY)
    return [
        rle.unite_runs(by_image[image_id]) if image_id in by_image else empty
        for image_id in truth.cases.image_id.tolist()
    ]


def _furthest(truth: Truth) -> int:
    """The last pixel of any true mask, counted from 1; 0 when there is none."""
    counts = [rle.counts_of_runs(runs) for runs in truth.runs or []]
    return max((sum(mask) - (mask[-1] if len(mask) % 2 else 0) for mask in counts), default=0)


def _absolute_starts(text: str, pixels: int) -> bool:
    """Whether a text that is no mask is one if its gaps are read as positions: several runs in order, in the image.

    This is hardly ever true of a mask written with gaps, since gaps do not grow from run to run.
    """
    words = text.split()
    if len(words) < 4 or len(words) % 2 or not all(word.isdecimal() and len(word) <= 7 for word in words):
        return False
    starts, lengths = np.array(words[0::2], int), np.array(words[1::2], int)
    ends = starts + lengths
    return bool((starts[1:] >= ends[:-1]).all() and ends[-1] <= pixels + 1)  # positions may count from 0 or from 1


def _clipped(text: str, pixels: int) -> list[int]:
    """Counts of a mask whose runs reach past the last pixel, cut there; every other error is still raised."""
    counts = rle.counts_of(text, 10**12)  # any number of pixels that no sane run passes
    kept: list[int] = []
    left = pixels
    for count in counts[:-1]:
        kept.append(min(count, left))
        left -= kept[-1]
    return rle.counts_of(rle.text_of([*kept, left]), pixels)
