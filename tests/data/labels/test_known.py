"""Which data set a table is of, by its columns."""

import pytest

from keras_pneumo.data.labels.known import KNOWN, LabelOptions, options_of, recognise
from keras_pneumo.errors import PneumoError

HEADERS = {
    "SIIM-ACR": "ImageId, EncodedPixels",
    "CANDID-PTX": "SOPInstanceUID,EncodedPixels",
    "NIH ChestX-ray14": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position",
    "Google's adjudicated NIH": "Image Index,Finding Labels,Follow-up #,Patient ID,Fracture,Pneumothorax,Set Id",
    "CheXpert": "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Pneumonia,Pneumothorax,Support Devices",
    "MIMIC-CXR-JPG": "subject_id,study_id,Atelectasis,No Finding,Pneumothorax",
    "PadChest": ",ImageID,ImageDir,PatientID,Projection,MethodLabel,Labels",
    "VinDr-CXR": "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max",
    "table of masks": "filename,fold,encoded_pixels",
    "table of labels": "image,label",
}


@pytest.mark.parametrize(("name", "header"), HEADERS.items())
def test_each_data_set_is_known_by_its_columns(name, header):
    assert recognise(header.split(","), LabelOptions()).name == name


def test_every_declared_data_set_is_among_the_headers_above():
    assert {entry.name for entry in KNOWN} <= set(HEADERS)


@pytest.mark.parametrize(
    "header", ["id,target", "image_id,probability,encoded_pixels", "ImageId,patient_id", "label", ""]
)
def test_other_tables_are_not(header):
    assert recognise(header.split(","), LabelOptions()) is None


def test_columns_that_the_user_names_come_first():
    header = ["file no", "PTX?", "label"]
    chosen = recognise(header, LabelOptions(image_column="File No", label_column="ptx?"))
    assert (chosen.image, chosen.label) == ("File No", "ptx?")
    assert recognise(header, LabelOptions(image_column="file no")).label == "label"
    with pytest.raises(PneumoError, match=r"no column 'nothing' \(--label-column\).*'PTX\?'"):
        recognise(header, LabelOptions(label_column="nothing"))
    with pytest.raises(PneumoError, match="--image-column"):
        recognise(header, LabelOptions(label_column="PTX?"))


@pytest.mark.parametrize(
    ("words", "part"),
    [({"uncertain": "maybe"}, "--uncertain"), ({"blank": "positive"}, "--blank"), ({"readers": 0}, "--readers")],
)
def test_words_that_no_option_takes(words, part):
    with pytest.raises(PneumoError, match=part):
        options_of(**words)
