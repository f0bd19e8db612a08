"""Handing a run on: export, push, unpack, card, track. TensorFlow is imported when one of them runs, not before."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_pneumo.cli.console import say, warn
from keras_pneumo.cli.train import SetOption
from keras_pneumo.cli.workers import run_folder
from keras_pneumo.config import Experiment, read_experiment, with_settings
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import hushed, import_tensorflow
from keras_pneumo.storage.files import file_lock, write_bytes

if TYPE_CHECKING:
    from keras_pneumo.inference.export import Format

FORMATS = ("torch", "savedmodel", "onnx", "litert", "zip")

SharedArgument = Annotated[
    Path, typer.Argument(metavar="RUN|DETECTOR", parser=run_folder, help="Its folder, zip, or hf://OWNER/NAME.")
]
LicenceOption = Annotated[
    str, typer.Option("--licence", help="Licence of the weights, as hubs name it: cc-by-nc-4.0. Default: none given.")
]
EvaluationOption = Annotated[
    list[Path] | None, typer.Option("--evaluation", help="Folder that evaluate wrote, for the card; repeatable.")
]
PredictionsOption = Annotated[
    bool, typer.Option("--with-predictions", help="Also the predictions, with the image id in each row.")
]


def export_command(
    source: Annotated[Path, typer.Argument(metavar="RUN", parser=run_folder, help="A run, or an experiment file.")],
    out: Annotated[Path, typer.Option("--out", help="The new file, or for savedmodel the new folder.")],
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "torch",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Of an experiment: ImageNet weights, or a safetensors file.")
    ] = None,
    settings: SetOption = None,
    licence: LicenceOption = "",
    evaluations: EvaluationOption = None,
    with_predictions: PredictionsOption = False,
) -> None:
    """Export a run's best weights, checked on test images against the run itself; or all of it as one zip.

    torch: safetensors under PyTorch's names, for torchvision's ResNet or smp.Unet with load_state_dict(strict=True).
    savedmodel, onnx (needs the extra `export`), litert: the whole network, float32 (batch, height, width, 1) in [0, 1]
    to logits. An experiment file in place of a run gives its starting weights (torch only), so that two teams can
    start from the same. zip: what loading a run or a detector needs, with its model card and a hash of every file;
    kp.load_run takes it as it is, and `keras-pneumo unpack` makes a folder of it.

    Example (in a checkout of the project): `keras-pneumo export experiments/smallest_classifier.py
    --out start.safetensors`
    """
    if form not in FORMATS:
        raise PneumoError(f"There is no format {form!r}. Choose one of {', '.join(FORMATS)}.")
    if form != "zip" and (licence or evaluations or with_predictions):
        raise PneumoError("--licence, --evaluation and --with-predictions are for --format zip. Leave them out.")
    if form == "zip":
        if weights is not None or settings:
            raise PneumoError("--weights and --set are for experiments, not for --format zip. Leave them out.")
        _export_zip(source, out, licence, evaluations or [], with_predictions)
        return
    if source.is_file() and form != "torch":
        raise PneumoError(f"{source} is an experiment: only its starting weights can be exported. Give --format torch.")
    if source.is_dir() and settings:
        raise PneumoError("--set changes an experiment; a run has its settings. Leave it out.")
    experiment = with_settings(read_experiment(source), settings or ()) if not source.is_dir() else None
    with file_lock(out):
        _export(source, experiment, out, form, weights)


def _export(source: Path, experiment: Experiment | None, out: Path, form: str, weights: Path | None) -> None:
    """Export a run, or an experiment's starting weights, with the lock of the new file's name."""
    import_tensorflow(for_command=True)
    from keras_pneumo.inference.export import BOUND, export_network, export_run
    from keras_pneumo.inference.run import read_run
    from keras_pneumo.models.imagenet import PRETRAINING
    from keras_pneumo.training.trainer import declared_start, starting_network

    chosen: Format = form  # type: ignore[assignment]
    with hushed():
        if experiment is None:
            exported = export_run(read_run(source), chosen, out)
        else:
            network = starting_network(experiment, weights, on_loaded=lambda parts: say(parts.sentence(str(weights))))
            seen = declared_start(experiment, weights)
            exported = export_network(network, experiment, chosen, out, {PRETRAINING: seen})
    say(f"The logits differ by {exported.difference:.1e} of the largest; up to {BOUND:.0e} is accepted.")
    say(str(exported.path))


def _export_zip(source: Path, out: Path, licence: str, evaluations: list[Path], with_predictions: bool) -> None:
    import_tensorflow(for_command=True)
    from keras_pneumo.sharing.archive import write_zip
    from keras_pneumo.sharing.packing import write_package

    with file_lock(out), tempfile.TemporaryDirectory() as temporary:
        package = write_package(source, Path(temporary) / "package", licence, evaluations, with_predictions)
        digest = write_zip(package, out)
    say(f"{len(package.files)} files of the {package.kind} {package.name}. SHA-256 of the zip: {digest}")
    say(str(out))


def unpack_command(
    source: Annotated[str, typer.Argument(metavar="ZIP|ADDRESS", help="A zip of export, or hf://OWNER/NAME.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder of the run or detector.")],
    sha256: Annotated[
        str, typer.Option("--sha256", help="Of the zip, as its sender has it; another one is refused.")
    ] = "",
) -> None:
    """Unpack a run or a detector that somebody handed on, and check every file by its hash.

    The new folder is one as train or join writes it, for all commands. An address on a hub needs the extra `hub`;
    hf://OWNER/NAME@REVISION is one commit, and without @REVISION the newest is taken and named.

    Example, after training: `keras-pneumo export runs/smallest_classifier --format zip --out classifier.zip &&
    keras-pneumo unpack classifier.zip --out runs/unpacked`
    """
    import_tensorflow(for_command=True)
    from keras_pneumo.sharing.archive import unpack_zip
    from keras_pneumo.sharing.hub import fetch, is_address, read_address
    from keras_pneumo.sharing.package import copy_package, require_new_folder
    from keras_pneumo.storage.files import sha256_file

    if is_address(source):
        if sha256:
            raise PneumoError("--sha256 is of a zip; an address is pinned by its commit. Write hf://OWNER/NAME@COMMIT.")
        require_new_folder(out)  # before anything is fetched
        fetched, address = fetch(read_address(source))
        package = copy_package(fetched, out)
        say(f"From {address}.")
    else:
        zip_file = Path(source)
        if sha256 and zip_file.is_file() and (found := sha256_file(zip_file)) != sha256.lower():
            raise PneumoError(f"{zip_file} has the SHA-256 {found}, not {sha256[:64]}. Get it again from its sender.")
        package = unpack_zip(zip_file, out)
    if package.synthetic:
        warn("It was trained on synthetic phantoms: it knows nothing of real radiographs.")
    say(f"The {package.kind} {package.name}: {len(package.files)} files, each as its hash says.")
    say(str(out))


def push_command(
    source: SharedArgument,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="hf://OWNER/NAME; it is made where there is none.")],
    licence: LicenceOption = "",
    evaluations: EvaluationOption = None,
    with_predictions: PredictionsOption = False,
    public: Annotated[bool, typer.Option("--public", help="Everybody may read a repository that is made now.")] = False,
) -> None:
    """Push a run or a detector to a model hub, with its model card; nothing that tells who a patient is goes with it.

    What goes: what loading needs, the card, and a list with the hash of every file. Not: checkpoints, radiographs,
    reports, the command line, names of patients. Log in with `hf auth login`; HF_ENDPOINT names another hub. Needs the
    extra `hub`.

    Example, after training: `keras-pneumo push runs/smallest_classifier hf://OWNER/NAME --licence cc-by-nc-4.0`
    """
    from keras_pneumo.sharing.hub import push, read_address, require_library

    where = read_address(address)
    require_library()
    import_tensorflow(for_command=True)
    from keras_pneumo.sharing.packing import write_package

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "package"
        package = write_package(source, folder, licence, evaluations or [], with_predictions, str(where))
        pushed = push(package, where, public)
    say(f"{len(package.files)} files of the {package.kind} {package.name}. kp.load_{package.kind} takes this address:")
    say(str(pushed))


def card_command(
    source: SharedArgument,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; default: it is printed.")] = None,
    licence: LicenceOption = "",
    evaluations: EvaluationOption = None,
) -> None:
    """Write the model card of a run or a detector: data, scores with intervals, baselines, limits, licence.

    It is made from the files of the run at the time, with each `--evaluation` in it, so it is never older than they
    are; push and export --format zip make one of their own.

    Example, after training: `keras-pneumo card runs/smallest_classifier --out card.md`
    """
    import_tensorflow(for_command=True)
    from keras_pneumo.sharing.card import model_card

    card = model_card(source, licence, evaluations or [])
    if out is None:
        say(card.rstrip("\n"))
    else:
        write_bytes(out, card.encode())
        say(str(out))


def track_command(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    log_to: Annotated[str, typer.Option("--log-to", help="mlflow, wandb, or both with a comma between them.")],
    log_radiographs: Annotated[
        bool, typer.Option("--log-radiographs", help="Also some test radiographs with outlines or heat maps.")
    ] = False,
) -> None:
    """Send a run's log, test scores and curves to MLflow or Weights & Biases; what they have is not sent again.

    `train --log-to` does the same while it trains. MLFLOW_TRACKING_URI and WANDB_MODE=offline say where to; needs the
    extra `tracking`.

    Example, after training: `keras-pneumo track runs/smallest_classifier --log-to mlflow`
    """
    from keras_pneumo.training.logs.tracking import chosen_trackers, track_run

    names = chosen_trackers(log_to)
    track_run(source, names, log_radiographs)
    say(f"{source} is in {' and '.join(names)}.")
