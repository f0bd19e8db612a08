"""What joins classifiers and segmenters into one detector: fitted on validation, applied to any images.

In: what the parts say of validation images, and the truth. Out: the rule for masks and its gate, the probability, its
calibration and the threshold; by them, the detector's answers.

The rule for masks is searched several times, with the gate asked of the segmenter's own head, of the classifier, and of
them together; and always without a gate. The segmenter's own search comes first and another takes its place only where
it has a higher Dice on validation, so there the detector is never below its segmenter; where gating does not help, the
gate stays open. Which image-level answer becomes the probability (a part's or several together), and by which curve, is
what has the lowest cross-validated log loss.

The detector's folder as it is written: its parts, its record with a hash of every file, and what it answers.

In: the runs, and what joins them. Out: what :func:`keras_pneumo.detector.detector.open_detector` reads, and beside it
the submissions of the detector and of its parts, which the detector does not need.

From finished runs to a detector: what joins them is fitted on validation, and shown beside the parts on test.

In: classifier and segmenter runs of the same split and folds, and the prepared folder. Out: a detector folder (see
:mod:`keras_pneumo.detector.detector`) with the detector's submission, those of its parts, a check of where the
classifier looks, and a board of the three. How they are joined is told in :mod:`keras_pneumo.detector.fitting`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.detector.calibration import Fitted, fit_calibration
from keras_pneumo.detector.detector import OUTLINE, Counts, image_level_sources, outline_score
from keras_pneumo.detector.record import FILE, FORMAT, content_hash
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.board import Board, score_submissions
from keras_pneumo.evaluation.compare import align_all, write_board
from keras_pneumo.evaluation.inputs.submission import read_submission, write_submission
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.evaluation.report.pictures import image_loader
from keras_pneumo.evaluation.report.saliency_report import FOLDER, read_saliency_report
from keras_pneumo.evaluation.scoring.metrics import confusion, fit_threshold
from keras_pneumo.evaluation.scoring.statistics import RESAMPLES
from keras_pneumo.explain import explain
from keras_pneumo.explain.method_selection import choose
from keras_pneumo.explain.positives import outlined
from keras_pneumo.inference.ensemble import check_gate, check_together, predict_classifiers, predict_map_set
from keras_pneumo.inference.maps import MapSet
from keras_pneumo.inference.postprocess import FILE as RULE_FILE
from keras_pneumo.inference.postprocess import (
    OWN_HEAD,
    PostprocessingSearch,
    count_maps,
    fit_postprocessing,
    postprocess_maps,
)
from keras_pneumo.inference.predictor import Progress
from keras_pneumo.inference.run import RunFolder, load_model, load_models, versions
from keras_pneumo.inference.submission import submission_info, write_search
from keras_pneumo.models.weights import save_safetensors
from keras_pneumo.storage.files import sha256_file, write_json


@dataclass(frozen=True)
class Joint:
    """What joins the parts, fitted on validation."""

    search: PostprocessingSearch
    """Of the rule that the detector keeps."""
    alone: PostprocessingSearch
    """Of the segmenters without the classifiers."""
    probability_source: str
    fitted: Fitted
    threshold: float
    counts: Counts

    @property
    def sentences(self) -> list[str]:
        """What was decided, for a person."""
        rule = self.search.parameters
        if rule.gate <= 0:
            gate = "Gating does not help on validation, so the gate stays open"
        elif rule.gate_source == OWN_HEAD:
            gate = (
                f"The segmenter's own head gates the mask from {rule.gate:.3f} on; the classifier does not gate better"
            )
        else:
            gate = f"The mask is opened by the {rule.gate_source} from {rule.gate:.3f} on"
        return [
            f"{gate}. Dice on {self.search.images} validation images: {self.search.dice:.3f}, "
            f"segmenter alone {self.alone.dice:.3f}.",
            f"The probability is that of the {self.probability_source}. {self.fitted.sentence}",
        ]


@dataclass(frozen=True)
class Asked:
    """What the parts say of one subset, images in the order of ``maps``."""

    maps: MapSet
    classifier: np.ndarray

    def sources(self, area: int) -> dict[str, np.ndarray]:
        """The image-level answers by name; ``area`` is what the outline's asks for."""
        outline = np.array([outline_score(one.unpack(), area) for one in self.maps.maps])
        return image_level_sources(self.classifier, self.maps.image_probability, outline)


def fit_joint(held_out: Asked, prepared: PreparedFolder) -> Joint:
    """Rule, probability and threshold on validation images; see the module for how."""
    pixels = count_maps(held_out.maps, prepared)
    head = held_out.maps.image_probability
    alone = fit_postprocessing(pixels, head, OWN_HEAD if head is not None else "")
    sources = held_out.sources(alone.parameters.area)
    best = alone
    for source, probability in sources.items():
        if source == OUTLINE:
            continue  # every rule asks the outline already
        search = alone if source == OWN_HEAD else fit_postprocessing(pixels, probability, source)
        # Rounded as the search rounds, so that sums in another order decide nothing.
        if round(search.dice, 7) > round(best.dice, 7):
            best = search
    cases = prepared.cases.set_index("image_id").loc[held_out.maps.image_ids]
    truth, patients = cases["pneumothorax"].to_numpy(bool), cases["patient_id"].to_numpy(str)
    fits = {source: fit_calibration(truth, probability, patients) for source, probability in sources.items()}
    source = min(fits, key=lambda one: fits[one].log_loss)
    calibrated = fits[source].calibration.apply(sources[source])
    threshold = fit_threshold(truth, calibrated)
    tp, fp, fn, tn = confusion(truth, calibrated >= threshold)
    counts = Counts(len(truth), len(set(patients)), tp, fp, fn, tn)
    return Joint(best, alone, source, fits[source], threshold, counts)


def joined_answers(asked: Asked, joint: Joint) -> pd.DataFrame:
    """``image_id, probability, encoded_pixels`` by the detector."""
    rule, sources = joint.search.parameters, asked.sources(joint.alone.parameters.area)
    table = postprocess_maps(asked.maps, rule, sources[rule.gate_source] if rule.gate > 0 else None)
    return table.assign(probability=joint.fitted.calibration.apply(sources[joint.probability_source]))


def write_members(
    folder: Path, classifiers: Sequence[RunFolder], segmenters: Sequence[RunFolder]
) -> dict[str, list[str]]:
    """Write what the detector needs of each run: its experiment, and every network that it predicts with.

    Returns:
        Names of the runs' folders within ``folder``, by role: ``classifiers`` and ``segmenters``.
    """
    places: dict[str, list[str]] = {}
    for role, runs in (("classifier", classifiers), ("segmenter", segmenters)):
        places[f"{role}s"] = [f"{role}_{number}" for number in range(len(runs))]
        for name, run in zip(places[f"{role}s"], runs, strict=True):
            place = folder / name
            place.mkdir(parents=True, exist_ok=True)
            # The command line of the training may name places on its machine, which are nobody else's business.
            kept = {key: value for key, value in run.record.items() if key not in ("command", "start_from")}
            write_json(place / "experiment.json", kept)
            for network, model in enumerate(load_models(run)):
                save_safetensors(model, place / f"network_{network}.safetensors")
    return places


def write_record(
    folder: Path,
    name: str,
    joint: Joint,
    places: dict[str, list[str]],
    prepared: PreparedFolder,
    choice: pd.DataFrame | None,
) -> None:
    """Write the rule for masks, and ``detector.json`` with the hash of every file.

    Args:
        folder: the detector's.
        name: how the detector calls itself.
        joint: what joins the runs.
        places: from :func:`write_members`.
        prepared: what it was fitted on.
        choice: methods and stages of heat maps, the best first, or None; see :func:`choice.choose`.
    """
    write_search(joint.search, folder)
    files = [folder / RULE_FILE]
    for place in [*places["classifiers"], *places["segmenters"]]:
        files += sorted((folder / place).iterdir())
    record = {
        "format": FORMAT,
        "name": name,
        "use": "Research use only. Not a medical device.",
        "versions": versions(),
        **places,
        "calibration": joint.fitted.calibration.as_json(),
        "probability_source": joint.probability_source,
        "outline_area": joint.alone.parameters.area,
        "threshold": joint.threshold,
        "split_sha256": prepared.manifest["split_sha256"],
        "validation": {
            "counts": asdict(joint.counts),
            "dice": joint.search.dice,
            "dice_segmenter_alone": joint.alone.dice,
            "calibration": joint.fitted.scores,
        },
        "heat": _heat(choice),
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
    }
    write_json(folder / FILE, record | {"sha256": content_hash(record)})


def _heat(choice: pd.DataFrame | None) -> dict[str, object]:
    """The heat maps that point best on validation positives, and how well: for the page to show."""
    if choice is None:
        return {}
    best = choice.iloc[0]
    figures = {name: round(float(best[name]), 4) for name in ("pointing", "chance")}
    return {"method": str(best["method"]), "stage": int(best["stage"]), "images": int(best["images"]), **figures}


def write_submissions(
    folder: Path,
    name: str,
    joint: Joint,
    classifiers: Sequence[RunFolder],
    segmenters: Sequence[RunFolder],
    held_out: Asked,
    asked: Asked,
    prepared: PreparedFolder,
) -> None:
    """The detector's submission and, under ``parts``, those of its classifiers and its segmenters alone."""
    rule = joint.alone.parameters
    truth = prepared.cases.set_index("image_id")["pneumothorax"].loc[held_out.maps.image_ids].to_numpy(bool)

    def by_classifier(some: Asked) -> pd.DataFrame:
        return pd.DataFrame({"image_id": some.maps.image_ids, "probability": some.classifier})

    def by_segmenter(some: Asked) -> pd.DataFrame:
        return postprocess_maps(some.maps, rule, some.maps.image_probability)

    parts: list[tuple[str, Sequence[RunFolder], str, float, Callable[[Asked], pd.DataFrame]]] = [
        ("submission", [*classifiers, *segmenters], "joint", joint.threshold, lambda some: joined_answers(some, joint)),
        ("parts/classifier", classifiers, "classification", fit_threshold(truth, held_out.classifier), by_classifier),
        ("parts/segmenter", segmenters, "joint", rule.threshold, by_segmenter),
    ]
    for place, runs, task, threshold, table in parts:
        info = submission_info(runs, task, "test", threshold)
        if place == "submission":
            info = info.model_copy(update={"team": f"keras-pneumo {name} (joined)"[:80]})
        write_submission(folder / place, info, table(asked), table(held_out))


def join(
    classifiers: Sequence[RunFolder],
    segmenters: Sequence[RunFolder],
    prepared: PreparedFolder,
    folder: Path,
    name: str = "detector",
    progress: Progress | None = None,
    resamples: int = RESAMPLES,
) -> tuple[Joint, Board]:
    """Fit on validation what joins these runs, and write the detector folder with its board on the test subset.

    Args:
        classifiers: finished runs, of the same folds as the segmenters.
        segmenters: finished runs.
        prepared: the folder they were trained on, or another with the same split.
        folder: an empty or new folder.
        name: how the detector calls itself, in its answers and on the board.
        progress: called with images done and in all, for each pass anew.
        resamples: of the patients, for the intervals of the board and of where the classifier looks.

    Raises:
        PneumoError: the runs cannot stand together, or the folder was split otherwise.
    """
    if any(run.experiment.task != "segmenter" for run in segmenters) or not segmenters:
        raise PneumoError("--segmenter names a run that is no segmenter. Give one made by train-segmenter.")
    check_together(segmenters, prepared)
    check_together(classifiers, prepared)
    check_gate(classifiers, segmenters)
    held_out = _ask(classifiers, segmenters, prepared, "validation", progress)
    joint = fit_joint(held_out, prepared)
    asked = _ask(classifiers, segmenters, prepared, "test", progress)
    choice = heat_choice(classifiers[0], prepared)
    places = write_members(folder, classifiers, segmenters)
    write_record(folder, name, joint, places, prepared, choice)
    write_submissions(folder, name, joint, classifiers, segmenters, held_out, asked, prepared)
    if choice is not None and outlined(classifiers[0], prepared, "test"):
        table = joined_answers(asked, joint).set_index("image_id")["probability"]
        _explain(folder, classifiers, segmenters, prepared, choice, table, joint.threshold, progress, resamples)
    return joint, _write_board(folder, prepared, resamples)


def _ask(
    classifiers: Sequence[RunFolder],
    segmenters: Sequence[RunFolder],
    prepared: PreparedFolder,
    subset: str,
    progress: Progress | None,
) -> Asked:
    table = predict_classifiers(classifiers, prepared, subset, progress).set_index("image_id")["probability"]
    maps = predict_map_set(segmenters, prepared, subset, progress)
    return Asked(maps, table.loc[maps.image_ids].to_numpy(float))


def heat_choice(run: RunFolder, prepared: PreparedFolder) -> pd.DataFrame | None:
    """Methods and stages of the heat maps by how well they point on validation positives; see :func:`choice.choose`.

    One network is asked, the run's best; runs that answer as one are of one kind. None where no validation positive is
    outlined, so that there is nothing to choose by.
    """
    return choose(load_model(run), run, prepared) if outlined(run, prepared, "validation") else None


def _explain(
    folder: Path,
    classifiers: Sequence[RunFolder],
    segmenters: Sequence[RunFolder],
    prepared: PreparedFolder,
    choice: pd.DataFrame,
    probability: pd.Series,
    threshold: float,
    progress: Progress | None,
    resamples: int,
) -> None:
    """Check on test where the first classifier looks, beside the joined segmenters' map and by the detector's answers.

    It is made anew rather than taken from the classifier's run: there neither the segmenter nor the detector is known.
    """
    wanted = explain.Asked(choice=choice, segmenters=segmenters)
    names = tuple(run.experiment.name for run in classifiers)
    answers = explain.Answers(probability, threshold, names)
    explain.explain_prepared(classifiers[0], prepared, folder / FOLDER, wanted, answers, resamples, progress)


def _write_board(folder: Path, prepared: PreparedFolder, resamples: int) -> Board:
    """Scores of the detector beside its parts, from the submissions as they were written, in ``board``."""
    truth = read_truth(prepared.folder)
    read = [read_submission(folder / place) for place in ("submission", "parts/segmenter", "parts/classifier")]
    board = score_submissions(truth, align_all(read, truth, False, False, False), resamples=resamples)
    write_board(board, folder / "board", image_loader(prepared.folder), saliency=read_saliency_report(folder / FOLDER))
    return board
