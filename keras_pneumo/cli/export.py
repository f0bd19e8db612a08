"""The command export: a run's network for PyTorch, TensorFlow, ONNX Runtime or LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_pneumo.cli.console import say
from keras_pneumo.cli.train import SetOption
from keras_pneumo.config import Experiment, read_experiment, with_settings
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import hushed, import_tensorflow
from keras_pneumo.storage.files import file_lock

if TYPE_CHECKING:
    from keras_pneumo.inference.export import Format

FORMATS = ("torch", "savedmodel", "onnx", "litert")


def export_command(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or an experiment file.")],
    out: Annotated[Path, typer.Option("--out", help="The new file, or for savedmodel the new folder.")],
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "torch",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Of an experiment: ImageNet weights, or a safetensors file.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Export a run's best weights, checked on test images against the run itself.

    torch: safetensors under PyTorch's names, for torchvision's ResNet or smp.Unet with load_state_dict(strict=True).
    savedmodel, onnx (needs the extra `export`), litert: the whole network, float32 (batch, height, width, 1) in [0, 1]
    to logits. An experiment file in place of a run gives its starting weights (torch only), so that two teams can
    start from the same.

    Example (in a checkout of the project): `keras-pneumo export experiments/smallest_classifier.py
    --out start.safetensors`
    """
    if form not in FORMATS:
        raise PneumoError(f"There is no format {form!r}. Choose one of {', '.join(FORMATS)}.")
    if source.is_file() and form != "torch":
        raise PneumoError(f"{source} is an experiment: only its starting weights can be exported. Give --format torch.")
    if source.is_dir() and settings:
        raise PneumoError("--set changes an experiment; a run has its settings. Leave it out.")
    experiment = with_settings(read_experiment(source), settings or ()) if not source.is_dir() else None
    with file_lock(out):
        _export(source, experiment, out, form, weights)


def _export(source: Path, experiment: Experiment | None, out: Path, form: str, weights: Path | None) -> None:
    """Export a run, or an experiment's starting weights, with the lock of the new file's name."""
    import_tensorflow()
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
