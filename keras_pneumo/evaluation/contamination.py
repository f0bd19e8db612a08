"""Whether a team has seen the test images before, by what it declares.

In: declared pre-training images and the truth. Out: a note for the board, '' when there is nothing to say. SIIM's
images are NIH ChestX-ray14 images under other names, so a network pre-trained on NIH has most likely seen the test
set.
"""

from __future__ import annotations

import re

from keras_pneumo.data.tables import column_name, image_id_of
from keras_pneumo.evaluation.submission import Pretraining
from keras_pneumo.evaluation.truth import Truth
from keras_pneumo.evaluation.writing import counted, one_line

_NIH_NAME = re.compile(r"\d{8}_\d{3}")
_SAME_IMAGES = ("nih", "chestxray14", "chestxray8", "cxr14", "chestxnet", "siim")
"""Names of collections that hold SIIM's images."""


def contamination(pretraining: Pretraining, truth: Truth) -> str:
    """What the declared pre-training has to do with the scored images.

    Args:
        pretraining: names of a collection, and image ids as SIIM or NIH call them (with or without ending).
        truth: the scored images; with NIH names where a table was given.
    """
    declared = {image_id_of(name) for name in pretraining.image_ids}
    own = truth.cases.image_id.map(lambda image_id: {image_id, truth.nih_names.get(image_id, image_id)})
    seen = sum(bool(names & declared) for names in own)
    if seen:
        return f"contaminated: {counted(seen, 'test image')} in its pre-training"
    nih_patients = {name.split("_")[0] for name in declared if _NIH_NAME.fullmatch(name)}
    patients = {truth.nih_names[i].split("_")[0] for i in truth.cases.image_id if i in truth.nih_names}
    if nih_patients & patients:
        return f"pre-trained on other images of {counted(len(nih_patients & patients), 'test patient')}"
    words = column_name(pretraining.images)
    if not declared and any(name in words for name in _SAME_IMAGES):
        name = one_line(pretraining.images, 40)
        return f"pre-trained on {name}, images not named; SIIM's images are NIH's, so test images may be among them"
    return ""
