"""The loss around trained weights, and on the straight line to them."""

import math
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from minitrain.pictures.levels import draw_bands
from minitrain.pictures.png import (
    BLACK,
    BLUE,
    VERMILION,
    YELLOW,
    Picture,
    in_our_style,
    use_log_scale,
)

NUM_LEVELS = 13
"""How many levels bound the bands of color."""


@in_our_style
def draw_landscape(
    coordinates: Tensor,
    losses: Tensor,
    line: tuple[Tensor, Tensor] | None = None,
    path: tuple[Tensor, Tensor] | None = None,
    *,
    title: str = "",
) -> Picture:
    """Draw the loss over a plane around the weights, and along a line to them.

    The levels of the loss grow by one factor from each to the next: near the bottom
    they show what is small, and on the walls they do not crowd.

    Args:
        coordinates: Of the points of the plane, along both directions: (num,).
        losses: The loss over the plane, (num, num), in rows of the second direction.
        line: Where on the straight line from the initial to the trained weights, 0 to
            1 and beyond, and the loss there: (k,) and (k,). Without it the plane alone
            is drawn.
        path: The same of the weights that training went through, at the points of the
            line that are nearest to them.
        title: Heading of the picture.

    Returns:
        The figure.
    """
    figure = Picture((5.2, 5.3 if line is None else 8.3), layout="constrained")
    ratios = [1] if line is None else [5, 3]
    above, *below = figure.subplots(len(ratios), height_ratios=ratios, squeeze=False)
    _draw_plane(above[0], coordinates, losses)
    above[0].set_title(title, pad=10, fontsize=13)
    if line is not None:
        _draw_line(below[0][0], line, path)
    return figure


def _draw_plane(axes: Axes, coordinates: Tensor, losses: Tensor) -> None:
    z = losses.clone()
    z[~z.isfinite()] = math.nan
    axes.set_aspect("equal")
    draw_bands(axes, coordinates, coordinates, z, levels_of(z), "$L$")
    axes.scatter([0], [0], marker="*", s=200, color=YELLOW, edgecolors=BLACK, zorder=5)
    below: dict[str, Any] = {"textcoords": "offset points", "ha": "center"}
    axes.annotate("trained", (0, 0), (0, -24), fontsize=13, **below)
    ticks = [coordinates[-1].item() * i / 2 for i in range(-2, 3)]
    labels = [f"{tick:g}" for tick in ticks]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="one random direction", ylabel="another one")


def levels_of(z: Tensor) -> list[float]:
    """Return rounded levels, each larger than the one before by one factor.

    >>> levels_of(torch.tensor([0.01, 10.0]))[::6]
    [0.01, 0.32, 10.0]

    Where a loss is negative, they are at equal distances:

    >>> levels_of(torch.tensor([-2.0, 10.0]))[::6]
    [-2.0, 4.0, 10.0]
    """
    finite = z[z.isfinite()]
    is_signed = bool((finite < 0).any())
    finite = finite if is_signed else finite[finite > 0]
    if not len(finite):
        return [0.0, 0.5, 1.0]
    low, high = finite.min().item(), finite.max().item()
    if is_signed:
        exact = torch.linspace(low, high, NUM_LEVELS, dtype=torch.float64).tolist()
    else:
        ends = math.log10(low), math.log10(high)
        exact = torch.logspace(*ends, NUM_LEVELS).tolist()
    for digits in range(2, 16):  # as few as keep them apart
        levels = sorted({float(f"{level:.{digits}g}") for level in exact})
        if len(levels) == NUM_LEVELS:
            return levels
    return [low, *(low + math.ulp(low) * i for i in (1, 2))]  # it is flat


def _draw_line(
    axes: Axes, line: tuple[Tensor, Tensor], path: tuple[Tensor, Tensor] | None
) -> None:
    axes.plot(*line, color=BLUE, label="straight line")
    if path is not None and len(path[0]):
        axes.plot(*path, "o", color=VERMILION, label="checkpoints", zorder=4)
    use_log_scale(axes)
    axes.set_ylabel("$L$", rotation=0)
    axes.set_xticks([0, 0.5, 1], ["initial\nweights", "halfway", "trained\nweights"])
    axes.grid(alpha=0.3)
    axes.legend()
