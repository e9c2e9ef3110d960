"""One network of a recorded loop: its panel, and what is found in the readings."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minitrain import tags
from minitrain.checks import check_optimizer
from minitrain.experiment.state import check_vectors
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.findings import Finding, Findings
from minitrain.instruments.observation import Parameters
from minitrain.instruments.panel import Panel
from minitrain.instruments.recompute import LossOf
from minitrain.norms import norms
from minitrain.system.errors import CheckpointError

OF_LOSS = (tags.TRAIN_LOSS, tags.VALIDATION_LOSS, tags.TEST_LOSS)
"""What one network among several is not judged by."""


class ReadingPlan(NamedTuple):
    """How often a panel reads."""

    cadence: Cadence | None
    """What is given; None to measure it."""
    budget: float
    """The share of the steps' own time that readings may take."""
    unit: int
    """Steps between two that are logged."""


class Network:
    """A model and the optimizer that updates it, watched by a panel of their own.

    Args:
        name: Stands before its tags, with a slash; empty where there is but one.
        model: The model.
        optimizer: Updates its parameters, or some of them.
        findings: Takes in what is read of them.
        plan: How often the panel reads, or what it may take.
        beside: Other models that its loss passes through.

    Raises:
        ValueError: The optimizer updates nothing of the model.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        findings: Findings,
        plan: ReadingPlan,
        beside: Sequence[nn.Module] = (),
    ) -> None:
        check_optimizer(model, optimizer)
        self.name, self.model, self.optimizer = name, model, optimizer
        self.findings = findings
        self.panel = Panel(model, optimizer, beside=beside)
        self.num_steps = 0
        """Steps entered so far, by which the panel's cadence counts."""
        self.reported: set[str] = set()
        """What was reported once: that something is amiss with its steps."""
        self._parameters = Parameters(model, optimizer)
        self._plan, self._modules = plan, [model, *beside]

    def begin_step(
        self, loss_of: LossOf, num_samples: int, autocast: torch.dtype | None
    ) -> int:
        """Count one more step; return its number.

        At the first one it is measured how often the budget allows readings, which
        leaves no trace, in the gradients of all models either.
        """
        cadence, budget, unit = self._plan
        if self.num_steps == 0 and cadence is not None:
            self.panel.cadence = cadence
        elif self.num_steps == 0:
            parameters = [p for module in self._modules for p in module.parameters()]
            with gradients_kept(parameters):
                self.panel.cadence = self.panel.fit(
                    loss_of, num_samples, budget, unit=unit, autocast=autocast
                )
        self.num_steps += 1
        return self.num_steps

    def grad_norms(self) -> Tensor:
        """Return the norm of each parameter's gradient, by the optimizer's order."""
        return norms(self._parameters.split(self._parameters.gradient()))

    def names(self) -> list[str]:
        """Return the names of these parameters."""
        return self._parameters.names()

    def tagged(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values with its name before their tags."""
        start = f"{self.name}/" if self.name else ""
        return {start + tag: value for tag, value in values.items()}

    def note(self, number: int, values: Mapping[str, float]) -> list[Finding]:
        """Take in the values of a step of the loop, by their tags there.

        A network with a name is one of several, whose losses move each other: how the
        loss of one of them goes means nothing, and is not looked at.

        Returns:
            What is found in them.
        """
        start = f"{self.name}/" if self.name else ""
        own = {
            k.removeprefix(start): x for k, x in values.items() if k.startswith(start)
        }
        if not own:
            return []
        lone = {k: x for k, x in own.items() if not (self.name and k in OF_LOSS)}
        found = self.findings.note(number, lone)
        if tags.TRUTH_WORST_ERROR in own:
            found += self.findings.check_slopes(number, self.panel.slopes)
        both = (own.get(tag, 0.0) for tag in (tags.TRAIN_LOSS, tags.GLOBAL_GRAD_NORM))
        if not all(map(math.isfinite, both)):
            text = "the loss or the gradient of the step is not finite."
            found += self.findings.note_failure(number, text)
        where = f"{self.name}: " if self.name else ""
        return [each._replace(text=where + each.text) for each in found]

    def state_dict(self) -> dict[str, Any]:
        """Return what its later readings depend on, for a checkpoint."""
        return {
            "num_steps": self.num_steps,
            "cadence": [*self.panel.cadence],
            "panel": self.panel.state_dict(),
            "findings": self.findings.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as if there had been no interruption.

        Raises:
            ValueError: It is the state of a network of other shapes.
        """
        groups = self.optimizer.param_groups
        check_vectors(state["panel"], [p for group in groups for p in group["params"]])
        self.num_steps = state["num_steps"]
        self.panel.cadence = Cadence(*state["cadence"])
        self.panel.load_state_dict(state["panel"])
        self.findings.load_state_dict(state["findings"])


class Networks:
    """The networks of a loop by their names, each known from its first step on."""

    def __init__(self) -> None:
        self._known: dict[str, Network] = {}
        self._kept: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Network]:
        return iter(self._known.values())

    def get(self, name: str) -> Network | None:
        """Return the network of this name, if it is known."""
        return self._known.get(name)

    def add(self, network: Network) -> None:
        """Take in a network, which goes on where a checkpoint says that it was.

        Raises:
            CheckpointError: There it had other parameters.
        """
        if (state := self._kept.get(network.name)) is not None:
            try:
                network.load_state_dict(state)
            except ValueError as error:
                raise CheckpointError(
                    f"the step {network.name!r} is of another network than in the "
                    f"checkpoint: {error}"
                ) from None
        self._known[network.name] = network

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all, of those too that had no step since the start."""
        return self._kept | {each.name: each.state_dict() for each in self}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states for when the networks are known."""
        self._kept = state_dict


@contextmanager
def gradients_kept(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Put the gradients of parameters back, whatever happens to them inside."""
    kept = [
        (parameter, parameter.grad, None if g is None else g.clone())
        for parameter in parameters
        for g in (parameter.grad,)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, own, before in kept:
                if own is not None and before is not None:
                    own.copy_(before)
                parameter.grad = own
