"""A radiograph in memory, and the limits on files before they are decoded.

The readers (dicom.py, raster.py) turn a file into a :class:`Radiograph` or raise :class:`UnreadableImage` with the
reason; no other code needs to know the file's format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import one_line

MAX_FILE_BYTES = 256 * 2**20
"""Largest file that is opened: 16 times an uncompressed 16-bit radiograph of 8 megapixels."""

MAX_PIXELS = 64 * 2**20
"""Largest image that is decoded, in pixels: four times the largest flat-panel detectors (about 16 megapixels)."""

BLOCK = 2**18
"""Pixels that grey values are computed for at a time."""


MAX_ID = 180
"""Characters of an image id that are shown; SOPInstanceUIDs have up to 64, and a hostile file has megabytes."""


class UnreadableImage(PneumoError):  # noqa: N818 - it names what the file is, and is always shown as a reason
    """A file that is not one usable grey radiograph; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Radiograph:
    """A decoded radiograph: white is dense, whatever the file's own convention."""

    pixels: np.ndarray
    """uint8, shape (height, width)."""
    image_id: str
    """SOPInstanceUID of a DICOM file; otherwise the file name without its ending."""
    sex: str = ""
    """``M``, ``F`` or blank."""
    age: float | None = None
    """Years."""
    view: str = ""
    """``PA``, ``AP`` or blank."""
    pixel_spacing_mm: float | None = None
    """Side of a pixel in millimetres, where pixels are square."""
    patient_id_tag: str = field(default="", repr=False)
    """PatientID as the file has it. It may identify a person: it is never printed, logged or written."""
    study_uid_tag: str = field(default="", repr=False)
    """StudyInstanceUID as the file has it; outside of DICOM objects a pseudonym stands for it."""
    other_view: str = ""
    """Why the header says that this is no frontal radiograph of the chest, as a part of a sentence; blank when not."""
    turned: str = ""
    """A sentence when the header says that the image is turned or mirrored; the pixels are as stored."""
    photometric: str = "MONOCHROME2"
    """How the file stored grey: MONOCHROME1 files come out of the reader already inverted."""
    grey_note: str = ""
    """A sentence when the file's own rule for grey values was not followed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what a person should know of the file, and of what it lacks."""
        height, width = self.pixels.shape
        notes = []
        if self.photometric == "MONOCHROME1":
            notes.append("The file stores dense as black (MONOCHROME1); the pixels were inverted.")
        if self.grey_note:
            notes.append(self.grey_note)
        if self.other_view:
            notes.append(f"This may be no frontal radiograph of the chest: {self.other_view}.")
        if self.pixel_spacing_mm is None:
            notes.append("The file does not say how large a pixel is, so no area in square millimetres can be given.")
        if self.turned:
            notes.append(self.turned)
        if height != width:
            notes.append(f"The image is not square: it has {height} rows and {width} columns. Networks see it padded.")
        return tuple(notes)


def check_size(height: int, width: int) -> None:
    """Refuse an image from the size that its header gives, before anything is allocated for it.

    Raises:
        UnreadableImage: no pixels, or more than :data:`MAX_PIXELS`.
    """
    if height < 1 or width < 1:
        raise UnreadableImage(f"its header gives {height} rows and {width} columns, so it holds no image")
    if height * width > MAX_PIXELS:
        raise UnreadableImage(
            f"its header gives {height} rows and {width} columns, more than the {MAX_PIXELS} pixels that are decoded"
        )


def stretch(values: np.ndarray) -> np.ndarray:
    """Grey values of any range to uint8: the smallest becomes 0 and the largest 255, shape kept; a flat image is 0.

    This is the rule for deep images that come without a window. Files often state more bits than they use, so scaling
    by the stated depth can leave an image nearly black.
    """
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return by_rows(
        lambda some: np.rint((some.astype(np.float64) - low) * (255.0 / (high - low))).astype(np.uint8), values
    )


def by_rows(grey: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """``grey``, which maps each pixel (H, W) by itself to 0 to 255, a few rows at a time, as uint8.

    Its intermediate arrays are of 8 bytes a pixel: of a whole large radiograph they would take a gigabyte.
    """
    image = np.empty(values.shape, np.uint8)
    rows = max(1, BLOCK // values.shape[1])
    for top in range(0, len(values), rows):
        image[top : top + rows] = grey(values[top : top + rows])
    return image


# -- What values of a DICOM header mean, for every reader --------------------------------------------------------------


def shown_image_id(text: str, stem: str) -> str:
    """A header's image id as tables, pages and names of files can hold it, the file's stem where it has none."""
    return one_line(text, MAX_ID) or stem


def one_of(text: str, allowed: tuple[str, ...]) -> str:
    """``text`` in capitals when that is an allowed value, else blank."""
    return text.upper() if text.upper() in allowed else ""


def years_of(text: str) -> float | None:
    """Years from ``062Y``, ``018M``, ``010W``, ``005D`` (PS3.5, VR AS) or SIIM's plain ``62``; None beyond 0 to 120."""
    match = re.fullmatch(r"([0-9]{1,3})([DWMY]?)", text.upper())
    if not match:
        return None
    years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0}.get(match[2], 1.0)
    return round(years, 2) if years <= 120 else None


def turned_note(orientation: Sequence[str], rotation: str, flip: str) -> str:
    """A sentence when a header says that a frontal radiograph is turned or mirrored, else blank.

    Args:
        orientation: PatientOrientation (PS3.3 C.7.6.1.1.1): the patient's direction along the rows and down the
            columns, ``L`` and ``F`` as a frontal radiograph is shown.
        rotation: FieldOfViewRotation, degrees by which the image was turned against the detector (PS3.3 C.8.11.3).
        flip: FieldOfViewHorizontalFlip, ``YES`` or ``NO``.
    """
    across, down = (text.strip().upper() for text in orientation) if len(orientation) == 2 else ("", "")
    if across and down and set(across + down) <= set("LRAPHF"):
        if (across[0], down[0]) == ("L", "F"):
            return ""
        known = f"PatientOrientation {across[:4]}, {down[:4]}"
        if (across[0], down[0]) == ("R", "F"):
            return f"The header says that the image is mirrored ({known}); the pixels are used as stored."
        return (
            f"The header says that the image is turned or seen from the side ({known}); the pixels are used as stored."
        )
    parts = [f"turned by {rotation} degrees"] * (rotation in ("90", "180", "270")) + ["mirrored"] * (flip == "YES")
    if not parts:
        return ""
    return (
        f"The header says that the image was {' and '.join(parts)} after it was taken; the pixels are used as stored."
    )


_RADIOGRAPHY = ("CR", "DX", "DR", "RG", "XR", "RF", "SC", "OT")
"""Modalities of projection radiographs, and those of scanned or exported pictures (PS3.3 C.7.3.1.1.1)."""

_OTHER_PARTS = re.compile(
    r"\b(ABDOMEN|ANKLE|ARM|BRAIN|BREAST|BLADDER|CALCANEUS|CERVICAL|COCCYX|CSPINE|ELBOW|EXTREMITY|EYE|FACE|FEMUR|FINGER|"
    r"FOOT|FOREARM|HAND|HEAD|HEEL|HIP|HUMERUS|JAW|KNEE|KUB|LEG|LIVER|LSPINE|LUMBAR|MANDIBLE|MAXILLA|NECK|NOSE|ORBIT|"
    r"PATELLA|PELVIS|PHANTOM|RADIUS|SACRUM|SHOULDER|SINUS|SKULL|SSPINE|TEETH|THIGH|THUMB|TIBIA|TOE|TOOTH|ULNA|WRIST)\b"
)
"""Words of body parts that a radiograph of the chest does not name (PS3.16, annex L)."""

_CHEST_PARTS = ("CHEST", "THORA", "TORAX", "LUNG", "RIB")
_SIDEWAYS = ("LL", "RL", "LAT", "LATERAL", "L", "LLO", "RLO", "LPO", "RPO", "LAO", "RAO", "OBL", "OBLIQUE")
"""View positions that are not frontal (PS3.3 C.8.7.1.1.1), and how archives write them."""


def other_view_of(modality: str, body_part: str, view: str, view_meaning: str = "") -> str:
    """Why a header's tags say that an image is no frontal radiograph of the chest; blank where they do not.

    A blank or unknown value says nothing, since half of all archives leave these tags out.

    Args:
        modality: Modality.
        body_part: BodyPartExamined.
        view: ViewPosition.
        view_meaning: what the code in ViewCodeSequence means.
    """
    modality, body_part, view = (text.upper().strip() for text in (modality, body_part, view))
    if modality and re.fullmatch("[A-Z]{2,16}", modality) and modality not in _RADIOGRAPHY:
        return f"its header gives the modality {modality}"
    other = _OTHER_PARTS.search(body_part)
    if other and not any(part in body_part for part in _CHEST_PARTS):
        return f"its header gives the body part {other[1]}"
    if view in _SIDEWAYS or re.fullmatch("(LEFT|RIGHT)[ _]?LATERAL", view):
        return f"its header gives the view {view}, which is not frontal"
    meaning = view_meaning.lower()
    if re.search("lateral|oblique", meaning) and not re.search(
        "decubitus|antero-?posterior|postero-?anterior", meaning
    ):
        return "its header gives a lateral or oblique view"
    return ""


SPACINGS_MM = (0.01, 10.0)
"""Sides of a pixel that are believed: radiographs have 0.05 to 0.5 mm, and reduced ones up to some mm."""


def square_spacing(spacings: Iterable[tuple[float, ...]]) -> float | None:
    """The side of a pixel in mm from the first spacing (down, across) whose pixels are square, else None.

    A side that no radiograph can have (below :data:`SPACINGS_MM` or above) counts as none.
    """
    for spacing in spacings:
        if len(spacing) == 2:
            down, across = spacing
            if SPACINGS_MM[0] <= down <= SPACINGS_MM[1] and abs(down - across) <= 1e-6 * down:
                return round(down, 6)
    return None
