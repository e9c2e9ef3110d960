"""Whether the gradient of an earlier update is still there when a new one comes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge


class Leftover:
    """Looks, in two steps in a row, whether gradients were reset between them.

    When the first gradient of a step reaches a parameter, the parameter's own must be
    absent or zero; what is added later in the same step, by gradient accumulation, is
    not looked at. Both steps must end in an update: a block that only accumulates
    leaves its gradient with reason.

    >>> model = torch.nn.Linear(1, 1)
    >>> leftover, x = Leftover(model.parameters()), torch.ones(1, 1)
    >>> for number in (1, 2):
    ...     with leftover.look(number, lambda: True) as was_there:
    ...         model(x).sum().backward()
    >>> was_there()
    True

    Args:
        parameters: Those that an optimizer updates, in the order of the network.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = [*parameters]
        self._last_update = 0

    @contextmanager
    def look(
        self, number: int, is_updated: Callable[[], bool]
    ) -> Iterator[Callable[[], bool]]:
        """Enclose step `number`, from 1; 0 is one that belongs to no loop.

        Args:
            number: The step.
            is_updated: Says at its end whether there was an update in it.

        Yields:
            A function that says, after the step, whether a gradient was left over.
        """
        follows_update = 0 < number == self._last_update + 1
        parameter = self._find_parameter() if follows_update else None
        if parameter is None:
            yield lambda: False
        else:
            with _watching_arrival(parameter) as found:
                yield lambda: is_updated() and any(map(bool, found))
        if number and is_updated():
            self._last_update = number

    def _find_parameter(self) -> Tensor | None:
        """Return the last that has a gradient: there the next one comes first."""
        for parameter in reversed(self._parameters):
            if parameter.requires_grad and parameter.grad is not None:
                return parameter
        return None


@contextmanager
def _watching_arrival(parameter: Tensor) -> Iterator[list[Tensor]]:
    """Yield a list; what goes in is whether there was a gradient before the first one.

    The answer stays on the device, so that nobody waits for it.
    """
    found: list[Tensor] = []

    def look_at_own(_: object) -> None:
        if not found:
            own = parameter.grad
            found.append(torch.zeros(()) if own is None else own.any())

    # A parameter's node lives as long as somebody holds it, and with it the hook.
    node = get_gradient_edge(parameter).node
    hook = node.register_prehook(look_at_own)
    try:
        yield found
    finally:
        hook.remove()
