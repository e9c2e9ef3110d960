"""A walk down a function, over its level sets and with its gradients."""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from minitrain.descent import Trajectory
from minitrain.pictures.levels import draw_bands
from minitrain.pictures.png import BLACK, BLUE, SERIES, YELLOW, Picture, in_our_style
from minitrain.variables import variables

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


Walks = Trajectory | Mapping[str, Trajectory]
"""A walk, or several down one function, by what they are called."""


@in_our_style
def draw_descent(
    walks: Walks,
    *,
    title: str = "",
    minima: Sequence[tuple[float, float]] = (),
    window: tuple[float, float, float, float] | None = None,
    gradients: bool | None = None,
) -> Picture:
    """Draw a walk over the level sets of f, with the gradient at some of its points.

    The gradient points up the slope, and its norm is the steepness; in the picture all
    arrows are scaled by one factor. Through the foot of each goes its level set, f = c,
    on which it stands at a right angle: the axes are equal, so that a right angle looks
    right. Arrows too short to be seen are left out.

    If f is not a function of two variables, f and |grad f| are drawn over the steps
    instead.

    Args:
        walks: What `descend` returns, or several of them by their labels.
        title: Heading of the picture.
        minima: Points to be marked by stars.
        window: (x from, x to, y from, y to); by default the box around the walks, but
            for those that diverge beside others. Where they leave it, it is widened, up
            to five times its size.
        gradients: Whether the gradients of the first walk are drawn; by default they
            are where it is the only one.

    Returns:
        The figure. The line of each walk has its label as its gid.

    Raises:
        ValueError: There is no walk.
    """
    named = {"": walks} if isinstance(walks, Trajectory) else dict(walks)
    if not named:
        raise ValueError("walks = {}: a picture needs at least one")
    first = next(iter(named.values()))
    if first.points.shape[1] != 2:
        return _draw_curves(named, title)
    low, high = _corners(_points_in_sight(named), window)
    chosen: list[int] = []
    if gradients or (gradients is None and len(named) == 1):
        chosen = _spread(first, low, high)
    diagonal = (high - low).norm()
    feet, arrows = first.points[chosen].cpu(), first.gradients[chosen].cpu().double()
    if chosen:
        arrows *= LONGEST * diagonal / arrows.norm(dim=1).max()
    low, high = _box(torch.stack([low, high]), feet + 1.1 * arrows)

    figure, axes = _plane(low, high, variables(first.function, 2))
    _entitle(axes, title)
    _draw_walks(axes, named)
    if chosen:
        _draw_gradients(axes, feet, arrows, side=0.016 * diagonal)
    _draw_level_sets(axes, first, chosen)
    if minima:
        _draw_minima(axes, minima)
    _explain(figure)
    return figure


def _plane(low: Tensor, high: Tensor, names: Sequence[str]) -> tuple[Picture, Axes]:
    """Return a figure with one system of axes, of equal scales, between two corners."""
    width, height = (high - low).tolist()
    figure = Picture((5.2, 1.3 + min(3.9 * height / width, 5)), layout="compressed")
    axes = figure.add_subplot(aspect="equal")
    axes.set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()))
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1], rotation=0)
    return figure, axes


def _entitle(axes: Axes, title: str) -> None:
    """Write the title, small where it is long."""
    seen = re.sub(r"[$^_{}\\]", "", title)  # of mathematics, too
    longest = max(1, *map(len, seen.split("\n")))
    axes.set_title(title, pad=10, fontsize=min(14, 14 * 42 / longest))


def _explain(figure: Picture) -> None:
    """Write the legend below, with room of its own: two columns of short labels."""
    _, labels = figure.axes[0].get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 22 else 2
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 + 0.28 * rows)
    figure.legend(loc="outside lower center", ncols=columns)


def _draw_level_sets(axes: Axes, walk: Trajectory, chosen: list[int]) -> None:
    """Draw bands between levels, darkest at the lowest, and lines through the feet."""
    x = torch.linspace(*axes.get_xlim(), NUM_GRID)
    y = torch.linspace(*axes.get_ylim(), NUM_GRID)
    grid = torch.cartesian_prod(y, x).flip(1).to(walk.points)
    z = _values(walk.function, grid).cpu().double().reshape(NUM_GRID, NUM_GRID)
    z[~z.isfinite()] = math.nan
    levels = _levels(z)
    if len(levels) < 3:  # f is flat
        return
    draw_bands(axes, x, y, z, levels, "$f$")
    through = sorted(set(walk.values[chosen].tolist()))
    through = [value for value in through if levels[0] < value < levels[-1]]
    if through:
        style: dict[str, Any] = {"linestyles": "solid", "linewidths": 1.2}
        axes.contour(x, y, z, levels=through, colors=BLUE, zorder=1, **style)
        axes.plot([], [], color=BLUE, label="level sets $f = c$")


def _levels(z: Tensor) -> list[float]:
    """Choose the levels: rounded, and as far apart as shows the shape of f.

    Equal steps in f would crowd at the walls of a valley and leave out its floor; with
    quantiles every band has its share of the picture, the lower ones a smaller.
    """
    shares = torch.linspace(0, 1, NUM_LEVELS + 2, dtype=z.dtype)[1:-1] ** 2
    exact = z.flatten().nanquantile(shares).unique().tolist()
    rounded = exact
    for digits in range(15, 1, -1):  # as few as keep them apart
        shorter = sorted({float(f"{level:.{digits}g}") for level in exact})
        if len(shorter) < len(exact):
            break
        rounded = shorter
    return rounded


def _draw_walks(axes: Axes, named: Mapping[str, Trajectory]) -> None:
    for (label, walk), look in zip(named.items(), looks(), strict=False):
        steps = len(walk.points) - 1
        name = label or f"the walk, {steps} step{'s' * (steps != 1)}"
        axes.plot(
            *walk.points.cpu().double().T,
            markersize=5 if steps <= 100 else 2.5,
            gid=label,
            label=name + ", diverged" * bool(label and walk.diverged),
            **look,
        )
    starts = torch.stack([walk.points[0].cpu() for walk in named.values()])
    style: dict[str, Any] = {"color": "white", "edgecolors": BLACK, "zorder": 5}
    axes.scatter(*starts.unique(dim=0).T, s=80, label="start", **style)


def looks() -> Iterator[dict[str, Any]]:
    """Yield color, marker and line style of one walk after the other."""
    pairs = list(zip(SERIES, "osDv^P*", strict=True))
    all_of_them = itertools.product(("-", "--", ":"), pairs)
    for style, (color, marker) in itertools.cycle(all_of_them):
        yield {"color": color, "marker": marker, "linestyle": style, "linewidth": 1.5}


def _draw_gradients(axes: Axes, feet: Tensor, arrows: Tensor, side: Tensor) -> None:
    """Draw the arrows, each with the sign of a right angle at its foot."""
    scaling: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1}
    axes.quiver(*feet.T, *arrows.T, color=BLACK, width=0.004, zorder=3, **scaling)
    for foot, arrow in zip(feet, arrows, strict=True):
        up = side * arrow / arrow.norm()
        along = torch.stack([-up[1], up[0]])
        square = torch.stack([foot + up, foot + up + along, foot + along])
        axes.plot(*square.T, color=BLACK, linewidth=0.9)
    label = r"$\nabla f$, uphill"
    key = r"$\longrightarrow$"
    axes.plot([], [], " ", color=BLACK, marker=key, markersize=24, label=label)


def _draw_minima(axes: Axes, minima: Sequence[tuple[float, float]]) -> None:
    style: dict[str, Any] = {"marker": "*", "edgecolors": BLACK, "zorder": 5}
    style["label"] = "minimum" if len(minima) == 1 else "minima"
    axes.scatter(*zip(*minima, strict=True), s=200, color=YELLOW, **style)


def _draw_curves(named: Mapping[str, Trajectory], title: str) -> Picture:
    figure = Picture((5.2, 5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for (label, walk), look in zip(named.items(), looks(), strict=False):
        style: dict[str, Any] = {"gid": label, "markersize": 4, **look}
        upper.plot(walk.values.cpu().double(), label=label, **style)
        lower.plot(walk.grad_norms.cpu().double(), **style)
    for axes, label in ((upper, "$f$"), (lower, r"$|\nabla f|$")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if all((torch.as_tensor(line.get_ydata()) > 0).all() for line in axes.lines):
            axes.set_yscale("log")
    _entitle(upper, title)
    lower.set_xlabel("step")
    if len(named) > 1:
        _explain(figure)
    return figure


def _values(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Evaluate f at every point: (N, 2) -> (N,)."""
    try:
        return torch.vmap(function)(points)
    except RuntimeError:  # f looks at its values, in an `if` or by item()
        return torch.stack([function(point).reshape(()) for point in points])


def _points_in_sight(named: Mapping[str, Trajectory]) -> Tensor:
    """Return the points of the walks, without those that diverge beside others."""
    calm = [walk for walk in named.values() if walk.diverged is None]
    walks = calm or list(named.values())
    return torch.cat([walk.points.cpu().double() for walk in walks])


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


def _spread(walk: Trajectory, low: Tensor, high: Tensor) -> list[int]:
    """Choose the points with an arrow: up to ten in order, steep, and a gap apart."""
    points, grad_norms = walk.points.cpu().double(), walk.grad_norms.cpu()
    inside = ((points >= low) & (points <= high)).all(dim=1)
    steep = inside & (grad_norms > SHORTEST * (grad_norms * inside).max())
    gap = GAP * (high - low).norm()
    chosen: list[int] = []
    for i in steep.nonzero().flatten().tolist():
        if all((points[i] - points[j]).norm() >= gap for j in chosen):
            chosen.append(i)
    return chosen[:10]
