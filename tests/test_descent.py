"""Gradient descent on functions of R^n: the walk, and the functions."""

import cmath
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minitrain.descent import LARGEST, NUM_RISES, Trajectory, descend
from minitrain.functions import (
    EXAMPLES,
    Example,
    bowl,
    himmelblau,
    paraboloid,
    rosenbrock,
    saddle,
)
from minitrain.gradients import check_gradient, gradient

each_example = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def random_points(scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(30, 2, dtype=torch.float64, generator=generator)


@functools.cache
def walk(example: Example) -> Trajectory:
    return descend(example.function, example.start, lr=example.lr, steps=example.steps)


def all_numbers(trajectory: Trajectory) -> Tensor:
    columns = (trajectory.values, trajectory.grad_norms)
    matrices = (trajectory.points, trajectory.gradients)
    return torch.cat([*columns, *(matrix.flatten() for matrix in matrices)])


# The walk


def test_on_the_paraboloid_the_iterates_are_powers():
    """theta_k = (1 - 2 lr)^k theta_0, and f, grad f and |grad f| follow from it."""
    seen = descend(paraboloid, (3, 4), lr=0.1, steps=30)
    powers = vector(*(0.8**k for k in range(31)))
    points = powers[:, None] * vector(3, 4)
    close = {"rtol": 0, "atol": 1e-12}  # 30 roundings of numbers below 25
    torch.testing.assert_close(seen.points, points, **close)
    torch.testing.assert_close(seen.values, 25 * powers**2, **close)
    torch.testing.assert_close(seen.gradients, 2 * points, **close)
    torch.testing.assert_close(seen.grad_norms, 10 * powers, **close)
    assert seen.diverged is None


def test_lr_one_half_arrives_in_one_step():
    seen = descend(paraboloid, (3, 4), lr=0.5, steps=3)
    assert seen.points[1:].abs().max() == 0 and seen.grad_norms[1:].max() == 0


def test_lr_one_keeps_the_value():
    seen = descend(paraboloid, (3, 4), lr=1, steps=100)
    assert seen.diverged is None and len(seen.values) == 101
    assert (seen.values == 25).all()
    assert torch.equal(seen.points[1], vector(-3, -4))


@pytest.mark.parametrize("lr", [1.0001, 1.1, 2, 1e3, 1e30, 1e308])
def test_lr_above_one_diverges_and_is_finite_all_the_same(lr: float):
    seen = descend(paraboloid, (3, 4), lr=lr, steps=200)
    assert seen.diverged is not None and 1 <= seen.diverged <= NUM_RISES
    assert len(seen.points) == len(seen.values) == seen.diverged
    assert all_numbers(seen).abs().max() <= LARGEST
    before = descend(paraboloid, (3, 4), lr=lr, steps=max(1, seen.diverged - 1))
    assert torch.equal(before.values, seen.values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_overflow_is_divergence_in_every_dtype(dtype: torch.dtype):
    seen = descend(rosenbrock, torch.tensor([-1.2, 1.0], dtype=dtype), lr=1, steps=50)
    assert seen.diverged is not None and seen.diverged < NUM_RISES
    assert all_numbers(seen).isfinite().all()


def test_a_value_that_is_not_a_number_is_divergence():
    seen = descend(lambda p: p.sqrt().sum(), [1.0], lr=3, steps=5)
    assert seen.diverged == 1 and seen.points.tolist() == [[1.0]]


def test_momentum_may_climb_for_a_while():
    """Rises count only in a row and above all values before."""
    seen = descend(paraboloid, (3, 4), lr=0.001, momentum=0.99, steps=300)
    rises = (seen.values.diff() > 0).sum()
    assert rises > NUM_RISES and seen.diverged is None


def test_dtype_is_that_of_a_tensor_else_float64():
    start = torch.tensor([3.0, 4.0], dtype=torch.float32)
    seen = descend(paraboloid, start, lr=0.1, steps=2)
    assert all_numbers(seen).dtype == torch.float32
    assert start.tolist() == [3, 4] and not start.requires_grad
    assert all_numbers(descend(paraboloid, [3, 4], lr=0.1, steps=2)).dtype == (
        torch.float64
    )


@pytest.mark.parametrize("n", [1, 3, 50])
def test_any_number_of_variables(n: int):
    """f = sum of c_i x_i^2 shrinks x_i by 1 - 2 lr c_i."""
    c = torch.linspace(1, 4, n, dtype=torch.float64)
    seen = descend(lambda x: c @ x**2, torch.ones_like(c), lr=0.1, steps=20)
    expected = torch.stack([(1 - 0.2 * c) ** k for k in range(21)])
    torch.testing.assert_close(seen.points, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("lr", "momentum"), [(0.1, 0.9), (0.05, 0.5), (0.3, 0.1)])
def test_momentum_follows_the_heavy_ball(lr: float, momentum: float):
    """x_{k+1} = (1 + momentum - 2 lr) x_k - momentum x_{k-1}, solved by its roots."""
    trace = 1 + momentum - 2 * lr
    root = cmath.sqrt(trace**2 - 4 * momentum)
    r, s = (trace + root) / 2, (trace - root) / 2
    # x_k = a r^k + b s^k with x_0 = 1 and x_1 = 1 - 2 lr: the first buffer is grad f.
    a = (1 - 2 * lr - s) / (r - s)
    expected = vector(*((a * r**k + (1 - a) * s**k).real for k in range(41)))
    seen = descend(paraboloid, (1, 0), lr=lr, steps=40, momentum=momentum)
    torch.testing.assert_close(seen.points[:, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9, "nesterov": True}, {"momentum": 0.8, "dampening": 0.3}],
    ids=str,
)
def test_options_are_those_of_torch(options: dict[str, Any]):
    seen = descend(himmelblau, (-1, 0), lr=0.001, steps=20, **options)
    theta = vector(-1, 0).requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=0.001, foreach=False, **options)
    for point in seen.points:
        assert torch.equal(theta, point)
        optimizer.zero_grad()
        himmelblau(theta).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        ([], {}, r"shape \(0,\)"),
        (torch.ones(2, 2), {}, r"shape \(2, 2\)"),
        ((math.nan, 0), {}, "not finite"),
        ((1e200, 0), {}, "not finite"),
        ((3, 4), {"steps": 0}, "steps = 0"),
        ((3, 4), {"lr": -1}, "lr = -1"),
        ((3, 4), {"lr": math.nan}, "lr = nan"),
        ((3, 4), {"momentum": -0.1}, "momentum = -0.1"),
        ((3, 4), {"nesterov": True}, "nesterov needs momentum"),
    ],
)
def test_bad_arguments_are_refused(start: Any, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        descend(paraboloid, start, **({"lr": 0.1, "steps": 3} | options))


def test_integers_have_no_gradient():
    with pytest.raises(TypeError, match="int64"):
        descend(paraboloid, torch.tensor([3, 4]), lr=0.1, steps=1)


# The named functions


@each_example
def test_minima_are_stationary_and_have_the_stated_value(example: Example):
    for minimum in example.minima:
        at = gradient(example.function)(vector(*minimum))
        assert isinstance(at, Tensor) and at.norm() < 1e-9
        assert abs(example.function(vector(*minimum)).item() - example.minimum) < 1e-18
        around = vector(*minimum) + random_points(scale=1e-3)
        assert all(example.function(point) > example.minimum for point in around)
    assert bool(example.minima) == math.isfinite(example.minimum)


@each_example
def test_formula_is_the_function(example: Example):
    python = re.sub(r"(?<=[\dxy]) (?=[xy(])", " * ", example.formula.replace("^", "**"))
    for point in random_points(scale=3):
        x, y = point.tolist()
        expected = eval(python, {"x": x, "y": y})
        assert math.isclose(example.function(point).item(), expected, rel_tol=1e-12)
    assert example.formula in " ".join((example.function.__doc__ or "").split())


@each_example
def test_gradients_agree_with_finite_differences(example: Example):
    for point in random_points(scale=2):
        assert check_gradient(example.function, point).relative_difference < 1e-7


@each_example
def test_the_usual_walk_stays_in_sight_and_ends_near_a_minimum(example: Example):
    seen = walk(example)
    assert seen.diverged is None
    left, right, bottom, top = example.window
    x, y = seen.points.T
    assert left < x.min() and x.max() < right and bottom < y.min() and y.max() < top
    if example.minima:
        end = seen.points[-1].tolist()
        assert min(math.dist(end, minimum) for minimum in example.minima) < 0.1
        assert seen.values[-1] < 0.01


def test_a_walk_beside_the_ridge_of_the_saddle_runs_away_along_y():
    seen = walk(EXAMPLES["saddle"])
    k = torch.arange(31, dtype=torch.float64)
    expected = torch.stack([3 * 0.8**k, 0.01 * 1.2**k], dim=1)
    torch.testing.assert_close(seen.points, expected, rtol=0, atol=1e-12)
    assert seen.values[-1] < -5 and seen.diverged is None
    far = descend(saddle, (3, 0.01), lr=0.1, steps=1000)
    assert far.diverged is not None and all_numbers(far).abs().max() <= LARGEST


def test_a_walk_on_the_ridge_of_the_saddle_stays_there():
    seen = descend(saddle, (3, 0), lr=0.1, steps=200)
    assert (seen.points[:, 1] == 0).all()
    assert 0 <= seen.values[-1] < 1e-30


TANGENTS: dict[Callable[[Tensor], Tensor], Callable[[float], tuple[Tensor, Tensor]]] = {
    paraboloid: lambda t: (
        vector(math.cos(t), math.sin(t)),
        vector(-math.sin(t), math.cos(t)),
    ),
    bowl: lambda t: (
        vector(math.cos(t), math.sin(t) / math.sqrt(10)),
        vector(-math.sin(t), math.cos(t) / math.sqrt(10)),
    ),
    saddle: lambda t: (
        vector(math.cosh(t), math.sinh(t)),
        vector(math.sinh(t), math.cosh(t)),
    ),
}
"""Level sets f = 1 as curves: the point at a parameter, and the tangent there."""


@pytest.mark.parametrize("function", TANGENTS, ids=lambda f: f.__name__)
def test_the_gradient_is_orthogonal_to_the_level_set(
    function: Callable[[Tensor], Tensor],
):
    for t in torch.linspace(-3, 3, 61).tolist():
        point, tangent = TANGENTS[function](t)
        assert math.isclose(function(point).item(), 1, abs_tol=1e-12)
        at = gradient(function)(point)
        assert isinstance(at, Tensor)
        assert abs(at / at.norm() @ tangent / tangent.norm()) < 1e-12
