"""Functions of coordinates and of points."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minitrain.descent import descend
from minitrain.variables import OfPoint, of_point, variables


def of_three(a: Tensor, b: Tensor, c: Tensor, scale: float = 2) -> Tensor:
    return scale * (a**2 + b**2 * c**2)


def test_a_walk_is_the_same_on_coordinates_and_on_the_point() -> None:
    options = {"lr": 0.05, "steps": 20, "momentum": 0.5}
    whole = descend(
        lambda p: 2 * (p[0] ** 2 + p[1] ** 2 * p[2] ** 2), (1, 2, 1), **options
    )
    parts = descend(of_three, (1, 2, 1), **options)
    torch.testing.assert_close(parts.points, whole.points, rtol=0, atol=1e-15)
    assert torch.equal(
        parts.values, torch.stack([of_three(p[0], p[1], p[2]) for p in parts.points])
    )
    assert variables(parts.function, 3) == ("a", "b", "c")


@pytest.mark.parametrize(
    "f",
    [
        lambda point: point.sum(),
        lambda point, power=2: (point**power).sum(),
        lambda *coordinates: coordinates[0].sum(),
        torch.sum,
        nn.Linear(3, 1),
        functools.partial(torch.pow, exponent=2),
    ],
)
def test_a_function_of_the_point_stays_as_it_is(f: Any) -> None:
    assert of_point(f) is f


def test_a_partial_function_keeps_the_arguments_that_it_needs() -> None:
    f = of_point(functools.partial(of_three, scale=1))
    assert isinstance(f, OfPoint) and f.variables == ("a", "b", "c")
    assert of_point(f) is f


def test_names_by_default() -> None:
    def f(point: Tensor) -> Tensor:
        return point.sum()

    assert variables(f, 1) == ("x",) and variables(f, 3) == ("x", "y", "z")
    assert variables(f, 4) == ("x1", "x2", "x3", "x4")


def test_a_start_of_another_dimension_is_told() -> None:
    with pytest.raises(ValueError, match=r"2 coordinates .* takes 3, a, b, c"):
        descend(of_three, (1, 2), lr=0.1, steps=1)
