"""What all pictures share: their colors and style, and how they become PNG files."""

import io

import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The colors of Okabe and Ito, which the color-blind can tell apart as well.
BLACK, BLUE, VERMILION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
ORANGE, PURPLE, SKY, YELLOW = "#E69F00", "#CC79A7", "#56B4E9", "#F0E442"

SERIES = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, BLACK, SKY)
"""The colors of curves side by side, in their order."""

STYLE = {
    "axes.labelsize": 14,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 14,
    "figure.titlesize": 14,
    "legend.fontsize": 13,
    "legend.title_fontsize": 13,
    "legend.frameon": False,
    "xtick.labelsize": 13,
    "ytick.labelsize": 13,
}

in_our_style = style.context(["default", STYLE])
"""Decorates what draws: a picture looks the same whatever style its user has set. It
is dark on white, and brings the white along, so that a dark page can show it too."""


def use_log_scale(axes: Axes) -> None:
    """Show values by their logarithms, unless a curve has negative ones."""
    lines = (torch.as_tensor(line.get_ydata()) for line in axes.lines)
    if not any((values < 0).any() for values in lines):
        axes.set_yscale("log")


class Picture(Figure):
    """A figure that Jupyter shows inline, as the result of a cell, and `png` makes.

    It belongs to its caller alone: matplotlib.pyplot, which would keep it, is not used.
    """

    def _repr_png_(self) -> bytes:
        return png(self)


@in_our_style
def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file: the same figure gives the same bytes.

    The entry that names matplotlib's version is left out.
    """
    buffer = io.BytesIO()
    metadata = {"Software": None}
    figure.savefig(
        buffer, format="png", dpi=120, bbox_inches="tight", metadata=metadata
    )
    return buffer.getvalue()
