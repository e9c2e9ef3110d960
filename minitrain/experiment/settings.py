"""The settings of an experiment: types, ranges, defaults, and where they come from.

A flag on the command line overrides the experiment's TOML file, and the file overrides
the defaults below. Nothing here imports torch: a wrong setting is told at once.
"""

import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from minitrain.rule import check_nesterov
from minitrain.system.errors import SettingsError, did_you_mean


class Settings(BaseModel):
    """A section of the settings; the title of a subclass is its name in the file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error, type(self))) from None


def _printable(path: Any) -> Any:
    """Refuse no name at all, which is not the current folder, and an odd one.

    Control characters act on a terminal, and some bytes are no text.

    Raises:
        ValueError: The message has the name, escaped.
    """
    if path == "":
        raise ValueError("an empty value is given")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in str(path)):
        raise ValueError(f"{str(path)!r} has characters that cannot be printed")
    return path


LARGEST = 1e6
"""Of a number in the rule: with more the first step leaves float32."""

Count = Annotated[int, Field(ge=1, le=10**9)]
Width = Annotated[int, Field(ge=1, le=65_536)]
PrintablePath = Annotated[Path, Field(strict=False), BeforeValidator(_printable)]


class DataSettings(Settings, title="data"):
    name: Literal["auto", "mnist", "fashion-mnist", "digits"] = "auto"
    """Data set. auto: MNIST, or else `digits`, drawn here, if MNIST cannot be had."""
    root: PrintablePath | None = None
    """Folder of the data sets; by default $MINITRAIN_DATA, or else a cache folder."""
    batch_size: Count = 64
    """Samples in a batch: at most those that there are to train on."""


class ModelSettings(Settings, title="model"):
    name: Literal["softmax", "mlp", "cnn", "fast-cnn"] = "mlp"
    """Softmax regression, a multilayer perceptron, or a convolutional network: the
    cnn is the most accurate, the fast-cnn nearly so in a tenth of the time."""
    hidden: Annotated[tuple[Width, ...], Field(strict=False)] = (128,)
    """Width of each hidden layer of the mlp."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a hidden unit is left out of a training step; mlp and cnn."""


class LossSettings(Settings, title="loss"):
    """The cross-entropy of softmax(logits) with the targets."""

    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each target that is spread evenly over all classes."""


class OptimizerSettings(Settings, title="optimizer"):
    """theta <- theta - lr * grad L(theta), with torch.optim.SGD's options."""

    lr: Annotated[float, Field(gt=0, le=LARGEST)] = 0.05
    """Learning rate: the largest of the schedule."""
    momentum: Annotated[float, Field(ge=0, le=LARGEST)] = 0.9
    """Fraction of the momentum buffer kept at each step."""
    dampening: Annotated[float, Field(ge=-LARGEST, le=LARGEST)] = 0.0
    """Fraction of the gradient kept out of the momentum buffer."""
    weight_decay: Annotated[float, Field(ge=0, le=LARGEST)] = 5e-4
    """Multiple of theta added to the gradient."""
    nesterov: bool = False
    """Step along the gradient plus momentum times the buffer."""

    @model_validator(mode="after")
    def _nesterov_is_possible(self) -> Self:
        check_nesterov(self.nesterov, self.momentum, self.dampening)
        return self


class ScheduleSettings(Settings, title="schedule"):
    name: Literal["constant", "step", "cosine", "one-cycle"] = "one-cycle"
    """How the learning rate changes over the run."""
    warmup: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Steps over which the learning rate first rises linearly."""


class LogSettings(Settings, title="log"):
    every: Count = 10
    """Steps between two points in TensorBoard; the first and last are always there."""


class CheckpointSettings(Settings, title="checkpoint"):
    every: Count = 5000
    """Steps between two checkpoints; there is one at the end of every epoch, too."""
    keep: Annotated[int, Field(ge=2, le=10**9)] = 2
    """How many of the newest are kept, besides the one with the best test accuracy."""


class InstrumentSettings(Settings, title="instruments"):
    budget: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of the training time that the instrument panel may take; 0: no panel."""
    look: Annotated[int | None, Field(ge=0, le=10**9)] = None
    """Steps between two looks at gradient and update; 0 is never. By default this and
    the next three are measured once, at the start, to keep within the budget."""
    audit: Annotated[int | None, Field(ge=0, le=10**9)] = None
    """Steps between two step audits: one more forward pass each."""
    truth: Annotated[int | None, Field(ge=0, le=10**9)] = None
    """Steps between two truth tests: two more forward passes for each parameter."""
    noise: Annotated[int | None, Field(ge=0, le=10**9)] = None
    """Steps between two measurements of the gradient noise scale."""
    sharpness: bool = False
    """Measure the largest eigenvalue of the Hessian after every epoch."""
    histograms: bool = False
    """Draw a histogram of each parameter's gradient after every epoch."""


class Config(Settings):
    """Train a network by stochastic gradient descent and log how it went.

    An EXPERIMENT can stand first: a TOML file with the settings below, which flags
    override. It is given by its path, or where this has no extension and no slash, it
    is an experiment that comes with minitrain. Without arguments a multilayer
    perceptron is trained on MNIST.
    """

    run_dir: PrintablePath | None = None
    """Folder of this run; by default a fresh one under runs/."""
    resume: bool = False
    """Continue the run in run-dir from its newest intact checkpoint."""
    allow_changes: bool = False
    """Resume even where settings that change the result have changed."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Determines the initial weights and the order of the data."""
    epochs: Count = 5
    """Passes over the training data."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ...; auto takes an accelerator where there is one."""
    threads: Count | None = None
    """Threads on the CPU: by default one, or all cores for the cnn, whose steps are
    long enough to be shared. The last bits of a result depend on them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass; the parameters are float32 either way."""
    clip_norm: Annotated[float | None, Field(gt=0)] = None
    """Gradients longer than this are scaled down to it."""
    accumulate: Count = 1
    """Batches whose gradients are averaged into one step."""
    debug: bool = False
    """Show the traceback of an error."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    log: LogSettings = LogSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    instruments: InstrumentSettings = InstrumentSettings()

    @model_validator(mode="after")
    def _resume_has_a_directory(self) -> Self:
        if self.resume and self.run_dir is None:
            raise ValueError("resume needs --run-dir, the directory of the run")
        return self

    @field_validator("device")
    @classmethod
    def _device_has_a_name(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
            raise ValueError(f"{device!r} is none of auto, cpu, mps, cuda, cuda:1, ...")
        return device


RULES = {
    "bool_type": "must be a valid boolean",
    "finite_number": "must be a finite number",
    "float_type": "must be a valid number",
    "greater_than": "must be greater than {gt:.15g}",
    "greater_than_equal": "must be greater than or equal to {ge:.15g}",
    "int_type": "must be a valid integer",
    "less_than": "must be less than {lt:.15g}",
    "less_than_equal": "must be less than or equal to {le:.15g}",
    "literal_error": "must be {expected}",
    "model_type": "must be a section",
    "path_type": "must be a path",
    "string_type": "must be a valid string",
    "tuple_type": "must be a list",
}
"""What each of pydantic's errors says to somebody who does not know Python's types."""


def _explain(error: ValidationError, settings: type[Settings]) -> str:
    """Return a line per bad setting: its key, its value, and the rule it breaks."""
    lines = []
    for fault in error.errors():
        path = [settings.model_config.get("title"), *map(str, fault["loc"])]
        key = ".".join(part.replace("_", "-") for part in path if part)
        context = fault.get("ctx", {})
        if fault["type"] == "extra_forbidden":
            near = did_you_mean(key, keys(Config))
            lines.append(f"{key}: there is no such setting{near}")
        elif fault["type"] == "value_error":
            lines.append(f"{key}: {context['error']}" if key else str(context["error"]))
        else:
            rule = RULES.get(fault["type"])
            rule = rule.format(**context) if rule else fault["msg"]
            lines.append(f"{key} = {fault['input']!r}: {rule}")
    return "; ".join(lines)


def keys(settings: type[Settings], prefix: str = "") -> list[str]:
    """Return every key of a section and its subsections, as on the command line."""
    found = []
    for name, field in settings.model_fields.items():
        key, kind = prefix + name.replace("_", "-"), field.annotation
        found.append(key)
        if isinstance(kind, type) and issubclass(kind, Settings):
            found += keys(kind, key + ".")
    return found
