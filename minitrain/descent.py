"""Gradient descent on a function of R^n, by the very class that trains the networks.

theta <- theta - lr * grad f(theta). On f(x, y) = x^2 + y^2, with its gradient (2x, 2y),
each step multiplies the point by 1 - 2 lr:

>>> from minitrain.functions import paraboloid
>>> descend(paraboloid, (3, 4), lr=0.1, steps=2).points
tensor([[3.0000, 4.0000],
        [2.4000, 3.2000],
        [1.9200, 2.5600]], dtype=torch.float64)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minitrain.gradients import ScalarFunction, gradient
from minitrain.sgd import SGD
from minitrain.variables import of_point

LARGEST = torch.finfo(torch.float32).max  # TensorBoard, for one, holds no larger number
NUM_RISES = 10


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What a walk saw: row k belongs to theta_k, the point after k steps."""

    function: Callable[[Tensor], Tensor]  # f, of the point
    points: Tensor  # (k + 1, n)
    values: Tensor  # (k + 1,)
    gradients: Tensor  # (k + 1, n)
    grad_norms: Tensor  # (k + 1,)
    diverged: int | None  # the step that was given up, and has no row

    def plot(self, **options: Any) -> Any:
        """Return a figure of the walk; the options are those of `draw_descent`."""
        from minitrain.pictures.descent import draw_descent

        return draw_descent(self, **options)


def descend(
    function: ScalarFunction,
    start: Sequence[float] | Tensor,
    *,
    lr: float,
    steps: int,
    momentum: float = 0,
    dampening: float = 0,
    nesterov: bool = False,
) -> Trajectory:
    """Walk down a scalar function of R^n: theta <- theta - lr * grad f(theta).

    A walk that diverges ends early, at the first step where theta, f or grad f is not
    finite or exceeds `LARGEST`, or where f is the highest so far for the `NUM_RISES`th
    time in a row. On x^2 + y^2 every lr > 1 diverges, however close to 1.

    >>> from minitrain.functions import paraboloid
    >>> descend(paraboloid, (3, 4), lr=0.5, steps=1).points[-1].tolist()
    [0.0, 0.0]
    >>> descend(paraboloid, (3, 4), lr=1.1, steps=30).diverged
    10

    Args:
        function: f(point), of one tensor of shape (n,), or f(x, y, ...), of n numbers.
        start: Where the walk starts, shape (n,). All numbers are float64, or of the
            dtype of a start that is a tensor.
        lr, momentum, dampening, nesterov: As for `SGD`. Weight decay is left out: with
            it the walk descends another function, f + weight_decay / 2 |theta|^2.
        steps: The number of updates.

    Raises:
        ValueError: start is not a vector, f is not finite there, or steps < 1; or as
            `gradient` and `SGD` do.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be at least 1")
    if not isinstance(start, Tensor):
        start = torch.tensor(start, dtype=torch.float64)
    if start.dim() != 1 or not len(start):
        raise ValueError(f"start has shape {tuple(start.shape)}: must be (n,), n > 0")
    f = of_point(function)
    theta = nn.Parameter(start.detach().clone(), requires_grad=False)
    options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    optimizer = SGD([theta], lr=lr, **options)
    rows, highest, rises, diverged = [], -math.inf, -1, None
    for step in range(steps + 1):
        point = theta.detach().clone()
        grad = gradient(f)(point)
        assert isinstance(grad, Tensor)
        value = f(point).detach().reshape(())
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
    return Trajectory(f, *map(torch.stack, zip(*rows, strict=True)), diverged=diverged)
