"""What a checkpoint of a run holds, checked as a whole before any of it is used.

The SHA-256 in its name says that a file is what was written, not by whom, nor that the
numbers make sense. A state that does not have this form is refused in a sentence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    Strict,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from torch import Tensor, nn

from minitrain.experiment.definition import Definition
from minitrain.experiment.reading import from_toml
from minitrain.instruments.observation import as_real
from minitrain.runs.checkpoint import Checkpoint
from minitrain.runs.summary import Summary
from minitrain.system.errors import CheckpointError, SettingsError


def _check_finite(tensor: Tensor) -> Tensor:
    try:
        is_finite = bool(tensor.isfinite().all())
    except RuntimeError:  # it has no numbers, or no such operation
        is_finite = False
    if not is_finite:
        raise ValueError("has numbers that are not finite")
    return tensor


def _has_nan(tensor: Tensor) -> bool:
    try:
        return bool(tensor.isnan().any())
    except RuntimeError:  # it has no numbers, or no such operation
        return True


def _check_settings(text: str, info: ValidationInfo) -> str:
    definition = info.context
    try:
        from_toml(text, definition)
    except SettingsError as error:
        raise ValueError(str(error)) from None
    return text


Finite = Annotated[InstanceOf[Tensor], AfterValidator(_check_finite)]


class State(BaseModel):
    """A dictionary with these keys, whose values have exactly these types."""

    model_config = ConfigDict(strict=True, extra="forbid")


class OptionsState(State):
    """The options of the optimizer; those that are not settings have their defaults."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: Literal[False]
    foreach: Literal[None]
    differentiable: Literal[False]
    fused: Literal[None]
    params: list[int]


class Buffers(State):
    """What the optimizer keeps of a parameter."""

    momentum_buffer: Finite | None = None


class SGDState(State):
    state: dict[int, Buffers]
    param_groups: Annotated[list[OptionsState], Field(min_length=1, max_length=2)]


class OptimizerState(State):
    """That of an experiment's own optimizer, which knows its form."""

    state: dict[Any, Any]
    param_groups: Annotated[list[dict[str, Any]], Field(min_length=1)]


class NoiseState(State):
    """The averages of the noise scale."""

    decay: Annotated[float, Field(ge=0, lt=1)]
    num_updates: int
    gradient_square: float
    trace: float


class PanelState(State):
    """What the panel of instruments keeps from step to step."""

    seconds: float
    start: list[Finite]
    corner: list[Finite]
    path_length: Finite
    previous: list[Finite] | None
    clipping: Annotated[tuple[int, int], Strict(False)]
    first_loss: float
    noise: NoiseState


class FindingsState(State):
    """The readings so far, by tag, and what was found."""

    series: dict[str, list[float]]
    found: list[Annotated[tuple[str, int, str, str], Strict(False)]]


class Found(State):
    """A finding, as a summary has it."""

    kind: str
    step: int
    text: str
    advice: str


class Changed(State):
    """A change of the settings, as a summary has it."""

    step: int
    key: str
    old: Any
    new: Any


def check_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """Make sure that these are fields of a `Summary`, each of its type.

    Returns:
        The same.

    Raises:
        ValueError: They are not.
    """
    forms: Any = {
        each.name: (each.type, ... if each.default is MISSING else None)
        for each in fields(Summary)
    }
    forms |= {"findings": (list[Found], ...), "changes": (list[Changed], ...)}
    try:
        create_model("SummaryState", __base__=State, **forms).model_validate(summary)
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    return summary


class KeptState(State):
    """What the future of any loop depends on, that of a run or of one's own."""

    format: int
    step: int
    summary: Annotated[dict[str, Any], AfterValidator(check_summary)]
    model: dict[str, Any]
    random: dict[str, InstanceOf[Tensor]]

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: dict[str, Any]) -> dict[str, Any]:
        # A buffer may be infinite, such as a causal mask: `load_weights` knows which.
        for value in model.values():
            if isinstance(value, Tensor) and _has_nan(value):
                raise ValueError("has numbers that are NaN")
        return model

    @model_validator(mode="after")
    def _check_step(self) -> Self:
        if self.summary.get("steps") != self.step:
            raise ValueError("the steps of the summary are others")
        return self


class RunState(KeptState):
    """All that the future of a run depends on."""

    settings: Annotated[str, AfterValidator(_check_settings)]
    optimizer: OptimizerState
    average: dict[str, InstanceOf[Tensor]] | None = None
    panel: PanelState | None = None
    findings: FindingsState


class SGDRunState(RunState):
    """The same of a run whose optimizer is ours."""

    optimizer: SGDState  # pyright: ignore[reportIncompatibleVariableOverride]


def check_state(found: Checkpoint, definition: Definition) -> None:
    """Make sure that a checkpoint is one of a run, in all of its parts.

    Args:
        found: The checkpoint.
        definition: The experiment that the run is of.

    Raises:
        CheckpointError: A part is missing, or has another form, or a tensor in it has
            numbers that are not finite.
    """
    try:
        kind = SGDRunState if definition.optimizer is None else RunState
        kind.model_validate(found.state, context=definition)
    except ValidationError as error:
        raise CheckpointError(
            f"{found.path} is not the state of a run: {explain(error)}. Nothing was "
            "changed; to go on from an earlier checkpoint, move this one to another "
            "folder"
        ) from None


def explain(error: ValidationError) -> str:
    """Say where the first fault is and what, in part of a sentence."""
    first, *others = error.errors(include_url=False, include_input=False)
    place = ".".join(str(key) for key in first["loc"])
    more = f", and {len(others)} more faults" if others else ""
    return f"{place}: {first['msg']}{more}".removeprefix(": ")


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the parameters and buffers of a model, all of which must fit.

    Raises:
        ValueError: A name, a shape or a dtype is another one, or a number is infinite
            that the model itself does not have there.
    """

    def form(state: Mapping[str, Any]) -> dict[str, tuple[torch.Size, torch.dtype]]:
        tensors = {n: x for n, x in state.items() if isinstance(x, Tensor)}
        return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    if form(weights) != form(model.state_dict()):
        raise ValueError("the weights are those of another model")
    own = model.state_dict()
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.isfinite().all():
            continue
        odd = ~value.isfinite()
        if not torch.equal(value[odd], own[name].to(value.device)[odd]):
            raise ValueError(f"{name} has numbers that are not finite")
    model.load_state_dict(weights)


def check_vectors(panel: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
    """Make sure that the vectors in the state of a panel have the parameters' shapes.

    Raises:
        ValueError: They have others.
    """
    shapes = [as_real(parameter.detach()).shape for parameter in parameters]
    for name in ("start", "corner", "previous"):
        if panel[name] is not None and [x.shape for x in panel[name]] != shapes:
            raise ValueError(f"{name} is a vector of another model")
