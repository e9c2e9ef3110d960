"""The settings that every run has: types, ranges and defaults.

A flag on the command line overrides the experiment's TOML file, the file overrides the
`SETTINGS` of an experiment's Python file, and these override the defaults below.
Nothing here imports torch: a wrong setting is reported at once.
"""

import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

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

    if TYPE_CHECKING:  # an experiment adds settings that no type checker knows

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error, type(self))) from None


def _printable(path: Any) -> Any:
    """Refuse no name at all, which is not the current folder, and an odd one.

    Control characters act on a terminal, and some bytes are not text.

    Raises:
        ValueError: The message has the name, escaped.
    """
    if path == "":
        raise ValueError("an empty value is given")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in str(path)):
        raise ValueError(f"{str(path)!r} has characters that cannot be printed")
    return path


LARGEST = 1e6
"""The largest number in the rule: with a larger one the first step leaves float32."""

Count = Annotated[int, Field(ge=1, le=10**9)]
PrintablePath = Annotated[Path, Field(strict=False), BeforeValidator(_printable)]


class DataSettings(Settings, title="data"):
    """Besides these, the keyword arguments of the experiment's `data`."""

    batch_size: Count = 64
    """Samples in a batch: at most those that there are to train on."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training samples that is held out, to choose the best model by."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that make the samples of an indexable data set; they change no bit."""


class ModelSettings(Settings, title="model"):
    """The keyword arguments of the experiment's `model`."""


class LossSettings(Settings, title="loss"):
    """The keyword arguments of the experiment's `loss`."""


class OptimizerSettings(Settings, title="optimizer"):
    """The keyword arguments of the experiment's `optimizer`, or those of SGD."""


class SGDSettings(OptimizerSettings, title="optimizer"):
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
    decay: Literal["all", "matrices"] = "all"
    """What weight decay pulls towards 0: matrices leaves out biases and norms, and
    whatever else has but one dimension."""

    @model_validator(mode="after")
    def _nesterov_is_possible(self) -> Self:
        check_nesterov(self.nesterov, self.momentum, self.dampening)
        return self


class ScheduleSettings(Settings, title="schedule"):
    name: Literal["constant", "step", "cosine", "one-cycle"] = "one-cycle"
    """How the learning rate changes over the run."""
    warmup: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Steps over which the learning rate first rises linearly."""


class StopSettings(Settings, title="stop"):
    patience: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Epochs without a new lowest validation loss after which a run ends; 0: never."""


class LogSettings(Settings, title="log"):
    every: Count = 10
    """Steps between two points in TensorBoard; the first and last are always there."""
    pictures: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Epochs between two drawings; 0: at the end alone."""


class CheckpointSettings(Settings, title="checkpoint"):
    every: Count = 5000
    """Steps between two checkpoints; there is one at the end of every epoch, too."""
    keep: Annotated[int, Field(ge=2, le=10**9)] = 2
    """How many of the newest are kept, besides the best one."""


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
    """The settings of a run; an experiment adds those of its own functions.

    A definition makes a subclass of it whose sections are whole: see
    `minitrain.experiment.definition`.
    """

    definition: ClassVar[Any] = None
    """The experiment; None is the built-in one."""

    if TYPE_CHECKING:  # sections are given as dictionaries, too

        def __init__(self, **values: Any) -> None: ...

    run_dir: PrintablePath | None = None
    """Folder of this run; by default a fresh one under runs/."""
    resume: bool = False
    """Continue the run in run-dir from its newest intact checkpoint."""
    allow_changes: bool = False
    """Resume even where settings that change the result have changed."""
    trust_code: bool = False
    """Resume a run by the code that it keeps in its folder `source`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Determines the initial weights and the order of the data."""
    epochs: Count = 5
    """Passes over the training data."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ...; auto takes an accelerator where there is one."""
    threads: Count | None = None
    """Threads on the CPU: by default one, or all cores where the steps are long enough
    to be shared. The last bits of a result depend on them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass; the parameters are float32 either way."""
    clip_norm: Annotated[float | None, Field(gt=0)] = None
    """Gradients longer than this are scaled down to it."""
    accumulate: Count = 1
    """Batches whose gradients are averaged into one step."""
    shards: Annotated[int, Field(ge=1, le=4096)] = 1
    """Slices of each batch, with a random stream each, for up to as many processes that
    torchrun starts; a power of two. The number of processes changes no bit."""
    ema: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Keep a moving average of the weights too: average <- ema * average + (1 - ema) *
    theta after every step, such as 0.999; it is evaluated and saved beside them."""
    debug: bool = False
    """Show the traceback of an error."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = SGDSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    stop: StopSettings = StopSettings()
    log: LogSettings = LogSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    instruments: InstrumentSettings = InstrumentSettings()

    @model_validator(mode="after")
    def _resume_has_a_directory(self) -> Self:
        if self.resume and self.run_dir is None:
            raise ValueError("resume needs --run-dir, the directory of the run")
        return self

    @field_validator("shards")
    @classmethod
    def _shards_are_a_power_of_two(cls, shards: int) -> int:
        if shards & (shards - 1):
            raise ValueError(f"{shards} is not a power of two: 1, 2, 4, ...")
        return shards

    @field_validator("device")
    @classmethod
    def _device_has_a_name(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
            raise ValueError(
                f"{device!r} is not one of auto, cpu, mps, cuda, cuda:1, ..."
            )
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
            title = settings.model_config.get("title")
            near = did_you_mean(key, keys(settings, f"{title}." if title else ""))
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
