"""The experiment, declared: everything that decides a training, frozen, validated, and to and from JSON.

An experiment file (``experiments/*.py``) holds a docstring and ``EXPERIMENT = base.replace(...)`` with only what
differs from :data:`CLASSIFIER` or :data:`SEGMENTER`. The resolved experiment is written into the run folder; it is
enough to repeat the run.
"""

from __future__ import annotations

import ast
import difflib
import importlib.metadata
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import read_json
from keras_pneumo.storage.tables import visible

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown names and values that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A copy with ``changes``, validated again.

        Raises:
            PneumoError: an unknown name, or a value outside its range; the message names each.
        """
        return validated(type(self), {**self.model_dump(), **changes}, type(self).__name__)


SettingsT = TypeVar("SettingsT", bound=Settings)


class Entries(Settings):
    """Those entries of a record, a detector's or a manifest, whose values are checked; others are left as they are."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Augmentation(Settings):
    """How a training image and its mask are changed; each range is drawn from uniformly, anew for every draw.

    The defaults are mild, since a radiograph has a known pose; :data:`NO_AUGMENTATION` changes nothing.

    Example:
        >>> kp.Augmentation(rotate=5).replace(flip=0).rotate
        5.0
    """

    flip: Probability = 0.5
    """Probability of mirroring left and right."""
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Largest shift along either axis, as a fraction of the side."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest relative change of size: 0.1 zooms by 0.9 to 1.1."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest rotation in degrees, either way."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest value added to pixels in [0, 1], either way."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest relative change of the distance from the image's mean: 0.2 multiplies it by 0.8 to 1.2."""
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest change of the exponent in log space: 0.2 raises pixels to a power of 0.82 to 1.22."""
    noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest standard deviation of Gaussian noise added to pixels in [0, 1]; each image draws its own from 0 up."""
    clahe: Probability = 0.0
    """Probability of contrast-limited adaptive histogram equalisation (cv2, clip limit 2, 8x8 tiles)."""


NO_AUGMENTATION = Augmentation(flip=0, shift=0, scale=0, rotate=0, brightness=0, contrast=0, gamma=0, noise=0, clahe=0)


RECIPE = r"^[\s\d.*+]*(?i:bce|dice|focal|lovasz)(\s*\+[\s\d.*]*(?i:bce|dice|focal|lovasz))*\s*$"
"""The pattern of a loss recipe; :func:`keras_pneumo.training.losses.parse_recipe` reads it."""


class Experiment(Settings):
    """One training of one network: everything that decides it. The defaults are those of the ResNet50 classifier.

    ``CLASSIFIER`` and ``SEGMENTER`` are what the two tasks' experiments start from.

    Example:
        >>> mine = kp.CLASSIFIER.replace(name="mine", epochs=20, learning_rate=3e-4)
        >>> mine.task, mine.encoder, mine.epochs
        ('classifier', 'resnet50', 20)
        >>> kp.SEGMENTER.loss
        '3 bce + 1 dice + 4 focal'
        >>> kp.CLASSIFIER.replace(encoder="resnet7")
        Traceback (most recent call last):
        keras_pneumo.errors.PneumoError: Experiment cannot be used. encoder: ...
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    """Names the run folder: lower case letters, digits, and ``_ . -``."""
    task: Literal["classifier", "segmenter"] = "classifier"
    encoder: Literal["resnet18", "resnet34", "resnet50"] = "resnet50"
    weights: Literal["imagenet_v1", "imagenet_v2", "random"] = "imagenet_v1"
    """The weights that the encoder starts from; torchvision's names for the two ImageNet sets."""
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] = 512
    """Height and width of the input, in pixels."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the pooled features set to 0 before the image-level logit."""
    attention: Literal["scse"] | None = None
    """Segmenter: the decoder's attention."""
    image_head: bool = False
    """Segmenter: whether it also has an image-level logit (is there any pneumothorax?), from its deepest features."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    deterministic: bool = True
    """Whether only operations are used that give the same result each time, so that one seed gives the same weights on
    the same machine; False may be faster."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which of the split's folds is the validation set."""

    epochs: Annotated[int, Field(ge=1)] = 10
    """Epochs with the whole network learning."""
    frozen_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs before these with the encoder's weights and BatchNorm statistics frozen."""
    global_batch_size: Annotated[int, Field(ge=2)] = 16
    positive_rate: tuple[tuple[int, Probability], ...] = ()
    """Share of positives among an epoch's draws as (first epoch, rate) steps; empty: every image once."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches that a batch is divided into, to save memory (gradient accumulation). The gradient is that of the
    whole batch, and so are the weights, except that BatchNorm takes its statistics from each micro-batch; see
    ``frozen_batchnorm``."""
    positive_weight: Positive = 1.0
    """Classifier: weight of a positive image in the loss; a negative weighs 1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Classifier: s makes the labels s/2 and 1 - s/2."""
    loss: Annotated[str, Field(pattern=RECIPE)] = "3 bce + 1 dice + 4 focal"
    """Segmenter: a weighted sum of bce, dice, focal and lovasz."""
    image_loss_weight: NonNegative = 1.0
    """Segmenter with an image-level head: weight of the head's cross-entropy beside ``loss``."""
    augmentation: Augmentation = Augmentation()
    crop: Annotated[int, Field(ge=32, multiple_of=32)] | None = None
    """Segmenter: side of the square that is cut out of each training image at random; None: the whole image."""
    frozen_batchnorm: bool = False
    """Whether BatchNorm keeps the statistics, scale and shift that it starts with."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    """The highest rate of the head."""
    depth_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each of ResNet's five stages learns at the next deeper one's rate times this; 1: one rate for all."""
    frozen_learning_rate: Positive | None = None
    """The highest rate while the encoder is frozen; none: ``learning_rate``."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay, kept off BatchNorm and biases."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradient."""
    schedule: Literal["one_cycle", "cosine", "warm_restarts", "plateau", "constant"] = "one_cycle"
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the steps in which the one-cycle rate rises."""
    start_divisor: Positive = 25.0
    """The one-cycle policy starts at the highest rate divided by this."""
    final_divisor: Positive = 1e4
    """... and ends at its start divided by this."""
    restart_epochs: Annotated[int, Field(ge=1)] = 5
    """Warm restarts: epochs of the first cosine."""
    restart_factor: Annotated[int, Field(ge=1)] = 2
    """... each further one is so many times as long as the one before."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Plateau: the rate is multiplied by this when the validation score has not risen ..."""
    plateau_patience: Annotated[int, Field(ge=0)] = 2
    """... for more than so many epochs."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of the exponential moving average of the weights that is validated and kept; 0: no average."""
    swa_epochs: Annotated[int, Field(ge=0)] = 0
    """Stochastic weight averaging: the weights at the ends of the last so many epochs are averaged; 0: no average."""
    top_k: Annotated[int, Field(ge=1)] = 1
    """How many of the best epochs' weights are kept and predict together."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Training stops when the validation score (the one that is reported) has not risen for so many epochs."""
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = "auto"
    """``auto`` is mixed_float16 on GPUs with tensor cores, float32 elsewhere."""
    flip_averaging: bool = True
    """Whether prediction averages the probabilities of the image and its mirror image."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        starts = [start for start, _ in self.positive_rate]
        if starts and (starts[0] != 0 or starts != sorted(set(starts))):
            raise ValueError("positive_rate needs rising first epochs that begin with 0, such as ((0, 0.8), (10, 0.4))")
        if self.weights == "imagenet_v2" and self.encoder != "resnet50":
            raise ValueError("imagenet_v2 exists for resnet50 only; use imagenet_v1")
        fields = type(self).model_fields
        of_other_task = CLASSIFIER_ONLY if self.task == "segmenter" else SEGMENTER_ONLY
        if unused := [name for name in of_other_task if getattr(self, name) != fields[name].default]:
            raise ValueError(f"{', '.join(unused)} cannot be set for a {self.task}; leave it out or change the task")
        if self.crop is not None and self.crop > self.image_size:
            raise ValueError(f"crop {self.crop} is larger than image_size {self.image_size}")
        if self.image_loss_weight != 1 and not self.image_head:
            raise ValueError("image_loss_weight needs image_head=True")
        if self.accumulation > self.global_batch_size:
            batch = self.global_batch_size
            raise ValueError(f"accumulation {self.accumulation} is more than the {batch} images of a batch")
        if self.swa_epochs > self.epochs:
            raise ValueError(f"swa_epochs {self.swa_epochs} is more than the {self.epochs} epochs")
        if self.swa_epochs and self.patience is not None:
            raise ValueError("swa_epochs averages the last epochs, so patience must not end the training before them")
        return self

    @property
    def total_epochs(self) -> int:
        """Epochs in all: those with the encoder frozen, then the others."""
        return self.frozen_epochs + self.epochs


SEGMENTER_ONLY = ("attention", "image_head", "loss", "image_loss_weight", "crop")
CLASSIFIER_ONLY = ("positive_weight", "label_smoothing")
"""Settings of one task only; for the other they must stay as they are."""

CLASSIFIER = Experiment(name="classifier")
"""The base of the classifier's experiments."""

SEGMENTER = Experiment(
    name="segmenter", task="segmenter", image_head=True, positive_rate=((0, 0.8), (5, 0.6), (8, 0.4)), epochs=12
)
"""The base of the segmenter's experiments: a U-Net on ResNet50 with an image-level head."""


def validated(model: type[SettingsT], values: dict[str, Any], where: str) -> SettingsT:
    """``values`` as ``model``, or a :class:`PneumoError` with one sentence per fault, naming ``where``."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = []
        for fault in error.errors():
            name = ".".join(map(str, fault["loc"]))
            reason = fault["msg"].removeprefix("Value error, ")
            given = "" if fault["type"] in ("missing", "value_error") else f" (given: {fault['input']!r:.80})"
            if fault["type"] == "extra_forbidden":
                reason, given = f"there is no such setting{_suggestion(name, model)}", ""
            elif given and not issubclass(model, Entries):
                setting, words = _setting_of(fault["loc"], model)
                if words:
                    name, reason = setting, f"{words} is expected"
            problems.append(f"{visible(name[:80])}: {reason}{given}" if name else reason)
        problems = list(dict.fromkeys(problems))
        more = f"; and {len(problems) - 12:,} more" if len(problems) > 12 else ""
        raise PneumoError(f"{where} cannot be used. " + "; ".join(problems[:12]) + f"{more}.") from None


IN_WORDS = {
    "loss": "a weighted sum of bce, dice, focal and lovasz, such as '3 bce + 1 dice + 4 focal',",
    "name": "a name of at most 64 lower case letters, digits and _ . -, a letter or a digit first,",
    "positive_rate": "a list of pairs, first epoch and rate from 0 to 1, such as [[0, 0.8], [10, 0.4]],",
}
"""What is allowed, by setting, where its type does not say it in words."""


def _setting_of(place: tuple[int | str, ...], model: type[Settings]) -> tuple[str, str]:
    """The setting that a fault's place is in, and :func:`allowed` of it; '' where there are no words."""
    names: list[str] = []
    for part in place:
        field = model.model_fields.get(str(part))
        if field is None:
            break
        names.append(str(part))
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            model = field.annotation
            continue
        return ".".join(names), allowed(model, str(part))
    return "", ""


def allowed(model: type[Settings], name: str) -> str:
    """What a setting takes, in words: ``a whole number from 32 to 1024, a multiple of 32``; '' where none are known."""
    field = model.model_fields[name]
    return IN_WORDS.get(name) or _in_words(field.annotation, field.metadata)


def _in_words(kind: Any, limits: Sequence[Any] = ()) -> str:
    """A type in words, with the limits of its numbers."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_words(inner[0], inner[1].metadata)
    if origin is Literal:
        *others, last = map(repr, inner)
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (Union, UnionType):
        parts = [_in_words(part) for part in inner]
        return " or ".join(parts) if all(parts) else ""
    if kind is type(None):
        return "none"
    if kind is bool:
        return "true or false"
    if kind not in (int, float):
        return ""
    keys = ("ge", "gt", "le", "lt", "multiple_of")
    given = (next((getattr(limit, key) for limit in limits if hasattr(limit, key)), None) for key in keys)
    low, above, high, below, step = given
    words = "a whole number" if kind is int else "a number"
    if low is not None:
        words += f" from {low:g}" + (f" to {high:g}" if high is not None else " up" if below is None else "")
    elif above is not None:
        words += f" above {above:g}" + (f", at most {high:g}" if high is not None else "")
    if below is not None and below < 2**31:
        words += f", below {below:g}"
    elif below is not None:
        words += " up"
    return f"{words}, a multiple of {step}," if step is not None else words


OTHER_NAMES = {
    "lr": "learning_rate", "batch": "global_batch_size", "batch_size": "global_batch_size", "bs": "global_batch_size",
    "wd": "weight_decay", "size": "image_size", "backbone": "encoder", "scheduler": "schedule", "amp": "precision",
    "grad_accum": "accumulation", "gradient_accumulation": "accumulation", "clip": "clip_norm", "opt": "optimizer",
    "pretrained": "weights", "tta": "flip_averaging", "early_stopping": "patience", "swa": "swa_epochs",
}  # fmt: skip
"""What other programs call a setting."""


def setting_names(model: type[Settings]) -> list[str]:
    """The names of all settings, those of groups within as ``group.name``."""
    names = []
    for name, field in model.model_fields.items():
        group = field.annotation if isinstance(field.annotation, type) else None
        if group is not None and issubclass(group, Settings):
            names += [f"{name}.{inner}" for inner in group.model_fields]
        else:
            names.append(name)
    return names


def _suggestion(name: str, model: type[Settings]) -> str:
    """A question with the setting that was perhaps meant; '' where none is near."""
    names = setting_names(model)
    ends = {each.rpartition(".")[2]: each for each in reversed(names)}
    meant = OTHER_NAMES.get(name.lower()) or ends.get(name.rpartition(".")[2])
    near = [meant] if meant in names else difflib.get_close_matches(name, names, 1)
    return f"; did you mean {near[0]}?" if near else ""


def setting_field(name: str) -> FieldInfo:
    """The field of an experiment's setting, of a group's as ``group.name``."""
    group, _, inner = name.rpartition(".")
    model = Experiment.model_fields[group].annotation if group else Experiment
    assert isinstance(model, type)
    assert issubclass(model, Settings)
    return model.model_fields[inner]


def number_kind(name: str) -> type[int] | type[float] | None:
    """Whether a setting is a whole number (int) or any (float), none beside it allowed or not; None: no number."""
    kinds: list[Any] = [setting_field(name).annotation]
    while kinds:
        kind = kinds.pop()
        if kind is int:
            return int
        if kind is float:
            return float
        if get_origin(kind) in (Union, UnionType):
            kinds += get_args(kind)
        elif get_origin(kind) is Annotated:
            kinds.append(get_args(kind)[0])
    return None


def with_settings(experiment: Experiment, texts: Sequence[str], where: str = "--set") -> Experiment:
    """The experiment with some settings changed, each given as a text such as ``augmentation.flip=0``.

    Values are read as JSON (``3e-4``, ``true``, ``null``, ``[[0, 0.5]]``), or as a text where they are none; ``none``,
    ``yes`` and ``no`` are understood too. Of two texts for one setting the last counts. ``where`` is what a refusal
    names as their origin.

    Raises:
        PneumoError: a text has no value, names no setting, or a value outside of what is allowed.
    """
    names = setting_names(type(experiment))
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not equals or not value:
            raise PneumoError(f"{where} {text} has no value. Write it as learning_rate=3e-4.")
        if name not in names:
            raise PneumoError(
                f"{where} {text}: there is no setting {name}{_suggestion(name, type(experiment)) or '.'} "
                f"There are: {', '.join(names)}."
            )
        group, _, inner = name.rpartition(".")
        if group:
            changes.setdefault(group, getattr(experiment, group).model_dump())[inner] = _value_of(value)
        else:
            changes[name] = _value_of(value)
    return validated(type(experiment), {**experiment.model_dump(), **changes}, where) if changes else experiment


def _value_of(text: str) -> Any:
    words = {"none": None, "yes": True, "no": False, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_experiment(path: Path) -> Experiment:
    """The experiment of a Python file (its ``EXPERIMENT``), a run's ``experiment.json``, or a run folder.

    A Python file is run, as any program is: open only those you trust. A name alone (``demo_classifier``) is one of
    :func:`known_experiments`.

    Raises:
        PneumoError: there is no such file or name, or it declares no valid experiment.
    """
    if path.is_dir():
        path = path / "experiment.json"
    if not path.is_file():
        known = known_experiments()
        if str(path) not in known:
            near = difflib.get_close_matches(path.stem, known, 1, 0.6)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise PneumoError(
                f"There is no experiment {path}.{meant} Name a file, a run's experiment.json, or one that keras-pneumo "
                "experiments lists."
            )
        path = known[str(path)].file
    if path.suffix == ".json":
        return _read_json(path)
    try:
        experiment = runpy.run_path(str(path)).get("EXPERIMENT")
    except PneumoError as error:
        raise PneumoError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        raise PneumoError(f"{path} could not be run: {type(error).__name__}: {error}. Mend the file.") from error
    if not isinstance(experiment, Experiment):
        raise PneumoError(f"{path} declares no EXPERIMENT; write EXPERIMENT = base.replace(name=...).")
    return experiment


class KnownExperiment(NamedTuple):
    """An experiment that comes with the program, and what its docstring says of it."""

    file: Path
    question: str
    """The docstring's first line."""
    needs: str
    """The docstring's line ``Needs: ...``."""
    result: str
    """The docstring's line ``Result: ...``."""


def known_experiments() -> dict[str, KnownExperiment]:
    """The experiments that come with the program, by name: of the checkout, or else those that were installed."""
    files = list((Path(__file__).parents[1] / "experiments").glob("*.py"))
    if not files:
        try:
            installed = importlib.metadata.files("keras-pneumo") or []
        except importlib.metadata.PackageNotFoundError:
            installed = []
        files = [
            Path(str(file.locate())) for file in installed if file.parent.name == "experiments" and file.suffix == ".py"
        ]
    return {file.stem: _known(file) for file in sorted(files) if file.is_file()}


def _known(file: Path) -> KnownExperiment:
    """What the docstring of a file says; the file is not run."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    lines = dict(line.split(": ", 1) for line in text.splitlines() if line.startswith(("Needs: ", "Result: ")))
    return KnownExperiment(file, text.partition("\n")[0], lines.get("Needs", ""), lines.get("Result", ""))


def _read_json(path: Path) -> Experiment:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise PneumoError(f"{path} could not be read as JSON: {error}. Copy the file again.") from None
    if isinstance(values, dict) and "experiment" in values:
        values = values["experiment"]  # a run's record holds the experiment beside versions and hashes
    if not isinstance(values, dict):
        raise PneumoError(f"{path} holds no experiment. Name a file of experiments/ or a run's experiment.json.")
    return validated(Experiment, values, str(path))
