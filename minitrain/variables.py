"""The variables of a function: f(x, y) or f(point), and what they are called.

>>> import torch
>>> f = of_point(lambda x, y: x**2 + 3 * y**2)
>>> f(torch.tensor([3.0, 4.0])), variables(f, 2)
(tensor(57.), ('x', 'y'))
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter

from torch import Tensor

PointFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OfPoint:
    """A function f(x, y, ...) of n numbers as one of the point that they make, (n,)."""

    function: Callable[..., Tensor]
    variables: tuple[str, ...]

    def __call__(self, point: Tensor) -> Tensor:
        check_variables(self.variables, len(point))
        return self.function(*point)


def of_point(f: Callable[..., Tensor]) -> PointFunction:
    """Return f(x, y, ...) as a function of the point (x, y, ...), f(point) as it is.

    Args:
        f: It takes a point where it has one argument without a default, or an unknown
            number of them, and its coordinates where it has several.
    """
    try:
        arguments = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):  # a function of C, which does not tell
        return f
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each for each in arguments if each.default is Parameter.empty]
    names = tuple(each.name for each in needed if each.kind in positional)
    return OfPoint(f, names) if len(names) > 1 else f


def variables(f: PointFunction, n: int) -> tuple[str, ...]:
    """Return the names of n variables: those of f, or x, y, z, or x1, ..., xn.

    >>> variables(lambda point: point.sum(), 4)
    ('x1', 'x2', 'x3', 'x4')
    """
    if isinstance(known := getattr(f, "variables", None), tuple):
        return known
    return ("x", "y", "z")[:n] if n <= 3 else tuple(f"x{i + 1}" for i in range(n))


def check_variables(names: tuple[str, ...], n: int) -> None:
    """Make sure that a point has a coordinate for every variable.

    Raises:
        ValueError: It has more or fewer.
    """
    if len(names) != n:
        raise ValueError(
            f"a point of {n} coordinate{'s' * (n != 1)} is given: the function takes "
            f"{len(names)}, {', '.join(names)}"
        )
