"""Level sets of a function of the plane: bands of color, and the scale beside them."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor


def draw_bands(
    axes: Axes, x: Tensor, y: Tensor, z: Tensor, levels: Sequence[float], name: str
) -> None:
    """Draw bands between levels, darkest at the lowest, below whatever else is drawn.

    Args:
        axes: Where to draw.
        x, y: Coordinates of the points: (columns,) and (rows,).
        z: The values there, NaN where there is none: (rows, columns).
        levels: The values between the bands, ascending, three at least.
        name: What the values are called, above the scale.
    """
    steps = [1 - i / len(levels) for i in range(len(levels) + 1)]
    colors = [(1 - s / 2, 1 - 0.4 * s, 1 - 0.3 * s) for s in steps]
    bands = axes.contourf(
        x, y, z, levels=levels, colors=colors, extend="both", zorder=0
    )
    # Not dashed where the values are negative, as is matplotlib's default.
    style: dict[str, Any] = {"zorder": 1, "linestyles": "solid"}
    axes.contour(x, y, z, levels=levels, colors="white", linewidths=0.6, **style)
    bar = axes.inset_axes((1.03, 0, 0.045, 1))
    scale: dict[str, Any] = {"spacing": "uniform", "ticks": levels[::2]}
    axes.figure.colorbar(bands, cax=bar, format="%g", extendfrac=0.04, **scale)
    bar.set_title(name)
