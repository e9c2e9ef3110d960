"""Pictures, as the bytes of a PNG file: the same input gives the same bytes.

Import this module only where a picture is drawn, for matplotlib is slow to import. Its
`Figure` objects are used directly, without pyplot: no window opens, and nothing stays
behind in a global state.
"""

import functools
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from minitrain.descent import Trajectory
from minitrain.evaluation import Mistake

# Colours of Okabe and Ito, which the colour-blind can tell apart as well.
BLACK, BLUE, VERMILION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"

NUM_LEVELS = 16
NUM_GRID = 401  # points along each side at which f is evaluated for its level sets
GAP = 0.11  # between two arrows, at least, as a part of the picture's diagonal
LONGEST = 0.14  # arrow, as a part of the picture's diagonal
SHORTEST = 0.15  # arrow, as a part of the longest; shorter ones are left out


def draw_descent(
    function: Callable[[Tensor], Tensor],
    trajectory: Trajectory,
    *,
    title: str,
    minima: Sequence[tuple[float, float]] = (),
    window: tuple[float, float, float, float] | None = None,
) -> bytes:
    """The walk over the level sets of f, with the gradient at some of its points.

    The gradient points up the slope and is as long as the slope is steep; in the
    picture all arrows are scaled by one factor. Through the foot of each goes its level
    set, f = c, on which it stands at a right angle: the axes are equal, so that a right
    angle looks right. Arrows too short to be seen are left out.

    `window`, (x from, x to, y from, y to), is by default the box around the walk; where
    the walk leaves it, it is widened, up to five times its size. If f is not a function
    of two variables, f and |grad f| are drawn over the steps instead.
    """
    if trajectory.points.shape[1] != 2:
        return _png(_draw_curves(trajectory, title))
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
    return _png(figure)


def _draw_level_sets(
    axes: Axes,
    function: Callable[[Tensor], Tensor],
    trajectory: Trajectory,
    chosen: list[int],
) -> None:
    """Bands between levels, darkest at the lowest, and lines through chosen points."""
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
    """The arrows, each with the sign of a right angle at its foot."""
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
    """f at every point  # (N, 2) -> (N,)."""
    try:
        return torch.vmap(function)(points)
    except RuntimeError:  # f looks at its values, in an `if` or by item()
        return torch.stack([function(point).reshape(()) for point in points])


def _corners(
    points: Tensor, window: tuple[float, float, float, float] | None
) -> tuple[Tensor, Tensor]:
    """The lower left and the upper right corner of what is drawn."""
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
    """The corners of the smallest box around all the points  # each (N, 2)."""
    together = torch.cat(points)
    return together.amin(dim=0), together.amax(dim=0)


def _spread(
    points: Tensor, grad_norms: Tensor, allowed: Tensor, gap: Tensor
) -> list[int]:
    """Which points get an arrow: up to ten, in order, steep enough, a gap apart."""
    steep = allowed & (grad_norms > SHORTEST * (grad_norms * allowed).max())
    chosen: list[int] = []
    for i in steep.nonzero().flatten().tolist():
        if all((points[i] - points[j]).norm() >= gap for j in chosen):
            chosen.append(i)
    return chosen[:10]


def draw_mistakes(
    images: Tensor, mistakes: Sequence[Mistake], classes: Sequence[str]
) -> bytes:
    """The examples that a model got wrong, the surest first, each with what it said.

    `images` (N, 28, 28) uint8 are those that the mistakes' numbers refer to.
    """
    columns = 8
    rows = max(1, math.ceil(len(mistakes) / columns))
    figure = Figure(figsize=(1.3 * columns, 1.6 * rows + 0.4))
    # One system of axes, in inches: one for every image takes five times as long.
    axes = figure.add_axes(
        (0, 0, 1, 1), xlim=(0, 1.3 * columns), ylim=(1.6 * rows, -0.4)
    )
    axes.set_axis_off()
    text = functools.partial(axes.text, horizontalalignment="center")
    for place, mistake in enumerate(mistakes):
        left, top = 1.3 * (place % columns) + 0.1, 1.6 * (place // columns) + 0.4
        axes.imshow(
            images[mistake.sample].cpu().numpy(),
            extent=(left, left + 1.1, top + 1.1, top),
            aspect="auto",
            cmap="gray_r",
            vmin=0,
            vmax=255,
        )
        text(
            left + 0.55,
            top - 0.05,
            f"{classes[mistake.target]}, not {classes[mistake.predicted]}\n"
            f"({mistake.probability:.1%} sure)",
            fontsize=9,
        )
    heading = "Worst mistakes: what it is, and what the model took it for"
    text(0.65 * columns, -0.15, heading, fontsize=12)
    return _png(figure)


def draw_confusion(counts: Tensor, classes: Sequence[str]) -> bytes:
    """The table of what was taken for what; a colour is a share of its row's class.

    `counts` [target, predicted]. The diagonal, where both agree, has no colour.
    """
    size = 1.5 + 0.6 * len(classes)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    wrong = shares - torch.diag(shares.diag())
    axes.imshow(wrong.cpu().numpy(), cmap="Oranges", vmin=0, vmax=0.05)
    for target, row in enumerate(counts.tolist()):
        for predicted, count in enumerate(row):
            if count:
                weight = "bold" if target == predicted else "normal"
                style: dict[str, Any] = {"ha": "center", "va": "center"}
                axes.text(predicted, target, str(count), weight=weight, **style)
    axes.set_xticks(range(len(classes)), classes, rotation=45 * (size > 8))
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="taken for", ylabel="it is", title="Confusion")
    return _png(figure)


def draw_weights(weights: Tensor) -> bytes:
    """What each unit of the first layer looks for: its weights as a picture.

    `weights` (units, height, width); up to 40 units. Blue is negative, red
    positive; each unit has a scale of its own.
    """
    weights, columns = weights[:40].detach().cpu(), 10
    rows = math.ceil(len(weights) / columns)
    figure = Figure(figsize=(columns, 1.1 * rows + 0.4), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(weights):
            largest = weights[place].abs().max().item()
            axes.imshow(
                weights[place].numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest
            )
    figure.suptitle("First-layer weights: blue is negative, red is positive")
    return _png(figure)


Curve = tuple[Sequence[int], Sequence[float]]


def draw_runs(runs: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """Loss, gradient norm and accuracy over the steps, for all runs together.

    For each run its curves (steps, values) by tag. Noisy curves are drawn faintly, with
    their running mean over a fiftieth of the run on top.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = {
        "loss/train": "training loss of a batch",
        "grad_norm/global": "|grad L|",
        "accuracy/test": "test accuracy",
    }
    colors = (BLUE, VERMILION, GREEN, BLACK)
    for axes, (tag, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for color, (name, curves) in zip(
            itertools.cycle(colors), runs.items(), strict=False
        ):
            if tag not in curves:
                continue
            steps, values = curves[tag]
            noisy = len(values) > 100
            if noisy:
                axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.5)
                values = _running_mean(values, len(values) // 50)
            axes.plot(steps, values, ".-"[noisy:], color=color, label=name)
        axes.set(title=title, xlabel="step")
        if tag != "accuracy/test":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(figure)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Each value averaged with its neighbours up to width // 2 away on either side."""
    series, half = torch.tensor(values, dtype=torch.float64), width // 2
    windows = [series[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [window.mean().item() for window in windows]


def _png(figure: Figure) -> bytes:
    """The figure as a PNG file, without the entry that names matplotlib's version."""
    buffer = io.BytesIO()
    metadata = {"Software": None}
    figure.savefig(
        buffer, format="png", dpi=120, bbox_inches="tight", metadata=metadata
    )
    return buffer.getvalue()
