"""What every layer does over the steps, as a map: rows of color, one a parameter."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

MOST_LABELS = 24
"""Rows that are named; of more, every second, third, ... is."""

MOST_LETTERS = 22
"""Letters of the name of a row; of a longer name the end is kept."""


def draw_grad_norms(
    names: Sequence[str], steps: Sequence[int], values: Tensor
) -> Figure:
    """Draw log10 |g| of each parameter over the steps.

    Layers whose gradient vanishes are dark, those where it explodes are bright, and
    where it is exactly 0, as of dead units, the map is black. The scale is the same in
    all pictures, so that runs compare.

    Args:
        names: Of the parameters, in the order of the network.
        steps: Of the columns, rising.
        values: The norms, shape (names, steps); NaN is not drawn.
    """
    style = {"cmap": "viridis", "vmin": -6.0, "vmax": 2.0}
    title = r"$\log_{10}|g|$ of each layer (black: $g = 0$)"
    return _draw_map(names, steps, values, title, style)


def draw_update_ratios(
    names: Sequence[str], steps: Sequence[int], values: Tensor
) -> Figure:
    """Draw log10 of |u| / |theta| of each parameter over the steps.

    About 1e-3, the middle of the scale, is healthy, and white; red parameters are
    overwritten, and blue ones hardly move. Black is no update at all.

    Args:
        names: Of the parameters, in the order of the network.
        steps: Of the columns, rising.
        values: The ratios, shape (names, steps); NaN is not drawn.
    """
    style = {"cmap": "RdBu_r", "vmin": -6.0, "vmax": 0.0}
    title = r"$\log_{10}\,|u|/|\theta|$ of each layer (black: $u = 0$)"
    return _draw_map(names, steps, values, title, style)


def _draw_map(
    names: Sequence[str],
    steps: Sequence[int],
    values: Tensor,
    title: str,
    style: dict[str, Any],
) -> Figure:
    """Draw log10 of values; the columns reach halfway to their neighbors."""
    figure = Figure(figsize=(8, min(2 + 0.5 * len(names), 9)), layout="constrained")
    axes = figure.add_subplot(facecolor="0.85")
    logs = values.double().log10()
    zeros = torch.where(values == 0, 0.0, torch.nan)
    grid = _edges(steps), list(range(len(names) + 1))
    shown = logs.masked_fill(values == 0, torch.nan)
    mesh = axes.pcolormesh(*grid, shown.numpy(), **style)
    axes.pcolormesh(*grid, zeros.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.invert_yaxis()
    every = -(-len(names) // MOST_LABELS)
    places = range(0, len(names), every)
    labels = [_shorten(names[place]) for place in places]
    axes.set_yticks([place + 0.5 for place in places], labels, fontsize=18)
    axes.tick_params(axis="x", labelsize=18)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("step", fontsize=18)
    axes.set_title(title, fontsize=21, pad=12)
    ticks = range(int(style["vmin"]), int(style["vmax"]) + 1, 2)
    bar = figure.colorbar(mesh, ax=axes, extend="both", pad=0.02, ticks=ticks)
    bar.ax.tick_params(labelsize=18)
    return figure


def _edges(steps: Sequence[int]) -> list[float]:
    """Return where columns begin and end: halfway between the steps.

    >>> _edges([1, 10, 20])
    [0.5, 5.5, 15.0, 20.5]
    """
    middles = [(a + b) / 2 for a, b in itertools.pairwise(steps)]
    return [steps[0] - 0.5, *middles, steps[-1] + 0.5]


def _shorten(name: str) -> str:
    """Return a name that fits: the end of a long one.

    >>> _shorten("transformer.layers.11.attention.in_proj_weight")
    '…tention.in_proj_weight'
    """
    return name if len(name) <= MOST_LETTERS else f"…{name[-MOST_LETTERS:]}"
