"""An answer as DICOM objects: a Segmentation, a Secondary Capture with the overlay, a Structured Report.

In: the header of the source file, the mask on its own grid, the overlay, and the detector's answer. Out: data sets in
the source's study, which name the source image, the algorithm and its version, and say "research use only". They carry
the patient's identity as the source gives it, as all objects of a study must; nothing here prints it.

This is a module of its own because it needs highdicom (extra ``dicom``). The report follows template TID 1500,
Measurement Report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from highdicom import sr
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from keras_pneumo.data.radiographs.dicom import quiet
from keras_pneumo.detector.overlay import RESEARCH_USE

MANUFACTURER = "keras_pneumo"
PNEUMOTHORAX = Code("36118008", "SCT", "Pneumothorax")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
PRESENT, ABSENT = Code("52101004", "SCT", "Present"), Code("2667000", "SCT", "Absent")
CHEST_RADIOGRAPH = Code("399208008", "SCT", "Plain chest X-ray")
OWN_SCHEME = "99KERASPNEUMO"
PROBABILITY = Code("PTX_PROBABILITY", OWN_SCHEME, "Probability of pneumothorax")
"""Not DICOM's "Certainty of Finding": beside "Absent" that is how certain the absence is."""
AGREEMENT = Code("ANSWER_OUTLINE", OWN_SCHEME, "Answer for the image and outline")
INPUT_CHECK = Code("INPUT_CHECK", OWN_SCHEME, "Check of the input image")
NOT_LIKE_TRAINING = Code("NOT_LIKE_TRAINING", OWN_SCHEME, "Not like the training images")
IMAGING = Code("363679005", "SCT", "Imaging procedure")
"""What was done where the image may be of anything."""
PERCENT = Code("%", "UCUM", "Percent")
AREA, SQUARE_MM = Code("42798000", "SCT", "Area"), Code("mm2", "UCUM", "square millimeter")
AMBER_LAB = hd.color.CIELabColor(82.0, 12.0, 83.0)
"""The colour of the overlay's outline, in the colour space of segmentations."""


_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


@dataclass(frozen=True)
class Finding:
    """The content of the objects."""

    mask: np.ndarray
    """uint8 (rows, columns) of the source, 0 or 1."""
    overlay: np.ndarray
    """uint8 (rows, columns, 3)."""
    probability: float | None
    """None where the image is not like the training images: the objects then hold no answer."""
    threshold: float
    area_mm2: float | None
    algorithm: str
    version: str
    disagreement: str | None = None
    """How answer and outline disagree, in at most 50 characters; None where they agree."""
    synthetic: bool = False
    """Whether the detector was trained on phantoms."""
    reason: str = ""
    """Why there is no answer; blank where there is one."""

    @property
    def use(self) -> str:
        """What stands in every object's description, in at most 40 characters."""
        return f"Trained on phantoms. {RESEARCH_USE}" if self.synthetic else RESEARCH_USE

    @property
    def parameters(self) -> list[str]:
        """Parameters of the algorithm, beside its name and version."""
        if self.probability is None:
            return [self.use, self.reason]
        return [self.use, f"Calibrated probability {self.probability:.4f}; yes from {self.threshold:.4f} on"]


def dicom_objects(source: pydicom.Dataset, finding: Finding) -> dict[str, pydicom.Dataset]:
    """Make the ``segmentation`` (where the mask is not empty), the ``capture`` and the ``report``.

    Args:
        source: from :func:`keras_pneumo.detector.dicom_files.source_header`.
        finding: the content, on the source's grid.
    """
    with quiet():
        capture = _capture(source, finding)
        segmentation = _segmentation(source, finding) if finding.mask.any() else None
        report = _report(source, finding, segmentation, capture)
        datasets = {"segmentation": segmentation, "capture": capture, "report": report}
        objects = {kind: dataset for kind, dataset in datasets.items() if dataset is not None}
        for dataset in objects.values():
            # highdicom copies names without the source's character set, and a detector's name may be of any script.
            dataset.SpecificCharacterSet = "ISO_IR 192"
        return objects


def _segmentation(source: pydicom.Dataset, finding: Finding) -> pydicom.Dataset:
    algorithm = hd.AlgorithmIdentificationSequence(
        name=finding.algorithm,
        family=codes.DCM.ArtificialIntelligence,
        version=finding.version,
        source=MANUFACTURER,
        parameters={"use": finding.use},
    )
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Pneumothorax",
        segmented_property_category=ABNORMAL,
        segmented_property_type=PNEUMOTHORAX,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=hd.UID(),
        tracking_id="pneumothorax-1",
        display_color=AMBER_LAB,
    )
    segmentation = hd.seg.Segmentation(
        source_images=[source],
        pixel_array=finding.mask[None].astype(bool),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_number=901,
        instance_number=1,
        content_label="PNEUMOTHORAX",
        content_description=f"Pneumothorax. {finding.use}",
        series_description=f"Pneumothorax outline. {finding.use}",
        **_maker(finding),
    )
    for shared in segmentation.SharedFunctionalGroupsSequence:
        # highdicom writes the source's spacing without a slice thickness, which a projection does not have, and then
        # refuses to read it. The pixels are the source's own, so the source gives their spacing.
        if "PixelMeasuresSequence" in shared:
            del shared.PixelMeasuresSequence
    segmentation.PatientOrientation = source.get("PatientOrientation") or None  # may be empty, must be there
    return segmentation


def _capture(source: pydicom.Dataset, finding: Finding) -> pydicom.Dataset:
    spacing: Any = source.get("PixelSpacing")
    capture: Any = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=source,
        pixel_array=np.ascontiguousarray(finding.overlay),
        photometric_interpretation=hd.PhotometricInterpretationValues.RGB,
        bits_allocated=8,
        coordinate_system=hd.CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "F"),
        pixel_spacing=tuple(float(millimetres) for millimetres in spacing) if spacing is not None else None,  # type: ignore[arg-type]
        series_number=902,
        instance_number=1,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=f"Pneumothorax overlay. {finding.use}",
        **_maker(finding),
    )
    # SIIM's files have no orientation, so the overlay has none either.
    capture.PatientOrientation = source.get("PatientOrientation") or None
    if finding.probability is None:
        capture.Laterality = source.get("Laterality") or None  # may be empty, must be there for an unknown body part
    else:
        capture.BodyPartExamined = "CHEST"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.ConversionType = "WSD"  # from a workstation, not from the device that took the radiograph
    for name in _LOSSY:  # once compressed with loss is always so (PS3.3, C.7.6.1.1.5)
        if source.get(name):
            setattr(capture, name, source.get(name))
    capture.BurnedInAnnotation = "NO"  # no patient data is drawn, only the answer
    capture.DerivationDescription = f"Outline by {finding.algorithm} {finding.version}. {RESEARCH_USE}"
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [
        sr.CodedConcept("121322", "DCM", "Source image for image processing operation")
    ]
    capture.SourceImageSequence = [reference]
    return capture


def _report(
    source: pydicom.Dataset, finding: Finding, segmentation: pydicom.Dataset | None, capture: pydicom.Dataset
) -> pydicom.Dataset:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(), name=finding.algorithm, manufacturer_name=MANUFACTURER, model_name=finding.version
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    algorithm = sr.AlgorithmIdentification(finding.algorithm, finding.version, parameters=finding.parameters)
    disagreement = []
    if finding.disagreement:
        code = Code("DISAGREE", OWN_SCHEME, f"Disagree: {finding.disagreement}")
        disagreement = [sr.QualitativeEvaluation(AGREEMENT, code)]
    measurements, evaluations = [], [sr.QualitativeEvaluation(INPUT_CHECK, NOT_LIKE_TRAINING)]
    if finding.probability is not None:
        measurements = [sr.Measurement(PROBABILITY, round(100 * finding.probability, 2), PERCENT)]
        answer = PRESENT if finding.probability >= finding.threshold else ABSENT
        evaluations = [sr.QualitativeEvaluation(PNEUMOTHORAX, answer), *disagreement]
    # No finding type here: "Finding: Pneumothorax" above "Pneumothorax: Absent" could be read as a finding.
    groups: list[Any] = [
        sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(hd.UID(), "pneumothorax on the image"),
            algorithm_id=algorithm,
            measurements=measurements,
            qualitative_evaluations=evaluations,
            source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source)],
        )
    ]
    if segmentation is not None:
        measured = [] if finding.area_mm2 is None else [sr.Measurement(AREA, round(finding.area_mm2, 1), SQUARE_MM)]
        groups.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(hd.UID(), "pneumothorax-1"),
                referenced_segment=sr.ReferencedSegmentationFrame(
                    segmentation.SOPClassUID,
                    segmentation.SOPInstanceUID,
                    frame_number=1,
                    segment_number=1,
                    source_image=sr.SourceImageForSegmentation.from_source_image(source),
                ),
                finding_type=PNEUMOTHORAX,
                algorithm_id=algorithm,
                measurements=measured,
                qualitative_evaluations=disagreement,
            )
        )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=IMAGING if finding.probability is None else CHEST_RADIOGRAPH,
        imaging_measurements=groups,
    )
    for item in _image_items(content):
        # The frame gives the segment; naming the segment too is not allowed (PS3.3 C.18.4).
        if "ReferencedFrameNumber" in item and "ReferencedSegmentNumber" in item:
            del item.ReferencedSegmentNumber
    evidence = [source, capture] if segmentation is None else [source, segmentation, capture]
    report = sr.ComprehensiveSR(
        evidence=evidence,
        content=content[0],
        series_number=903,
        instance_number=1,
        series_description=f"Pneumothorax report. {finding.use}",
        **_maker(finding),
    )
    report.CompletionFlagDescription = finding.use
    return report


def _image_items(content: Iterable[pydicom.Dataset]) -> Iterator[pydicom.Dataset]:
    """All references to images in a report's tree."""
    for item in content:
        yield from item.get("ReferencedSOPSequence", [])
        yield from _image_items(item.get("ContentSequence", []))


def _maker(finding: Finding) -> dict[str, Any]:
    """The maker of an object, and the object's own identifiers."""
    return {
        "series_instance_uid": hd.UID(),
        "sop_instance_uid": hd.UID(),
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": finding.algorithm,
        "software_versions": finding.version,
        "device_serial_number": "none",
    }
