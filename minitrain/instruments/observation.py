"""What is seen of a step: plain data, from which the readings are computed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from minitrain import tags
from minitrain.instruments.noise import NoiseEstimate
from minitrain.norms import norm
from minitrain.sgd import SGD
from minitrain.vector import Theta

Readings = dict[str, float]
"""Tags and values."""

OF_ONE_RULE = (tags.LARGEST_STABLE_LR, tags.AUDIT_MARGIN)
"""The tags of what a single rule for all parameters defines."""
OF_SGD_ALONE = (tags.MOMENTUM_SHARE, tags.EFFECTIVE_LR, *OF_ONE_RULE)
"""The tags of what SGD's rule defines: steps of others have no such readings."""

COUPLED = (
    SGD,
    torch.optim.SGD,
    torch.optim.ASGD,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)
"""Optimizers that add weight decay to the gradient, unless a flag decouples it."""


def as_real(tensor: Tensor) -> Tensor:
    """Return a tensor itself, or a complex or sparse one as a real and dense one.

    The real one of a complex tensor shares its memory.

    >>> as_real(torch.tensor([1 + 2j]))
    tensor([[1., 2.]])
    """
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


class Vector(list[Tensor]):
    """A vector in parts, one tensor each, whose norm is computed once.

    >>> Vector([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]).norm
    tensor(5.)
    """

    @cached_property
    def norm(self) -> Tensor:
        """|x|, a 0-d tensor."""
        return norm(self)

    def copy(self) -> "Vector":
        """Return a vector with memory of its own."""
        return Vector(part.clone() for part in self)

    def minus(self, other: "Vector") -> "Vector":
        """Return x - y, of a vector y in the same parts."""
        return Vector(x - y for x, y in zip(self, other, strict=True))


class Parameters:
    """What an optimizer updates: parameters, or one vector of them; and their names.

    Vectors of them are of real numbers: a complex parameter is seen as pairs of them,
    which an update moves as it moves two parameters, and a sparse gradient as a dense
    one.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}

    def theta(self) -> Vector:
        """Return the tensors themselves, in the optimizer's order."""
        return Vector(as_real(tensor.detach()) for tensor in self._tensors())

    def gradient(self) -> Vector:
        """Return their gradients themselves; none counts as zero."""
        return Vector(
            as_real(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)
            for tensor in self._tensors()
        )

    def options(self) -> list[Mapping[str, Any]]:
        """Return the optimizer's options for each tensor."""
        groups = self._optimizer.param_groups
        return [group for group in groups for _ in group["params"]]

    def coupled_decay(self) -> list[float]:
        """Return by how much of each tensor an update moves its gradient.

        0 where weight decay acts apart from the gradient, as that of AdamW does, or is
        not known to be a part of it, and where no gradient came: an optimizer passes
        over such a tensor.
        """
        if self.decay_obstacle():
            return [0.0 for _ in self._tensors()]
        pairs = zip(self._tensors(), self.options(), strict=True)
        return [0.0 if p.grad is None else _coupled(group) for p, group in pairs]

    def decay_obstacle(self) -> str:
        """Return why nobody knows how weight decay turns the gradient, if so."""
        if not any(map(_coupled, self._optimizer.param_groups)):
            return ""
        if not isinstance(self._optimizer, COUPLED):
            name = type(self._optimizer).__name__
            return f"{name} is not known to add weight decay to the gradient"
        if any(group.get("maximize") for group in self._optimizer.param_groups):
            return "the optimizer maximizes"
        return ""

    def departure_from_sgd(self) -> str:
        """Return why updates are not steps of SGD downhill; empty where they are.

        What is defined by SGD's rule, such as the largest stable learning rate, says
        nothing of another one's updates.
        """
        if not isinstance(self._optimizer, SGD | torch.optim.SGD):
            return f"{type(self._optimizer).__name__} does not follow the rule of SGD"
        if any(group.get("maximize") for group in self._optimizer.param_groups):
            return "the optimizer maximizes"
        return ""

    def difference_of_groups(self) -> str:
        """Return which option of SGD's rule is not the same for all; empty if none is.

        A step then goes along no eigenvector even of a round paraboloid, and no single
        learning rate is the largest stable one.
        """
        for option in ("lr", "momentum", "dampening", "nesterov"):
            groups = self._optimizer.param_groups
            if len({float(group.get(option, 0)) for group in groups}) > 1:
                return f"{option} is not the same in all groups of the optimizer"
        return ""

    def names(self) -> list[str]:
        """Return the name of every parameter; one unknown to the model is `?`."""
        return [self._names.get(parameter, "?") for parameter in self.each()]

    def are_trained(self) -> list[bool]:
        """Return of every parameter whether it is not frozen."""
        return [parameter.requires_grad for parameter in self.each()]

    def split(self, vector: Vector) -> list[Tensor]:
        """Return the part of every parameter in a vector of their shapes."""
        parts = []
        for tensor, value in zip(self._tensors(), vector, strict=True):
            is_vector = type(tensor) is Theta
            parts += tensor.vector.split(value) if is_vector else [value]
        return parts

    def each(self) -> Iterator[Tensor]:
        """Yield the parameters themselves, also those that live in a vector."""
        for tensor in self._tensors():
            yield from tensor.vector.parameters if type(tensor) is Theta else [tensor]

    def _tensors(self) -> list[Tensor]:
        groups = self._optimizer.param_groups
        return [tensor for group in groups for tensor in group["params"]]


def _coupled(group: Mapping[str, Any]) -> float:
    """Return the weight decay of a group of parameters that no flag decouples."""
    is_apart = group.get("decoupled_weight_decay", False)
    return 0.0 if is_apart else float(group.get("weight_decay", 0))


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One step: what the loop tells of it, and the vectors before and after it."""

    parameters: Parameters
    """Whose names, parts and options they are."""
    loss: float
    """Of the batch, before the update."""
    num_samples: int
    """In the batch; 0 where nobody knows."""
    clip_factor: float | None
    """What clipping multiplied the gradient by; None where the loop does not clip."""
    gradient: Vector
    """After clipping."""
    weight_decay: Sequence[float] = ()
    """How much of each tensor of theta the update adds to the gradient."""
    noise: NoiseEstimate | None = None
    """What the gradients of the single samples tell; None where it is not known."""
    before: Vector = field(default_factory=Vector)
    """theta before the update, where it was kept."""
    after: Vector = field(default_factory=Vector)
    """theta after the update."""

    @cached_property
    def update(self) -> Vector:
        """after - before"""
        return self.after.minus(self.before)

    def unclip(self, value: float) -> float:
        """Return what a multiple of the gradient was before clipping."""
        return value / (self.clip_factor or 1.0)
