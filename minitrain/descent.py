"""Gradient descent on a function of R^n, by the very class that trains the networks.

theta <- theta - lr * grad f(theta). On f(x, y) = x^2 + y^2, with its gradient (2x, 2y),
each step multiplies the point by 1 - 2 lr:

>>> descend(paraboloid, (3, 4), lr=0.1, steps=2).points
tensor([[3.0000, 4.0000],
        [2.4000, 3.2000],
        [1.9200, 2.5600]], dtype=torch.float64)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minitrain.gradients import gradient
from minitrain.sgd import SGD

LARGEST = torch.finfo(torch.float32).max  # TensorBoard, for one, holds no larger number
NUM_RISES = 10


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What a walk saw: row k belongs to theta_k, the point after k steps."""

    points: Tensor  # (k + 1, n)
    values: Tensor  # (k + 1,)
    gradients: Tensor  # (k + 1, n)
    grad_norms: Tensor  # (k + 1,)
    diverged: int | None  # the step that was given up, and has no row


def descend(
    function: Callable[[Tensor], Tensor],
    start: Sequence[float] | Tensor,
    *,
    lr: float,
    steps: int,
    momentum: float = 0,
    dampening: float = 0,
    nesterov: bool = False,
) -> Trajectory:
    """Walk down a scalar function of R^n: theta <- theta - lr * grad f(theta).

    `function` maps a tensor of shape (n,) to one with a single element. The numbers are
    float64, or of the dtype of a `start` that is a tensor. The options are `SGD`'s but
    for weight decay, which descends another function, f + weight_decay / 2 |theta|^2.

    A walk that diverges ends early, at the first step where theta, f or grad f is not
    finite or exceeds `LARGEST`, or where f is the highest so far for the `NUM_RISES`th
    time in a row. On x^2 + y^2 that is every lr > 1, be it only a little larger.

    >>> descend(paraboloid, (3, 4), lr=0.5, steps=1).points[-1].tolist()
    [0.0, 0.0]
    >>> descend(paraboloid, (3, 4), lr=1.1, steps=30).diverged
    10

    Raises ValueError where start is not a vector or f not finite there, or steps < 1;
    and as `gradient` and `SGD` do.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be at least 1")
    if not isinstance(start, Tensor):
        start = torch.tensor(start, dtype=torch.float64)
    if start.dim() != 1 or not len(start):
        raise ValueError(f"start has shape {tuple(start.shape)}: must be (n,), n > 0")
    theta = nn.Parameter(start.detach().clone(), requires_grad=False)
    options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    optimizer = SGD([theta], lr=lr, **options)
    rows, highest, rises, diverged = [], -math.inf, -1, None
    for step in range(steps + 1):
        point = theta.detach().clone()
        grad = gradient(function)(point)
        assert isinstance(grad, Tensor)
        value = function(point).detach().reshape(())
        row = (point, value, grad, torch.linalg.vector_norm(grad))
        rises = rises + 1 if value > highest else 0
        highest = max(highest, value)
        # A NaN is its tensor's maximum, and no comparison with it is true.
        finite = all(entry.abs().max().item() <= LARGEST for entry in row)
        if not finite or rises == NUM_RISES:
            diverged = step
            break
        rows.append(row)
        theta.grad = grad
        optimizer.step()
    if not rows:
        raise ValueError(f"start = {start.tolist()}: f or its gradient is not finite")
    return Trajectory(*map(torch.stack, zip(*rows, strict=True)), diverged=diverged)


def paraboloid(point: Tensor) -> Tensor:
    """A round bowl, f(x, y) = x^2 + y^2, with its minimum 0 at (0, 0).

    >>> paraboloid(torch.tensor([3.0, 4.0]))
    tensor(25.)
    """
    x, y = point
    return x**2 + y**2


def bowl(point: Tensor) -> Tensor:
    """A bowl elongated along x, f(x, y) = x^2 + 10 y^2, with its minimum 0 at (0, 0).

    >>> bowl(torch.tensor([3.0, 1.0]))
    tensor(19.)
    """
    x, y = point
    return x**2 + 10 * y**2


def rosenbrock(point: Tensor) -> Tensor:
    """A curved valley, f(x, y) = (1 - x)^2 + 100 (y - x^2)^2, minimum 0 at (1, 1).

    It is easy to fall into and slow to follow (Rosenbrock, An automatic method for
    finding the greatest or least value of a function, 1960).

    >>> rosenbrock(torch.tensor([-1.0, 1.0]))
    tensor(4.)
    """
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def himmelblau(point: Tensor) -> Tensor:
    """Four hollows, f(x, y) = (x^2 + y - 11)^2 + (x + y^2 - 7)^2, minimum 0 in each.

    The start decides which of (3, 2), (-2.81, 3.13), (-3.78, -3.28) and (3.58, -1.85)
    is found (Himmelblau, Applied nonlinear programming, 1972).

    >>> himmelblau(torch.tensor([3.0, 2.0]))
    tensor(0.)
    """
    x, y = point
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def beale(point: Tensor) -> Tensor:
    """A plain between steep walls, with its minimum 0 at (3, 1/2).

    f(x, y) = (1.5 - x + x y)^2 + (2.25 - x + x y^2)^2 + (2.625 - x + x y^3)^2

    >>> beale(torch.tensor([3.0, 0.5]))
    tensor(0.)
    """
    x, y = point
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    return a**2 + b**2 + c**2


def saddle(point: Tensor) -> Tensor:
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

    function: Callable[[Tensor], Tensor]
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
