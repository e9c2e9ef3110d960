"""The picture of a landscape shows the values that it is given."""

import math

import numpy as np
import torch
from harness.pictures import assert_is_a_picture
from numpy.testing import assert_allclose
from pytest import approx

from minitrain.pictures.landscape import draw_landscape, levels_of
from minitrain.pictures.png import png

X = torch.linspace(-1, 1, 21, dtype=torch.float64)


def bowl() -> torch.Tensor:
    """0.01 + x^2 + 4 y^2: rows are those of y."""
    return 0.01 + X**2 + 4 * X[:, None] ** 2


def test_bands_line_and_checkpoints_are_where_their_values_are() -> None:
    alphas = torch.linspace(-0.25, 1.25, 31)
    line, path = (
        (alphas, 2 - alphas),
        (torch.tensor([0.0, 0.7]), torch.tensor([2.0, 1])),
    )
    figure = draw_landscape(X, bowl(), line, path, title="a run")
    above, below = figure.axes
    curve, dots = below.lines
    assert_allclose(np.asarray(curve.get_xydata()), torch.stack(line).T)
    assert_allclose(np.asarray(dots.get_xydata()), torch.stack(path).T)
    assert dots.get_linestyle() == "None" and below.get_yscale() == "log"
    # The level sets are ellipses, twice as wide as high: x goes to the right.
    contours = above.collections[1]
    ellipse = np.asarray(contours.get_paths()[8].vertices)
    width, height = np.ptp(ellipse, axis=0)
    assert 1.8 < width / height < 2.2
    assert_is_a_picture(png(figure))


def test_levels_grow_by_one_factor_from_the_lowest_to_the_highest() -> None:
    levels = levels_of(bowl())
    assert levels[0] == 0.01 and levels[-1] == 5.0
    factors = np.diff(np.log(levels))
    assert_allclose(factors, math.log(501) / 12, rtol=0.1)


def test_what_is_flat_zero_or_not_finite_is_drawn_too() -> None:
    spoiled = bowl()
    spoiled[0, :5], spoiled[3, 3] = math.inf, math.nan
    for losses in (torch.ones(21, 21), torch.zeros(21, 21), spoiled):
        figure = draw_landscape(X, losses.double())
        assert figure.axes[0].collections and png(figure)
    assert levels_of(spoiled) == levels_of(spoiled.nan_to_num(posinf=1.0, nan=1.0))


def test_a_landscape_below_zero_has_levels_at_equal_distances() -> None:
    below = bowl() - 3
    levels = levels_of(below)
    assert levels[0] == approx(-2.99, abs=0.02) and levels[-1] == approx(2.0, abs=0.02)
    assert_allclose(np.diff(levels), 5 / 12, atol=0.1)  # they are rounded
    line = X, below[10]
    figure = draw_landscape(X, below, line, (X[10:11], below[10][10:11]))
    _, under = figure.axes
    assert under.get_yscale() == "linear" and under.get_ylim()[0] < -2.99
