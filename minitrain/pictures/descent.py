"""A walk down a function, over its level sets and with its gradients."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minitrain.descent import Trajectory
from minitrain.pictures.png import BLACK, BLUE, GREEN, VERMILION, png

NUM_LEVELS = 16
"""How many level sets bound the bands of color."""


NUM_GRID = 401
"""Points along each side at which f is evaluated for its level sets."""


GAP = 0.11
"""The least distance between two arrows, as a part of the picture's diagonal."""


LONGEST = 0.14
"""The longest arrow, as a part of the picture's diagonal."""


SHORTEST = 0.15
"""The shortest arrow that is drawn, as a part of the longest."""


def draw_descent(
    function: Callable[[Tensor], Tensor],
    trajectory: Trajectory,
    *,
    title: str,
    minima: Sequence[tuple[float, float]] = (),
    window: tuple[float, float, float, float] | None = None,
) -> bytes:
    """Draw the walk over the level sets of f, with the gradient at some of its points.

    The gradient points up the slope, and its norm is the steepness; in the picture all
    arrows are scaled by one factor. Through the foot of each goes its level set, f = c,
    on which it stands at a right angle: the axes are equal, so that a right angle looks
    right. Arrows too short to be seen are left out.

    If f is not a function of two variables, f and |grad f| are drawn over the steps
    instead.

    Args:
        function: f, from (n,) to a scalar.
        trajectory: The walk, as `descend` returns it.
        title: Heading of the picture.
        minima: Points to be marked by stars.
        window: (x from, x to, y from, y to); by default the box around the walk. Where
            the walk leaves it, it is widened, up to five times its size.

    Returns:
        The picture, a PNG file.
    """
    if trajectory.points.shape[1] != 2:
        return png(_draw_curves(trajectory, title))
    points = trajectory.points.cpu().double()
    low, high = _corners(points, window)
    inside = ((points >= low) & (points <= high)).all(dim=1)
    diagonal = (high - low).norm()
    chosen = _spread(points, trajectory.grad_norms.cpu(), inside, GAP * diagonal)
    feet, arrows = points[chosen], trajectory.gradients[chosen].cpu().double()
    if chosen:
        arrows *= LONGEST * diagonal / arrows.norm(dim=1).max()
    low, high = _box(torch.stack([low, high]), feet + 1.1 * arrows)

    width, height = (high - low).tolist()
    figure = Figure((8, min(2.4 + 7 * height / width, 10)), layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    axes.set_xlim(low[0].item(), high[0].item())
    axes.set_ylim(low[1].item(), high[1].item())
    axes.set_xlabel("x", fontsize=13)
    axes.set_ylabel("y", fontsize=13, rotation=0)
    axes.tick_params(labelsize=11)
    axes.set_title(title, fontsize=15, pad=10)
    _draw_walk(axes, points)
    _draw_gradients(axes, feet, arrows, side=0.016 * diagonal)
    _draw_level_sets(axes, function, trajectory, chosen)
    if minima:
        label = "minimum" if len(minima) == 1 else "minima"
        x, y = zip(*minima, strict=True)
        style: dict[str, Any] = {"marker": "*", "edgecolors": "white", "zorder": 5}
        axes.scatter(x, y, s=260, color=GREEN, label=label, **style)
    figure.legend(loc="outside lower center", ncols=2, fontsize=12, frameon=False)
    return png(figure)


def _draw_level_sets(
    axes: Axes,
    function: Callable[[Tensor], Tensor],
    trajectory: Trajectory,
    chosen: list[int],
) -> None:
    """Draw bands between levels, darkest at the lowest, and lines through the feet."""
    x = torch.linspace(*axes.get_xlim(), NUM_GRID)
    y = torch.linspace(*axes.get_ylim(), NUM_GRID)
    grid = torch.cartesian_prod(y, x).flip(1).to(trajectory.points)
    z = _values(function, grid).cpu().double().reshape(NUM_GRID, NUM_GRID)
    z[~z.isfinite()] = math.nan
    # Equal steps in f would crowd at the walls of a valley and leave out its floor;
    # with quantiles every band has its share of the picture, the lower ones a smaller.
    shares = torch.linspace(0, 1, NUM_LEVELS, dtype=z.dtype) ** 2
    levels = z.flatten().nanquantile(shares).unique().tolist()
    if len(levels) < 3:  # f is flat
        return
    depths = torch.linspace(0.55, 0, len(levels) - 1).tolist()
    colors = [(1 - depth, 1 - 0.5 * depth, 1 - 0.2 * depth) for depth in depths]
    axes.contourf(x, y, z, levels=levels, colors=colors, zorder=0)
    # Below the walk, and not dashed where f < 0, as is matplotlib's default.
    style: dict[str, Any] = {"zorder": 1, "linestyles": "solid"}
    axes.contour(x, y, z, levels=levels[1:-1], colors="white", linewidths=0.6, **style)
    through = sorted(set(trajectory.values[chosen].tolist()))
    through = [value for value in through if levels[0] < value < levels[-1]]
    if through:
        axes.contour(x, y, z, levels=through, colors=BLUE, linewidths=1.2, **style)
        axes.plot([], [], color=BLUE, label="level sets $f = c$")


def _draw_walk(axes: Axes, points: Tensor) -> None:
    steps = len(points) - 1
    axes.plot(
        *points.T,
        color=VERMILION,
        linewidth=1.5,
        marker="o",
        markersize=5 if steps <= 100 else 2.5,
        label=f"the walk, {steps} step{'s' * (steps != 1)}",
    )
    start = points[:1].T
    axes.scatter(*start, s=80, color="white", edgecolors=BLACK, zorder=5, label="start")


def _draw_gradients(axes: Axes, feet: Tensor, arrows: Tensor, side: Tensor) -> None:
    """Draw the arrows, each with the sign of a right angle at its foot."""
    scaling: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1}
    axes.quiver(*feet.T, *arrows.T, color=BLACK, width=0.004, zorder=3, **scaling)
    for foot, arrow in zip(feet, arrows, strict=True):
        up = side * arrow / arrow.norm()
        along = torch.stack([-up[1], up[0]])
        square = torch.stack([foot + up, foot + up + along, foot + along])
        axes.plot(*square.T, color=BLACK, linewidth=0.9)
    label = r"the gradient $\nabla f$, uphill, length $\propto |\nabla f|$"
    key = r"$\longrightarrow$"
    axes.plot([], [], " ", color=BLACK, marker=key, markersize=24, label=label)


def _draw_curves(trajectory: Trajectory, title: str) -> Figure:
    figure = Figure((8, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for axes, curve, label, color in (
        (upper, trajectory.values, "$f$", VERMILION),
        (lower, trajectory.grad_norms, r"$|\nabla f|$", BLUE),
    ):
        axes.plot(curve.cpu().double(), "o-", color=color, markersize=4)
        axes.set_ylabel(label, fontsize=14)
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.3)
        if (curve > 0).all():
            axes.set_yscale("log")
    upper.set_title(title, fontsize=15, pad=10)
    lower.set_xlabel("step", fontsize=13)
    return figure


def _values(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Evaluate f at every point: (N, 2) -> (N,)."""
    try:
        return torch.vmap(function)(points)
    except RuntimeError:  # f looks at its values, in an `if` or by item()
        return torch.stack([function(point).reshape(()) for point in points])


def _corners(
    points: Tensor, window: tuple[float, float, float, float] | None
) -> tuple[Tensor, Tensor]:
    """Return the lower left and the upper right corner of what is drawn."""
    if window is None:
        low, high = _box(points)
        margin = 0.2 * (high - low).max()
        return low - (margin or 1), high + (margin or 1)
    corners = torch.tensor(window, dtype=points.dtype).reshape(2, 2).T
    low, high = corners
    near = (points >= 3 * low - 2 * high) & (points <= 3 * high - 2 * low)
    points, margin = points[near.all(dim=1)], 0.05 * (high - low)
    return _box(corners, points - margin, points + margin)


def _box(*points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the corners of the smallest box around all the points, each (N, 2)."""
    together = torch.cat(points)
    return together.amin(dim=0), together.amax(dim=0)


def _spread(
    points: Tensor, grad_norms: Tensor, allowed: Tensor, gap: Tensor
) -> list[int]:
    """Choose the points with an arrow: up to ten in order, steep, and a gap apart."""
    steep = allowed & (grad_norms > SHORTEST * (grad_norms * allowed).max())
    chosen: list[int] = []
    for i in steep.nonzero().flatten().tolist():
        if all((points[i] - points[j]).norm() >= gap for j in chosen):
            chosen.append(i)
    return chosen[:10]
