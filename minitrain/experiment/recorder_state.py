"""What a checkpoint of a recorded loop holds, checked before any of it is used."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from minitrain.experiment.state import (
    FindingsState,
    KeptState,
    PanelState,
    State,
    explain,
)
from minitrain.runs.checkpoint import Checkpoint
from minitrain.system.errors import CheckpointError


def _check_settings(text: str) -> str:
    if not isinstance(json.loads(text), dict):  # what is not JSON is a ValueError, too
        raise ValueError("not a dictionary")
    return text


class NetworkState(State):
    """What is kept of a network: how often it is read, and what was."""

    num_steps: Annotated[int, Field(ge=0)]
    cadence: Annotated[
        list[Annotated[int, Field(ge=0)]], Field(min_length=4, max_length=4)
    ]
    panel: PanelState
    findings: FindingsState


class LoopState(KeptState):
    """All that a recorder keeps of a loop."""

    settings: Annotated[str, AfterValidator(_check_settings)]
    optimizer: dict[str, dict[str, Any]]
    networks: dict[str, NetworkState]


def check_loop(found: Checkpoint) -> None:
    """Make sure that a checkpoint is one of a recorder's, in all of its parts.

    Raises:
        CheckpointError: A part is missing, or has another form, or a tensor in it has
            numbers that are not finite.
    """
    try:
        LoopState.model_validate(found.state)
    except ValidationError as error:
        raise CheckpointError(
            f"{found.path} is not the state of a recorded loop: {explain(error)}. "
            "Nothing was changed; give another folder, or, to go on from an earlier "
            "checkpoint, move this one away"
        ) from None
