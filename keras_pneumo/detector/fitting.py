"""Fits a detector: finished runs become one detector folder, with a board of the detector beside its members.

In: classifier and segmenter runs of the same split and folds, and the prepared folder. Out: a detector folder (see
:mod:`keras_pneumo.detector.detector`). Beside the detector itself it holds what it answered on the test images: its
submission, those of its members, a check of where the classifier looks, and the board.

Everything is fitted on validation images:

- The postprocessing parameters are searched several times, with the gate on the segmenter's own head, on the
  classifier, and on several together, and always without a gate too. The segmenter's own search comes first. Another
  takes its place only where its Dice on validation is higher, so on validation the detector is never below its
  segmenter, and a gate that does not help stays open.
- The probability is that of one image-level source, a member's or several together, calibrated by one curve: the pair
  with the lowest cross-validated log loss.
- The threshold is fitted on that calibrated probability.

What is not like the training images gets no answer: see :mod:`keras_pneumo.detector.likeness`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.labels.pseudonyms import key_free_names
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.detector.calibration import CalibrationFit, fit_calibration
from keras_pneumo.detector.detector import OUTLINE, ValidationCounts, image_level_sources, outline_score
from keras_pneumo.detector.likeness import FEWEST, LikenessFit, fit_likeness, write_likeness
from keras_pneumo.detector.record import FILE, FORMAT
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.board import Board, score_submissions
from keras_pneumo.evaluation.board.subgroups import attributes_of, scores_within, with_fewer_resamples
from keras_pneumo.evaluation.compare import align_all, write_board
from keras_pneumo.evaluation.inputs.submission import read_submission, write_submission
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.evaluation.report.calibration_report import calibration_report
from keras_pneumo.evaluation.report.likeness_report import LikenessReport, likeness_report
from keras_pneumo.evaluation.report.pictures import image_loader
from keras_pneumo.evaluation.report.saliency_report import FOLDER, read_saliency_report
from keras_pneumo.evaluation.report.subgroup_report import subgroup_report
from keras_pneumo.evaluation.scoring.metrics import confusion, fit_threshold
from keras_pneumo.evaluation.scoring.statistics import RESAMPLES
from keras_pneumo.explain.positives import outlined
from keras_pneumo.explain.saliency_check import CheckOptions, SubsetProbabilities, explain_prepared, select_method
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
from keras_pneumo.inference.provenance import LEARNED, LEARNED_SHA256, learned_images, without_names
from keras_pneumo.inference.run import POSTPROCESS_SHA256, RunFolder, load_model, load_models, versions
from keras_pneumo.inference.submission import submission_info, write_search
from keras_pneumo.models.weights import save_safetensors
from keras_pneumo.storage.files import replacing_contents, sha256_file, with_content_hash, write_json, write_table
from keras_pneumo.storage.tables import counted
from keras_pneumo.storage.workers import Progress


@dataclass(frozen=True)
class MemberPredictions:
    """Predictions of the classifiers and the segmenters on one subset, images in the order of ``maps``."""

    maps: MapSet
    """The segmenters' maps, and the probability of their own image-level heads."""
    classifier: np.ndarray
    """The classifiers' probability, (n,)."""

    def sources(self, area: int) -> dict[str, np.ndarray]:
        """Image-level probabilities by name, each (n,).

        Args:
            area: pixels at 1024x1024 that the source ``outline`` needs.
        """
        outline = np.array([outline_score(quantised, area) for quantised in self.maps.enlarged()])
        return image_level_sources(self.classifier, self.maps.image_probability, outline)


@dataclass(frozen=True)
class DetectorFit:
    """Everything that is fitted on validation."""

    search: PostprocessingSearch
    """The search whose postprocessing parameters the detector keeps."""
    segmenter_search: PostprocessingSearch
    """The search for the segmenters without the classifiers."""
    probability_source: str
    calibration: CalibrationFit
    threshold: float
    counts: ValidationCounts
    likeness: LikenessFit | None = None
    """The check whether a radiograph is like the training images; None where there are too few of them."""

    @property
    def sentences(self) -> list[str]:
        """What was chosen, for a person."""
        parameters = self.search.parameters
        if parameters.gate <= 0:
            gate = "A gate does not help on validation, so there is none"
        elif parameters.gate_source == OWN_HEAD:
            gate = (
                f"The segmenter's own head gates the mask: there is one from {parameters.gate:.3f} on. The classifier "
                "does not gate better"
            )
        else:
            gate = f"The {parameters.gate_source} gates the mask: there is one from {parameters.gate:.3f} on"
        return [
            f"{gate}. Dice on {self.search.images} validation images: {self.search.dice:.3f}; segmenter without "
            f"classifier: {self.segmenter_search.dice:.3f}.",
            f"The probability comes from the {self.probability_source}. {self.calibration.sentence}",
            self.likeness.sentence
            if self.likeness
            else f"Whether a radiograph is like the training images is not checked: that needs {FEWEST} images or more "
            "of several patients.",
        ]


def fit_detector(
    classifiers: Sequence[RunFolder],
    segmenters: Sequence[RunFolder],
    prepared: PreparedFolder,
    folder: Path,
    name: str = "detector",
    progress: Progress | None = None,
    resamples: int = RESAMPLES,
) -> tuple[DetectorFit, Board]:
    """Fit a detector on validation, write its folder, and score it beside its members on test.

    Args:
        classifiers: finished runs, of the same folds as the segmenters.
        segmenters: finished runs.
        prepared: the folder they were trained on, or another with the same split.
        folder: an empty or new folder, or one in which a call like this was killed. The detector appears in it whole.
        name: of the detector, in its answers and on the board.
        progress: called with images done and in all, for each pass anew.
        resamples: of the patients, for the intervals of the board and of the heat maps' check.

    Raises:
        PneumoError: the runs do not fit together, or the folder has another split.
    """
    if any(run.experiment.task != "segmenter" for run in segmenters) or not segmenters:
        raise PneumoError("--segmenter names a run that is not a segmenter. Give a run made by train-segmenter.")
    check_together(segmenters, prepared)
    check_together(classifiers, prepared)
    check_gate(classifiers, segmenters)

    validation = predict_members(classifiers, segmenters, prepared, "validation", progress)
    size = min(run.experiment.image_size for run in (*classifiers, *segmenters))
    likeness = fit_likeness(prepared, size, classifiers[0].experiment.fold)
    fitted = replace(fit_on_validation(validation, prepared), likeness=likeness)
    test = predict_members(classifiers, segmenters, prepared, "test", progress)
    heat_maps = select_heat_maps(classifiers[0], prepared)
    with replacing_contents(folder, (FILE,)) as new:
        board = _write_detector(
            new, name, classifiers, segmenters, prepared, fitted, validation, test, heat_maps, resamples, progress
        )
    return fitted, board


def _write_detector(
    folder: Path,
    name: str,
    classifiers: Sequence[RunFolder],
    segmenters: Sequence[RunFolder],
    prepared: PreparedFolder,
    fitted: DetectorFit,
    validation: MemberPredictions,
    test: MemberPredictions,
    heat_maps: pd.DataFrame | None,
    resamples: int,
    progress: Progress | None,
) -> Board:
    """Write all that :func:`fit_detector` writes into an empty folder."""
    members = write_members(folder, classifiers, segmenters, prepared)
    write_detector_record(folder, name, fitted, members, prepared, heat_maps)

    write_submissions(folder, name, fitted, classifiers, segmenters, validation, test, prepared)
    if heat_maps is not None and outlined(classifiers[0], prepared, "test"):
        probability = detector_answers(test, fitted).set_index("image_id")["probability"]
        # Made anew and not taken from the classifier's run, which knows neither the segmenter nor the detector.
        settings = CheckOptions(selection=heat_maps, segmenters=segmenters)
        names = tuple(run.experiment.name for run in classifiers)
        explain_prepared(
            classifiers[0],
            prepared,
            folder / FOLDER,
            settings,
            SubsetProbabilities(probability, fitted.threshold, names),
            resamples,
            progress,
        )
    before = test.sources(fitted.segmenter_search.parameters.area)[fitted.probability_source]
    return _write_board(
        folder, prepared, resamples, fitted, pd.Series(before, index=test.maps.image_ids), classifiers[0].record
    )


def predict_members(
    classifiers: Sequence[RunFolder],
    segmenters: Sequence[RunFolder],
    prepared: PreparedFolder,
    subset: str,
    progress: Progress | None,
) -> MemberPredictions:
    """Predict one subset with the classifiers and with the segmenters."""
    table = predict_classifiers(classifiers, prepared, subset, progress).set_index("image_id")["probability"]
    maps = predict_map_set(segmenters, prepared, subset, progress)
    return MemberPredictions(maps, table.loc[maps.image_ids].to_numpy(float))


def fit_on_validation(validation: MemberPredictions, prepared: PreparedFolder) -> DetectorFit:
    """Fit postprocessing, probability and threshold; the module's docstring says how."""
    pixels = count_maps(validation.maps, prepared)
    head = validation.maps.image_probability
    segmenter_search = fit_postprocessing(pixels, head, OWN_HEAD if head is not None else "")
    sources = validation.sources(segmenter_search.parameters.area)
    best = segmenter_search
    for source, probability in sources.items():
        if source == OUTLINE:
            continue  # the parameters for masks look at the outline already
        search = segmenter_search if source == OWN_HEAD else fit_postprocessing(pixels, probability, source)
        # Rounded as the search rounds, so that sums in another order decide nothing.
        if round(search.dice, 7) > round(best.dice, 7):
            best = search
    cases = prepared.cases.set_index("image_id").loc[validation.maps.image_ids]
    truth, patients = cases["pneumothorax"].to_numpy(bool), np.array(key_free_names(cases.index, cases["patient_id"]))
    fits = {source: fit_calibration(truth, probability, patients) for source, probability in sources.items()}
    source = min(fits, key=lambda name: fits[name].log_loss)
    calibrated = fits[source].calibration.apply(sources[source])
    threshold = fit_threshold(truth, calibrated)
    tp, fp, fn, tn = confusion(truth, calibrated >= threshold)
    counts = ValidationCounts(len(truth), len(set(patients)), tp, fp, fn, tn)
    return DetectorFit(best, segmenter_search, source, fits[source], threshold, counts)


def detector_answers(predictions: MemberPredictions, fitted: DetectorFit) -> pd.DataFrame:
    """The detector's answers: ``image_id, probability, encoded_pixels``."""
    parameters, sources = fitted.search.parameters, predictions.sources(fitted.segmenter_search.parameters.area)
    gate = sources[parameters.gate_source] if parameters.gate > 0 else None
    table = postprocess_maps(predictions.maps, parameters, gate)
    return table.assign(probability=fitted.calibration.calibration.apply(sources[fitted.probability_source]))


def select_heat_maps(run: RunFolder, prepared: PreparedFolder) -> pd.DataFrame | None:
    """Methods and stages of heat maps, ranked by how well they point on validation positives, the best first.

    Only the run's best network is tried: all runs of an ensemble are of one kind. None where no validation positive has
    a mask, so that nothing can be compared.
    """
    return select_method(load_model(run), run, prepared) if outlined(run, prepared, "validation") else None


def write_members(
    folder: Path, classifiers: Sequence[RunFolder], segmenters: Sequence[RunFolder], prepared: PreparedFolder
) -> dict[str, list[str]]:
    """Write what the detector needs of each run: experiment, networks, and hashes of all images it has learned from.

    Returns:
        Names of the runs' folders within ``folder``, by role: ``classifiers`` and ``segmenters``.
    """
    members: dict[str, list[str]] = {}
    for role, runs in (("classifier", classifiers), ("segmenter", segmenters)):
        members[f"{role}s"] = [f"{role}_{number}" for number in range(len(runs))]
        for name, run in zip(members[f"{role}s"], runs, strict=True):
            member = folder / name
            member.mkdir(parents=True, exist_ok=True)
            # The training's command line may hold paths of its machine, which must not travel with the detector.
            left_out = ("command", "start_from", POSTPROCESS_SHA256, "sha256")
            record = {key: value for key, value in run.record.items() if key not in left_out}
            learned = without_names(learned_images(run, [prepared]))
            record[LEARNED_SHA256] = write_table(member / LEARNED, learned)
            write_json(member / "experiment.json", record)
            for network, model in enumerate(load_models(run)):
                save_safetensors(model, member / f"network_{network}.safetensors")
    return members


def write_detector_record(
    folder: Path,
    name: str,
    fitted: DetectorFit,
    members: dict[str, list[str]],
    prepared: PreparedFolder,
    heat_maps: pd.DataFrame | None,
) -> None:
    """Write the postprocessing parameters, and ``detector.json`` with the hash of every file.

    Args:
        folder: the detector's.
        name: of the detector.
        fitted: on validation.
        members: from :func:`write_members`.
        prepared: what it was fitted on.
        heat_maps: from :func:`select_heat_maps`.
    """
    write_search(fitted.search, folder, prepared.synthetic)
    files = [folder / RULE_FILE]
    if fitted.likeness is not None:
        files.append(write_likeness(fitted.likeness.likeness, folder))
    for member in [*members["classifiers"], *members["segmenters"]]:
        files += sorted((folder / member).iterdir())
    record = {
        "format": FORMAT,
        "name": name,
        "use": "Research use only. Not a medical device.",
        "versions": versions(),
        **members,
        "calibration": fitted.calibration.calibration.as_json(),
        "probability_source": fitted.probability_source,
        "outline_area": fitted.segmenter_search.parameters.area,
        "threshold": fitted.threshold,
        "split_sha256": prepared.manifest["split_sha256"],
        "synthetic": prepared.synthetic,
        "validation": {
            "counts": asdict(fitted.counts),
            "dice": fitted.search.dice,
            "dice_segmenter_alone": fitted.segmenter_search.dice,
            "calibration": fitted.calibration.scores,
        },
        "heat": _heat_record(heat_maps),
        "likeness": None if fitted.likeness is None else fitted.likeness.as_json(),
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
    }
    write_json(folder / FILE, with_content_hash(record))


def _heat_record(heat_maps: pd.DataFrame | None) -> dict[str, object]:
    """The best method and stage of heat maps, and how well they point: the page shows both."""
    if heat_maps is None:
        return {}
    best = heat_maps.iloc[0]
    figures = {name: round(float(best[name]), 4) for name in ("pointing", "chance")}
    return {"method": str(best["method"]), "stage": int(best["stage"]), "images": int(best["images"]), **figures}


def write_submissions(
    folder: Path,
    name: str,
    fitted: DetectorFit,
    classifiers: Sequence[RunFolder],
    segmenters: Sequence[RunFolder],
    validation: MemberPredictions,
    test: MemberPredictions,
    prepared: PreparedFolder,
) -> None:
    """Write the detector's submission and, under ``parts``, those of the classifiers and of the segmenters alone."""
    parameters = fitted.segmenter_search.parameters
    truth = prepared.cases.set_index("image_id")["pneumothorax"].loc[validation.maps.image_ids].to_numpy(bool)

    def by_detector(predictions: MemberPredictions) -> pd.DataFrame:
        return detector_answers(predictions, fitted)

    def by_classifier(predictions: MemberPredictions) -> pd.DataFrame:
        return pd.DataFrame({"image_id": predictions.maps.image_ids, "probability": predictions.classifier})

    def by_segmenter(predictions: MemberPredictions) -> pd.DataFrame:
        return postprocess_maps(predictions.maps, parameters, predictions.maps.image_probability)

    classifier_threshold = fit_threshold(truth, validation.classifier)
    teams: list[tuple[str, Sequence[RunFolder], str, float, Callable[[MemberPredictions], pd.DataFrame]]] = [
        ("submission", [*classifiers, *segmenters], "joint", fitted.threshold, by_detector),
        ("parts/classifier", classifiers, "classification", classifier_threshold, by_classifier),
        ("parts/segmenter", segmenters, "joint", parameters.threshold, by_segmenter),
    ]
    for subfolder, runs, task, threshold, answer in teams:
        info = submission_info(runs, task, "test", threshold)
        if subfolder == "submission":
            info = info.model_copy(update={"team": f"keras-pneumo {name} (joined)"[:80]})
        write_submission(folder / subfolder, info, answer(test), answer(validation))


def _likeness_report(fit: LikenessFit | None) -> LikenessReport | None:
    """The section of the report on what is not like the training images."""
    if fit is None:
        return None
    return likeness_report(fit.held_out, fit.test, fit.positive, fit.likeness.limit, fit.rate)


def _write_board(
    folder: Path,
    prepared: PreparedFolder,
    resamples: int,
    fitted: DetectorFit,
    before: pd.Series,
    record: Mapping[str, object],
) -> Board:
    """Score the detector beside its members, from the submissions on disk, and write ``board``.

    Args:
        folder: the detector's.
        prepared: its test images are scored.
        resamples: of the patients.
        fitted: on validation.
        before: the probability of each test image before it is calibrated, by image id.
        record: of a member's run, which says what it learned from.
    """
    truth = read_truth(prepared.folder)
    submissions = [read_submission(folder / name) for name in ("submission", "parts/segmenter", "parts/classifier")]
    board = score_submissions(truth, align_all(submissions, truth, False, False, False), resamples=resamples)
    own = replace(board, entries=board.teams[:1])
    parts = scores_within(with_fewer_resamples(own), attributes_of(truth, prepared.folder))
    calibration, plain = fitted.calibration.calibration, before.loc[truth.cases.image_id].to_numpy(float)
    sentences = [
        f"{fitted.calibration.sentence} Fitted on {counted(fitted.counts.images, 'validation image')}; the detector "
        f"gives the probabilities after. Those before are the {fitted.probability_source}'s."
    ]
    write_board(
        board,
        folder / "board",
        image_loader(prepared.folder),
        saliency=read_saliency_report(folder / FOLDER),
        likeness=_likeness_report(fitted.likeness),
        subgroups=subgroup_report(parts, own.headline),
        calibration=calibration_report(own, plain, calibration.apply(plain), sentences),
        record={"trained_on": record.get("trained_on"), "synthetic": prepared.synthetic},
    )
    return board
