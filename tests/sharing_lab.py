"""A finished run as its files say it, made in a moment: no network is in it, since nothing here predicts."""

import json

import pandas as pd

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.inference.provenance import COLUMNS
from keras_pneumo.storage.files import sha256_bytes, sha256_file, with_content_hash, write_json, write_table

HOSPITAL_NUMBER = "4711008"
KEYED = "patient-5d41402a-9f86d081884c7d65"

LOG = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "phase": ["frozen", "whole", "whole"],
        "loss": [0.7, 0.5, 0.4],
        "validation_loss": [0.69, 0.55, 0.6],
        "validation_auroc": [0.5, 0.8, 0.75],
        "learning_rate": [1e-3, 1e-3, 1e-4],
        "seconds": [2.0, 1.5, 1.5],
        "gradient_norm": [1.0, None, 2.0],
        "best": [1, 1, 0],
    }
)

BOARD = pd.DataFrame(
    {
        "team": ["keras-pneumo shared", "Majority", "Times imaged"],
        "kind": ["submission", "baseline", "baseline"],
        "images": 180,
        "patients": 87,
        "positives": 39,
        "auroc": [0.94, 0.5, 0.706],
        "auroc_low": [0.85, 0.5, 0.571],
        "auroc_high": [0.98, 0.5, 0.828],
        "sensitivity": [0.9, 0.0, 0.0],
        "sensitivity_low": [0.77, 0.0, 0.0],
        "sensitivity_high": [0.97, 0.0, 0.0],
    }
)

SUBGROUPS = pd.DataFrame(
    {
        "attribute": ["sex", "sex"],
        "subgroup": ["F", "M"],
        "images": [10, 12],
        "patients": [9, 11],
        "positives": [4, 5],
        "auroc": [0.8, None],
        "auroc_low": [0.6, None],
        "auroc_high": [0.95, None],
    }
)


def write_run(folder, board=BOARD, learned=True, experiment=None, **changes):
    """Writes a run folder of a classifier with everything that a training leaves, in small."""
    folder.mkdir(parents=True)
    experiment = experiment or CLASSIFIER.replace(name="shared", encoder="resnet18", weights="random", image_size=64)
    (folder / "best.weights.h5").write_bytes(b"weights for Keras")
    (folder / "best.safetensors").write_bytes(b"weights for PyTorch")
    (folder / "curves.png").write_bytes(PNG)
    (folder / "report.html").write_text("<html>with radiographs</html>")
    LOG.to_csv(folder / "log.csv", index=False)
    if board is not None:
        board.to_csv(folder / "board.csv", index=False)
    (folder / "checkpoints/at_0002_000000").mkdir(parents=True)
    (folder / "checkpoints/at_0002_000000/state.json").write_text("{}")
    (folder / "events").mkdir()
    (folder / "events/events.out.tfevents.1.name-of-host").write_bytes(b"")
    (folder / "submission").mkdir()
    (folder / "submission/predictions.csv").write_text("image_id,probability\ni1,0.5\n")
    (folder / "submission/submission.json").write_text(json.dumps({"format": 1, "team": "keras-pneumo shared"}))
    record = {
        "format": 1,
        "experiment": experiment.model_dump(mode="json"),
        "split_sha256": "5" * 64,
        "prepared_sha256": "b" * 64,
        "synthetic": False,
        "patients": "table",
        "patients_note": "",
        "training_images": 160,
        "validation_images": 40,
        "trained_on": "SIIM-ACR (200 images)",
        "training_seconds": 120.0,
        "best_epoch": 2,
        "threshold": 0.4,
        "hardware": "2 CPU cores (x86_64)",
        "strategy": "one device, CPU:0",
        "command": "keras-pneumo train x --data /home/somebody/data",
        "versions": {"keras_pneumo": "0.1.0", "keras": "3.15.1"},
        "weights_sha256": {name: sha256_file(folder / name) for name in ("best.weights.h5", "best.safetensors")},
    }
    if learned:
        rows = [[f"1.2.3.{n}", patient, "a" * 64, "b" * 64, "0f", "train", 0, 0]
                for n, patient in enumerate((HOSPITAL_NUMBER, KEYED))]  # fmt: skip
        record["learned_images_sha256"] = write_table(
            folder / "learned_images.csv", pd.DataFrame(rows, columns=list(COLUMNS))
        )
    write_json(folder / "experiment.json", with_content_hash(record | changes))
    return folder


def write_evaluation(folder, team="keras-pneumo shared"):
    """Writes what evaluate leaves, as far as a card reads it: 22 images scored, 3 more left out."""
    (folder / "submission").mkdir(parents=True)
    (folder / "submission/submission.json").write_text(json.dumps({"format": 1, "team": team}))
    BOARD.assign(images=22, patients=20, positives=9, auroc=0.77, auroc_low=0.6, auroc_high=0.9).to_csv(
        folder / "board.csv", index=False
    )
    SUBGROUPS.to_csv(folder / "subgroups.csv", index=False)
    pd.DataFrame({"image_id": [f"i{n}" for n in range(25)]}).to_csv(folder / "contamination.csv", index=False)
    return folder


def write_detector(folder):
    """Writes a detector's files, in small, with the table of its member's images as join writes it."""
    member = folder / "classifier_0"
    member.mkdir(parents=True)
    rows = [["sha256:" + "0" * 32, "sha256:" + "1" * 32, "a" * 64, "b" * 64, "0f", "train", 0, 0]]
    digest = write_table(member / "learned_images.csv", pd.DataFrame(rows, columns=list(COLUMNS)))
    experiment = CLASSIFIER.replace(name="shared", encoder="resnet18", weights="random", image_size=64)
    of_member = {"format": 1, "experiment": experiment.model_dump(mode="json"), "patients": "table"}
    write_json(member / "experiment.json", of_member | {"learned_images_sha256": digest})
    (member / "network_0.safetensors").write_bytes(b"weights for PyTorch")
    (folder / "postprocess.json").write_text("{}")
    names = ["postprocess.json", *(f"classifier_0/{path.name}" for path in sorted(member.iterdir()))]
    counts = {"images": 40, "patients": 34, "true_positive": 8, "false_positive": 4, "false_negative": 7}
    record = {
        "format": 1,
        "name": "joined",
        "use": "Research use only.",
        "versions": {"keras_pneumo": "0.1.0"},
        "classifiers": ["classifier_0"],
        "segmenters": ["classifier_0"],
        "probability_source": "classifier",
        "outline_area": 1,
        "threshold": 0.37,
        "synthetic": False,
        "split_sha256": "5" * 64,
        "calibration": {"kind": "temperature", "temperature": 1.2, "knots": []},
        "validation": {"counts": counts | {"true_negative": 21}},
        "files": {name: sha256_bytes((folder / name).read_bytes()) for name in names},
    }
    write_json(folder / "detector.json", with_content_hash(record))
    (folder / "board").mkdir()
    BOARD.assign(team=["keras-pneumo joined (joined)", "Majority", "Times imaged"]).to_csv(
        folder / "board/board.csv", index=False
    )
    return folder


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f6173855"
    "0000000049454e44ae426082"
)
"""One black pixel."""
