"""The settings of an experiment: types, ranges, defaults, and where they come from.

A flag on the command line overrides the experiment's TOML file, and the file overrides
the defaults below. Nothing here imports torch: a wrong setting is told at once.
"""

import difflib
import functools
import re
import stat
import tomllib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
import tyro
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from minitrain.errors import SettingsError

MAX_BYTES = 1_000_000
"""Of a settings file: more than any has, and less than anybody has to wait for."""


def _printable(path: Path) -> Path:
    """Refuse control characters, which act on a terminal, and bytes that are no text.

    Raises ValueError with the name, escaped.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in str(path)):
        raise ValueError(f"{str(path)!r} has characters that cannot be printed")
    return path


Width = Annotated[int, Field(ge=1, le=65_536)]
PrintablePath = Annotated[Path, Field(strict=False), AfterValidator(_printable)]


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


class DataSettings(Settings):
    model_config = ConfigDict(title="data")

    name: Literal["auto", "mnist", "fashion-mnist", "digits"] = "auto"
    """Data set. auto: MNIST, or else `digits`, drawn here, if MNIST cannot be had."""
    root: PrintablePath | None = None
    """Folder of the data sets; by default $MINITRAIN_DATA, or else a cache folder."""
    batch_size: Annotated[int, Field(ge=1, le=60_000)] = 64
    """Samples in a batch; every data set here has 60 000 to train on."""


class ModelSettings(Settings):
    model_config = ConfigDict(title="model")

    name: Literal["softmax", "mlp", "cnn", "fast-cnn"] = "mlp"
    """Softmax regression, a multilayer perceptron, or a convolutional network: the
    cnn is the most accurate, the fast-cnn nearly so in a tenth of the time."""
    hidden: Annotated[tuple[Width, ...], Field(strict=False)] = (128,)
    """Width of each hidden layer of the mlp."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a hidden unit is left out of a training step; mlp and cnn."""


class LossSettings(Settings):
    """The cross-entropy of softmax(logits) with the targets."""

    model_config = ConfigDict(title="loss")

    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each target that is spread evenly over all classes."""


class OptimizerSettings(Settings):
    """theta <- theta - lr * grad L(theta), with torch.optim.SGD's options."""

    model_config = ConfigDict(title="optimizer")

    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate: the largest of the schedule."""
    momentum: Annotated[float, Field(ge=0)] = 0.9
    """Fraction of the momentum buffer kept at each step."""
    dampening: float = 0.0
    """Fraction of the gradient kept out of the momentum buffer."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Multiple of theta added to the gradient."""
    nesterov: bool = False
    """Step along the gradient plus momentum times the buffer."""

    @model_validator(mode="after")
    def _nesterov_is_possible(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov needs momentum > 0 and dampening = 0, got "
                f"momentum = {self.momentum}, dampening = {self.dampening}"
            )
        return self


class ScheduleSettings(Settings):
    model_config = ConfigDict(title="schedule")

    name: Literal["constant", "step", "cosine", "one-cycle"] = "one-cycle"
    """How the learning rate changes over the run."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate first rises linearly."""


class LogSettings(Settings):
    model_config = ConfigDict(title="log")

    every: Annotated[int, Field(ge=1)] = 10
    """Steps between two points in TensorBoard; the first and last are always there."""


class CheckpointSettings(Settings):
    model_config = ConfigDict(title="checkpoint")

    every: Annotated[int, Field(ge=1)] = 5000
    """Steps between two checkpoints; there is one at the end of every epoch, too."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many of the newest are kept, besides the one with the best test accuracy."""


class InstrumentSettings(Settings):
    model_config = ConfigDict(title="instruments")

    budget: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of the training time that the instrument panel may take; 0: no panel."""
    look: Annotated[int | None, Field(ge=0)] = None
    """Steps between two looks at gradient and update; 0 is never. By default this and
    the next three are measured once, at the start, to keep within the budget."""
    audit: Annotated[int | None, Field(ge=0)] = None
    """Steps between two step audits: one more forward pass each."""
    truth: Annotated[int | None, Field(ge=0)] = None
    """Steps between two truth tests: two more forward passes for each parameter."""
    noise: Annotated[int | None, Field(ge=0)] = None
    """Steps between two measurements of the gradient noise scale."""
    sharpness: bool = False
    """Measure the largest eigenvalue of the Hessian after every epoch."""
    histograms: bool = False
    """Draw a histogram of each parameter's gradient after every epoch."""


class Config(Settings):
    """Train a network by stochastic gradient descent and log how it went.

    An EXPERIMENT.toml can stand first: a file with the settings below, which flags
    override. Without arguments a multilayer perceptron is trained on MNIST.
    """

    run_dir: PrintablePath | None = None
    """Folder of this run; by default a fresh one under runs/."""
    resume: bool = False
    """Continue the run in run-dir from its newest intact checkpoint."""
    allow_changes: bool = False
    """Resume even where settings that change the result have changed."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Determines the initial weights and the order of the data."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the training data."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ...; auto takes an accelerator where there is one."""
    threads: Annotated[int | None, Field(ge=1, le=4096)] = None
    """Threads on the CPU: by default one, or all cores for the cnn, whose steps are
    long enough to be shared. The last bits of a result depend on them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass; the parameters are float32 either way."""
    clip_norm: Annotated[float | None, Field(gt=0)] = None
    """Gradients longer than this are scaled down to it."""
    accumulate: Annotated[int, Field(ge=1)] = 1
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

    @model_validator(mode="after")
    def _batches_can_be_normalized(self) -> Self:
        if self.model.name == "fast-cnn" and self.data.batch_size == 1:
            raise ValueError(
                "model.name = 'fast-cnn' normalizes over a batch: data.batch-size = 1 "
                "must be at least 2"
            )
        return self

    @field_validator("device")
    @classmethod
    def _device_has_a_name(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
            raise ValueError(f"{device!r} is none of auto, cpu, mps, cuda, cuda:1, ...")
        return device


def parse(arguments: Sequence[str], program: str = "train.py") -> Config:
    """The settings of a command line `[EXPERIMENT.toml] [--key VALUE ...]`.

    Raises SettingsError with key, value and rule, or exits with code 2 where the
    command line itself cannot be read, and with 0 after `--help`.
    """
    defaults = Config()
    if arguments and not arguments[0].startswith("-"):
        defaults, arguments = read(Path(arguments[0])), arguments[1:]
    config = _command_line(arguments, defaults, program)
    kept = config.run_dir / "config.toml" if config.resume and config.run_dir else None
    if kept is not None and kept.exists() and defaults == Config():
        # A run that is resumed keeps its settings: only flags stand above them.
        config = _command_line(arguments, read(kept), program)
    return config


def _command_line(arguments: Sequence[str], defaults: Config, program: str) -> Config:
    program = f"{program} [EXPERIMENT.toml]"
    return tyro.cli(Config, args=arguments, default=defaults, prog=program)


def read(path: Path) -> Config:
    """The settings of a TOML file, over the defaults.

    Raises SettingsError where it cannot be read, is no TOML, or has a bad setting.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
            raise SettingsError(f"cannot read {path}: it is not a regular file")
        if status.st_size > MAX_BYTES:
            raise SettingsError(
                f"cannot read {path}: {status.st_size} bytes are more than settings "
                f"have, at most {MAX_BYTES}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    try:
        return from_toml(data.decode())
    except SettingsError as error:
        raise SettingsError(f"in {path}: {error}") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number of 5000 digits
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path} is not valid TOML: nested too deeply") from None


def from_toml(text: str) -> Config:
    """The settings of a TOML text, over the defaults.

    Raises TOMLDecodeError where it is no TOML, SettingsError where a setting is bad.
    """
    return Config(**_renamed(tomllib.loads(text), "-", "_"))


FREE = {"epochs", "device", "threads", "data.root"}
"""What a resumed run may change, besides whole sections: settings that are not
part of what is computed or, as epochs, say when it ends."""
FREE_SECTIONS = ("log.", "checkpoint.", "instruments.")


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """The settings that differ, as `key: old -> new`: the free ones, and the others."""
    before, after = _flat(old), _flat(new)
    free: list[str] = []
    bound: list[str] = []
    for key in sorted(before.keys() - {"run-dir", "resume", "allow-changes", "debug"}):
        if before[key] != after[key]:
            is_free = key in FREE or key.startswith(FREE_SECTIONS)
            change = f"{key}: {before[key]} -> {after[key]}"
            (free if is_free else bound).append(change)
    return free, bound


def _flat(config: Config) -> dict[str, Any]:
    """The value of every key; a section is no setting, its own keys are."""
    values = {
        key: functools.reduce(getattr, key.replace("-", "_").split("."), config)
        for key in _keys(Config)
    }
    return {k: value for k, value in values.items() if not isinstance(value, Settings)}


def to_toml(config: Config) -> str:
    """The settings as a TOML file that `read` understands, without the unset ones."""
    # How a run was started is not part of what it is.
    exclude = {"resume", "allow_changes"}
    values = config.model_dump(mode="json", exclude_none=True, exclude=exclude)
    return tomli_w.dumps(_renamed(values, "_", "-"))


def _renamed(values: Any, old: str, new: str) -> Any:
    """The same nested dictionary with `old` replaced by `new` in every key."""
    if not isinstance(values, dict):
        return values
    renamed = {k.replace(old, new): _renamed(v, old, new) for k, v in values.items()}
    if len(renamed) < len(values):
        raise SettingsError(f"one setting twice, among {', '.join(values)}")
    return renamed


# The rules that pydantic states in terms of Python's types.
RULES = {
    "model_type": "must be a section",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
}


def _explain(error: ValidationError, settings: type[Settings]) -> str:
    """One line per bad setting: its key, its value, and the rule that it breaks."""
    lines = []
    for fault in error.errors():
        path = [settings.model_config.get("title"), *map(str, fault["loc"])]
        key = ".".join(part.replace("_", "-") for part in path if part)
        if fault["type"] == "extra_forbidden":
            line = f"{key}: there is no such setting"
            if near := _nearest(key):
                line += f"; did you mean {' or '.join(near)}?"
        elif fault["type"] == "value_error":
            line = f"{key}: {fault.get('ctx', {})['error']}"
        else:
            said = fault["msg"].replace("Input should", "must")
            rule = RULES.get(fault["type"], said)
            line = f"{key} = {fault['input']!r}: {rule}"
        lines.append(line)
    return "; ".join(lines)


def _nearest(key: str) -> list[str]:
    """The setting or section spelled almost like it, or those it may be short for."""
    keys = _keys(Config)
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    return close or [known for known in keys if known.endswith("." + key)]


def _keys(settings: type[Settings], prefix: str = "") -> list[str]:
    """Every key of a section and its subsections, as on the command line."""
    keys = []
    for name, field in settings.model_fields.items():
        key, kind = prefix + name.replace("_", "-"), field.annotation
        keys.append(key)
        if isinstance(kind, type) and issubclass(kind, Settings):
            keys += _keys(kind, key + ".")
    return keys
