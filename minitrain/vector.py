"""theta and grad L as two vectors: parameters and gradients of a module, laid flat."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minitrain import _torch
from minitrain.flat import join_as, layout_of, split_flat
from minitrain.placing import Only, check_places, find_places, move

NUM_CHECKED = 8


class ParameterVector:
    """All trainable parameters of a module as one flat tensor `theta`, shape (n,).

    theta = (theta_1, ..., theta_n) holds the parameters in the order of
    `module.named_parameters()`, each of them a view of its part of `theta`; in the same
    way each `parameter.grad` is a view of its part of `theta.grad`. One update of
    `theta` is then an update of the whole network, and grad L is one vector with one
    norm. The module itself works, saves and loads as before.

    A parameter shared by two layers (tied weights) stands in `theta` once; one with
    `requires_grad=False` stays out. A parameter that a loss does not reach has gradient
    zero here, where it would be None in a list of parameters. Iterating yields `theta`,
    so that a vector can be given to an optimizer in the place of such a list:

    >>> model = nn.Linear(2, 3)
    >>> vector = ParameterVector(model)
    >>> vector.theta.shape
    torch.Size([9])
    >>> [parameter.shape for parameter in vector.split(vector.theta)]
    [torch.Size([3, 2]), torch.Size([3])]

    Lay the vector out last, after the module was moved and cast: `module.to(...)` gives
    the parameters new memory, which `check` then reports. DistributedDataParallel comes
    after it, without `gradient_as_bucket_view`. The order of theta need not be that of
    cuDNN, which then copies the weights of an RNN in every pass, and warns of it.

    Several vectors of one module are several groups of an optimizer:

    >>> weights = ParameterVector(model, only=lambda name, p: p.dim() > 1)
    >>> biases = ParameterVector(model, only=lambda name, p: p.dim() <= 1)
    >>> weights.names, biases.names
    (['weight'], ['bias'])

    Args:
        module: What to lay out. Hooks and attributes of its parameters stay theirs.
        only: only(name, parameter) chooses among its trainable parameters; or a list of
            their names. A copy of the vector remembers the names.

    Raises:
        TypeError: A parameter is more than a plain `nn.Parameter`, a DTensor for one.
        ValueError: There is no trainable parameter, they differ in dtype or device, or
            one shares memory or has no values. It is named, and nothing has changed.
        RuntimeError: A parameter is in use: a loss computed by the module may still be
            waiting for its backward pass. Nothing has changed here either.
    """

    def __init__(self, module: nn.Module, *, only: Only | None = None) -> None:
        places = find_places(module, only)
        parameters = [place.parameter for place in places]
        with _torch.released_rnns(module):
            check_places(module, places)
            self._layouts = [layout_of(p) for p in parameters]
            with torch.no_grad():
                flat = join_as(parameters, parameters)
            self._grad = torch.zeros_like(flat)
            move(parameters, self.split(flat))

        self.module = module
        self.names = [place.name for place in places]
        self._is_part = only is not None
        self._parameters = parameters
        # The dictionaries of the modules: to ask a module itself takes twice as long.
        self._places = [(place.owner._parameters, place.attribute) for place in places]
        self._addresses = [p.data_ptr() for p in parameters]
        self._grad_views = self.split(self._grad)

        self._next_checked = 0
        self.theta = Theta(flat)
        self.theta.vector = self
        self.zero_grad()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The module's parameters that are parts of theta, in their order there."""
        return list(self._parameters)

    def __iter__(self) -> Iterator["Theta"]:
        yield self.theta

    def __reduce__(self) -> tuple[Callable[..., "ParameterVector"], tuple[Any, ...]]:
        # A copy is laid out anew over a copy of the module: its own, live views.
        names = self.names if self._is_part else None
        return partial(ParameterVector, only=names), (self.module,)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return the parts of a vector of shape (n,), views in the parameters' shapes.

        >>> vector = ParameterVector(nn.Linear(2, 1))
        >>> vector.split(torch.tensor([1.0, 2.0, 3.0]))
        [tensor([[1., 2.]]), tensor([3.])]
        """
        return split_flat(flat, self._layouts)

    def zero_grad(self) -> None:
        """Set grad L to zero in place: theta.grad and, with it, every parameter's.

        To be called instead of `module.zero_grad()`, which replaces the gradients by
        None and so cuts them off from the vector; here they are joined to it again.

        Raises:
            RuntimeError: A parameter itself is no longer a view of theta.
        """
        self._check_parameters(range(len(self._parameters)))
        self._grad.zero_()
        self.theta.grad = self._grad
        for parameter, view in zip(self._parameters, self._grad_views, strict=True):
            if parameter.grad is not view:
                parameter.grad = view

    def check(self) -> None:
        """Make sure that the module still lives in theta, and grad L in theta.grad.

        Of many parameters `NUM_CHECKED` are looked at in each call, in turn: what
        happens to a whole module is noticed at once, what happens to a single one of a
        thousand parameters some calls later.

        Raises:
            RuntimeError: A parameter, named, was moved, cast or replaced, or its
                gradient is no view of theta.grad any more.
        """
        if self.theta.grad is not self._grad:
            raise RuntimeError(
                "theta.grad was replaced, so gradients no longer reach it: reset them "
                "by ParameterVector.zero_grad(), which keeps it in place"
            )
        first = self._next_checked
        last = min(first + NUM_CHECKED, len(self._parameters))
        self._next_checked = last % len(self._parameters)
        self._check_parameters(range(first, last))
        for i in range(first, last):
            grad = self._parameters[i].grad
            if grad is not self._grad_views[i]:
                raise RuntimeError(
                    f"the gradient of {self.names[i]} is no longer a part of "
                    f"theta.grad: {_remedy(grad)}"
                )

    def _check_parameters(self, numbers: Iterable[int]) -> None:
        for i in numbers:
            holder, attribute = self._places[i]
            parameter = self._parameters[i]
            if (
                holder.get(attribute) is not parameter
                or parameter.data_ptr() != self._addresses[i]
                or not parameter.requires_grad
            ):
                raise RuntimeError(
                    f"{self.names[i]} is no longer a part of theta: the module was "
                    "moved, cast, frozen or given new parameters after its "
                    "ParameterVector was made; make a new one and a new optimizer"
                )


class Theta(nn.Parameter):
    """A parameter that knows its vector.

    Copied, by an optimizer for example, it is the theta of the copied vector: the copy
    that nn.Parameter makes would be one that no module lives in.
    """

    vector: ParameterVector

    def __deepcopy__(self, memo: dict[int, Any]) -> "Theta":
        return copy.deepcopy(self.vector, memo).theta

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return getattr, (self.vector, "theta")


def _remedy(grad: Tensor | None) -> str:
    """What to do about a gradient that took the place of a part of theta.grad."""
    if grad is None:
        return (
            "module.zero_grad() cuts it off; reset gradients by "
            "ParameterVector.zero_grad() or minitrain.SGD.zero_grad()"
        )
    return (
        "another tensor took its place, as DistributedDataParallel(module, "
        "gradient_as_bucket_view=True) does, which needs False here; reset gradients "
        "by ParameterVector.zero_grad() or minitrain.SGD.zero_grad()"
    )
