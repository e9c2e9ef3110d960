"""Functions of the plane with known minima, to walk down on."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


def paraboloid(point: torch.Tensor) -> torch.Tensor:
    """A round bowl, f(x, y) = x^2 + y^2, with its minimum 0 at (0, 0).

    >>> paraboloid(torch.tensor([3.0, 4.0]))
    tensor(25.)
    """
    x, y = point
    return x**2 + y**2


def bowl(point: torch.Tensor) -> torch.Tensor:
    """A bowl elongated along x, f(x, y) = x^2 + 10 y^2, with its minimum 0 at (0, 0).

    >>> bowl(torch.tensor([3.0, 1.0]))
    tensor(19.)
    """
    x, y = point
    return x**2 + 10 * y**2


def rosenbrock(point: torch.Tensor) -> torch.Tensor:
    """A curved valley, f(x, y) = (1 - x)^2 + 100 (y - x^2)^2, minimum 0 at (1, 1).

    It is easy to fall into and slow to follow (Rosenbrock, An automatic method for
    finding the greatest or least value of a function, 1960).

    >>> rosenbrock(torch.tensor([-1.0, 1.0]))
    tensor(4.)
    """
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def himmelblau(point: torch.Tensor) -> torch.Tensor:
    """Four hollows, f(x, y) = (x^2 + y - 11)^2 + (x + y^2 - 7)^2, minimum 0 in each.

    The start decides which of (3, 2), (-2.81, 3.13), (-3.78, -3.28) and (3.58, -1.85)
    is found (Himmelblau, Applied nonlinear programming, 1972).

    >>> himmelblau(torch.tensor([3.0, 2.0]))
    tensor(0.)
    """
    x, y = point
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def beale(point: torch.Tensor) -> torch.Tensor:
    """A plain between steep walls, with its minimum 0 at (3, 1/2).

    f(x, y) = (1.5 - x + x y)^2 + (2.25 - x + x y^2)^2 + (2.625 - x + x y^3)^2

    >>> beale(torch.tensor([3.0, 0.5]))
    tensor(0.)
    """
    x, y = point
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    return a**2 + b**2 + c**2


def saddle(point: torch.Tensor) -> torch.Tensor:
    """A mountain pass, f(x, y) = x^2 - y^2, which has no minimum: it falls for ever.

    The gradient vanishes at (0, 0), but only a walk along y = 0 comes to rest there.

    >>> saddle(torch.tensor([3.0, 4.0]))
    tensor(-7.)
    """
    x, y = point
    return x**2 - y**2


@dataclass(frozen=True)
class Example:
    """A function of the plane, and a walk that shows what is special about it."""

    function: Callable[[torch.Tensor], torch.Tensor]
    formula: str
    minima: tuple[tuple[float, float], ...]  # all of them
    start: tuple[float, float]
    lr: float
    steps: int
    window: tuple[float, float, float, float]  # to draw: x from, x to, y from, y to
    minimum: float = 0  # the value at the minima, or what f falls to without one


# fmt: off
EXAMPLES = {example.function.__name__: example for example in (
    Example(paraboloid, "x^2 + y^2", ((0, 0),),
            start=(3, 4), lr=0.1, steps=30, window=(-5, 5, -5, 5)),
    Example(bowl, "x^2 + 10 y^2", ((0, 0),),
            start=(4, 1), lr=0.09, steps=40, window=(-5, 5, -2.5, 2.5)),
    Example(rosenbrock, "(1 - x)^2 + 100 (y - x^2)^2", ((1, 1),),
            start=(-1.2, 1), lr=0.0015, steps=4000, window=(-1.75, 1.75, -0.75, 2.25)),
    Example(himmelblau, "(x^2 + y - 11)^2 + (x + y^2 - 7)^2",
            ((3, 2), (-2.805118086952745, 3.131312518250573),
             (-3.779310253377747, -3.2831859912861696),
             (3.5844283403304917, -1.8481265269644036)),
            start=(-1, 0), lr=0.01, steps=30, window=(-5, 5, -5, 5)),
    Example(beale, "(1.5 - x + x y)^2 + (2.25 - x + x y^2)^2 + (2.625 - x + x y^3)^2",
            ((3, 0.5),),
            start=(0.5, -1), lr=0.03, steps=200, window=(-0.5, 4, -1.75, 1.25)),
    Example(saddle, "x^2 - y^2", (), minimum=-math.inf,
            start=(3, 0.01), lr=0.1, steps=30, window=(-4, 4, -3, 3)),
)}
# fmt: on
