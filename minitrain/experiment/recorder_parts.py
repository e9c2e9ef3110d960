"""The parts of a recorded loop: what a checkpoint of it holds, and gives back."""

import io
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from minitrain.checks import parameters_of
from minitrain.experiment.recorder_network import Networks
from minitrain.experiment.state import load_weights
from minitrain.fingerprint import fingerprint
from minitrain.randomness import RandomStates
from minitrain.runs.checkpoint import Checkpoint
from minitrain.runs.resume import changes, check_changes, restore
from minitrain.runs.saver import Stateful
from minitrain.runs.summary import Summary, installed_versions
from minitrain.system.errors import CheckpointError, SettingsError


class Parts:
    """All parts of a loop, with the networks that are watched and the random states.

    Args:
        parts: Models, optimizers and others, by their names.

    Raises:
        TypeError: A part has no state, or one that no checkpoint can hold.
        ValueError: There is no model with parameters.
    """

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        check_parts(parts)
        models = {k: x for k, x in parts.items() if isinstance(x, nn.Module)}
        self.models = nn.ModuleDict(models)
        self.others = Others({k: x for k, x in parts.items() if k not in models})
        self.networks = Networks()
        self.random = RandomStates(next(self.models.parameters()).device)

    @property
    def state(self) -> dict[str, Stateful]:
        """What a checkpoint has to hold besides settings and summary."""
        return {
            "model": self.models,
            "optimizer": self.others,
            "networks": self.networks,
            "random": self.random,
        }

    def fingerprint(self) -> str:
        """Return the SHA-256 over all parts as they are now."""
        return fingerprint(self.models.state_dict(), self.others.state_dict())

    def check_kept(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Make sure that a checkpoint holds what a step changes.

        Raises:
            ValueError: Model or optimizer is not among the parts, or the optimizer has
                parameters that no part has.
        """
        kept = {*self.models.parameters()}
        if any(parameter not in kept for parameter in model.parameters()):
            lacking = "model"
        elif not any(optimizer is part for part in self.others.parts.values()):
            lacking = "optimizer"
        elif any(parameter not in kept for parameter in parameters_of(optimizer)):
            raise ValueError(
                "the optimizer of this step updates a parameter that no model among "
                "the parts of the recorder has, so that a checkpoint would lack it: "
                "put it into an nn.Module, and that among the parts"
            )
        else:
            return
        raise ValueError(
            f"the {lacking} of this step is not among the parts of the recorder, so "
            f"that a checkpoint would lack it: Recorder(..., parts={{..., '{lacking}': "
            f"{lacking}}})"
        )

    def resume(
        self, found: Checkpoint, summary: Summary, settings: Mapping[str, Any]
    ) -> None:
        """Continue from a checkpoint, and tell what changed since.

        Args:
            found: The checkpoint, whose form was checked.
            summary: The summary of the run, which continues that of the checkpoint.
            settings: Those of now.

        Raises:
            CheckpointError: It does not fit the parts.
            SettingsError: The run has made more steps than it is to have.
        """
        if found.step > settings["num_steps"]:
            raise SettingsError(
                f"num_steps = {settings['num_steps']}: the run in "
                f"{found.path.parent.parent} has made {found.step}. Nothing was changed"
            )
        versions = installed_versions()
        before = (
            json.loads(found.state["settings"]) | found.state["summary"]["versions"]
        )
        changed = changes(
            before, {**settings, **versions}, versions.keys() | {"num_steps"}
        )
        check_changes(changed, allowed=True)
        restore(found, self._load, summary, changed)

    def _load(self, found: Checkpoint) -> None:
        state = found.state
        try:
            self.others.check(state["optimizer"])
            load_weights(self.models, state["model"])
            self.others.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise CheckpointError(
                f"{found.path} does not fit the parts of this loop: {error}"
            ) from None
        self.networks.load_state_dict(state["networks"])
        self.random.load_state_dict(state["random"])


class Others:
    """The parts that are no models, as one."""

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self.parts = parts

    def check(self, state: Mapping[str, Any]) -> None:
        """Make sure that a state is of parts of these names.

        Raises:
            ValueError: It is of others.
        """
        if state.keys() != self.parts.keys():
            raise ValueError(
                f"its parts besides models are {', '.join(state) or 'none'}, and not "
                f"{', '.join(self.parts) or 'none'}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every part, by its name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of every part."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])


def check_parts(parts: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint can hold these parts, before there is one.

    Raises:
        TypeError: A part has no state, or one that is not of plain values and tensors.
        ValueError: There is no model with parameters, or a name is impossible.
    """
    for name, part in parts.items():
        if not (name.isidentifier() and hasattr(part, "state_dict")):
            raise TypeError(
                f"parts[{name!r}] is of {type(part).__name__}: a part has a name like "
                "that of a variable, a state_dict() and a load_state_dict()"
            )
        if isinstance(part, nn.Module):
            continue
        buffer = io.BytesIO()
        try:
            torch.save(part.state_dict(), buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        except Exception as error:
            raise TypeError(
                f"parts[{name!r}] cannot be kept in a checkpoint, which holds tensors, "
                f"numbers, strings, lists and dictionaries: {str(error)[:200]}"
            ) from None
    modules = [part for part in parts.values() if isinstance(part, nn.Module)]
    if not any(True for module in modules for _ in module.parameters()):
        raise ValueError(
            "parts holds no model with parameters: there is nothing to train. Give all "
            "that the loop depends on, such as parts={'model': model, 'optimizer': "
            "optimizer}"
        )
