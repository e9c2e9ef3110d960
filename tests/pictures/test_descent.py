"""The picture of a walk: its arrows are the gradients, on equal axes."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from harness.pictures import assert_is_a_picture
from torch import Tensor

from minitrain.descent import Trajectory, descend
from minitrain.functions import EXAMPLES, Example
from minitrain.pictures import descent
from minitrain.pictures.descent import draw_descent

each_example = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)


@functools.cache
def walk(example: Example) -> Trajectory:
    return descend(example.function, example.start, lr=example.lr, steps=example.steps)


def draw(example: Example, trajectory: Trajectory) -> bytes:
    return draw_descent(
        example.function,
        trajectory,
        title=f"$f(x, y) = {example.formula}$",
        minima=example.minima,
        window=example.window,
    )


@each_example
def test_arrows_are_the_gradients_on_equal_axes(
    example: Example, monkeypatch: pytest.MonkeyPatch
):
    drawn = []
    monkeypatch.setattr(descent, "png", drawn.append)
    monkeypatch.setattr(descent, "NUM_GRID", 51)
    seen = walk(example)
    draw(example, seen)
    (axes,) = drawn[0].axes
    assert axes.get_aspect() == 1 and example.formula in axes.get_title()
    (arrows,) = [
        artist for artist in axes.collections if type(artist).__name__ == "Quiver"
    ]
    assert arrows.angles == arrows.scale_units == "xy" and arrows.scale == 1
    feet = torch.as_tensor(arrows.XY)
    directions = torch.stack([torch.as_tensor(arrows.U), torch.as_tensor(arrows.V)], 1)
    assert 1 <= len(feet) <= 10
    scales, values = [], []
    for foot, direction in zip(feet, directions, strict=True):
        (row,) = (seen.points == foot).all(dim=1).nonzero()[:, 0]
        grad = seen.gradients[row]
        values.append(seen.values[row].item())
        scales.append((direction @ grad / grad.norm() ** 2).item())
        torch.testing.assert_close(direction, scales[-1] * grad, rtol=0, atol=1e-12)
    level_sets = [list(getattr(artist, "levels", ())) for artist in axes.collections]
    assert sorted(values) in level_sets
    assert min(scales) > 0 and math.isclose(min(scales), max(scales), rel_tol=1e-12)


@each_example
def test_the_same_walk_gives_the_same_picture(example: Example):
    first, second = (draw(example, walk(example)) for _ in range(2))
    assert first == second
    assert_is_a_picture(first)


@pytest.mark.parametrize("lr", [0.1, 1.1, 1e30])
@pytest.mark.parametrize("name", ["paraboloid", "himmelblau", "saddle"])
def test_a_diverging_walk_has_a_picture(
    name: str, lr: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(descent, "NUM_GRID", 51)
    example = EXAMPLES[name]
    seen = descend(example.function, example.start, lr=lr, steps=300)
    window = example.window if lr < 1e30 else None
    assert_is_a_picture(draw_descent(example.function, seen, title="", window=window))


def test_functions_of_other_than_two_variables_are_drawn_over_the_steps():
    for n in (1, 3):
        seen = descend(lambda x: x @ x, torch.ones(n), lr=0.1, steps=20)
        assert_is_a_picture(draw_descent(lambda x: x @ x, seen, title="R^n"))


@pytest.mark.parametrize(
    "function",
    [
        lambda p: p @ p if p[0] > 0 else (p**4).sum(),  # cannot be mapped over a grid
        lambda p: p.log().sum() ** 2,  # is no number in three quarters of the plane
        lambda p: 0 * p.sum(),  # has no slope
    ],
    ids=["branching", "partial", "flat"],
)
def test_functions_of_ones_own(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(descent, "NUM_GRID", 51)
    seen = descend(function, torch.tensor([2.0, 3.0]), lr=0.1, steps=20)
    window = (-2.0, 2.0, -2.0, 2.0)
    assert_is_a_picture(draw_descent(function, seen, title="own", window=window))
