"""A walk as it grows, step by step: an animation to show."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from PIL import Image

from minitrain.descent import Trajectory
from minitrain.pictures.descent import Walks, draw_descent
from minitrain.pictures.png import SERIES, YELLOW, Picture, in_our_style

NUM_FRAMES = 60
"""At most; of a longer walk every so many steps are shown."""

SECONDS = 8.0
"""How long all frames take, where a step does not take longer than `SLOWEST`."""

SLOWEST = 0.4
"""Seconds for a step of a short walk."""

LAST = 2.5
"""Seconds for the last frame, before the animation starts over."""


@in_our_style
def animate_descent(walks: Walks, **options: Any) -> bytes:
    """Draw walks as they grow, with step and value shown below.

    What does not move is drawn once, and every frame adds the lines to it: sixty frames
    take about a second.

    Args:
        walks: As for `draw_descent`.
        options: As for `draw_descent`; no gradients are drawn unless they ask for it.

    Returns:
        The animation, a GIF file that starts over for ever.
    """
    named = {"": walks} if isinstance(walks, Trajectory) else dict(walks)
    options.setdefault("gradients", False)
    figure = draw_descent(named, **options)
    figure.set_dpi(110)
    stage = _Stage(figure, named)
    steps = shown_steps(max(len(walk.points) for walk in named.values()) - 1)
    frames = [stage.frame(step) for step in steps]
    return _gif(frames, min(SLOWEST, SECONDS / len(frames)))


def shown_steps(last: int) -> list[int]:
    """Return the steps that have a frame: all, or as many, evenly, with both ends.

    >>> shown_steps(3), len(shown_steps(4000)), shown_steps(4000)[-1]
    ([0, 1, 2, 3], 60, 4000)
    """
    evenly = np.linspace(0, last, min(last + 1, NUM_FRAMES))
    return [round(step) for step in evenly]


class _Stage:
    """The picture without its walks, and the walks, of which every frame has a part."""

    def __init__(self, figure: Picture, named: Mapping[str, Trajectory]) -> None:
        self.figure, self.named = figure, named
        self.canvas = FigureCanvasAgg(figure)
        self.lines: list[Line2D] = []
        self.heads: list[Line2D] = []
        for axes in figure.axes:
            found = [line for line in axes.lines if line.get_gid() in named]
            self.lines += found
            self.heads += [_head(axes, line) for line in found]
        self.paths = [np.asarray(line.get_data()) for line in self.lines]
        for legend in figure.legends:
            legend.remove()
        self.legend = figure.legend(
            self.lines[: len(named)], named, title="step 0", loc="outside lower left"
        )
        self.legend.set_alignment("left")
        self.moving = [*self.lines, *self.heads, self.legend]
        self._tell(0)
        self.canvas.draw()  # which finds the places of all
        figure.set_layout_engine("none")
        for artist in self.moving:
            artist.set_animated(True)
        self.canvas.draw()
        self.scenery = self.canvas.copy_from_bbox(figure.bbox)
        self.crop = _crop(figure)

    def frame(self, step: int) -> Image.Image:
        """Draw the walks up to a step; a shorter one waits at its end."""
        self.canvas.restore_region(self.scenery)
        self._tell(step)
        for line, head, path in zip(self.lines, self.heads, self.paths, strict=True):
            so_far = path[:, : step + 1]
            line.set_data(*so_far)
            head.set_data(*so_far[:, -1:])
        for artist in self.moving:
            self.figure.draw_artist(artist)
        pixels = np.asarray(self.canvas.buffer_rgba())[self.crop]
        return Image.fromarray(pixels[:, :, :3].copy())

    def _tell(self, step: int) -> None:
        self.legend.set_title(f"step {step}")
        rows = zip(self.legend.get_texts(), self.named.items(), strict=True)
        for text, (label, walk) in rows:
            value = walk.values[min(step, len(walk.values) - 1)].item()
            text.set_text(f"{label}: f = {value:#.4g}".removeprefix(": "))


def _crop(figure: Picture) -> tuple[slice, slice]:
    """Return the rows and columns of the pixels that are not mere margin."""
    box = figure.get_tightbbox().padded(0.1)  # in inches, from the lower left
    right, top = figure.get_size_inches()
    left, right = max(0, box.x0), min(right, box.x1 + 0.4)  # a value may grow longer
    rows = slice(*(round(figure.dpi * y) for y in (max(0, top - box.y1), top - box.y0)))
    return rows, slice(round(figure.dpi * left), round(figure.dpi * right))


def _head(axes: Axes, line: Line2D) -> Line2D:
    """Mark where a walk stands."""
    edge: dict[str, Any] = {"markeredgecolor": "white", "zorder": 6}
    (head,) = axes.plot([], [], "o", color=line.get_color(), markersize=11, **edge)
    return head


def _gif(frames: Sequence[Image.Image], seconds: float) -> bytes:
    """Return the frames as an animation, in 256 colors: ours, and the commonest."""
    ours = [round(255 * x) for color in (*SERIES, YELLOW) for x in to_rgb(color)]
    ends = np.stack([np.asarray(frame) for frame in (frames[0], frames[-1])])
    codes, counts = np.unique(ends @ np.array([65536, 256, 1]), return_counts=True)
    common: dict[int, int] = {}  # of colors alike the commonest: white stays white
    for code in codes[np.argsort(-counts, kind="stable")].tolist():
        common.setdefault(code & 0xF8F8F8, code)
    others = [code >> shift & 255 for code in common.values() for shift in (16, 8, 0)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*ours, *others][: 3 * 256])
    plain = [
        frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames
    ]
    durations = [round(1000 * seconds)] * (len(frames) - 1) + [round(1000 * LAST)]
    buffer, more = io.BytesIO(), plain[1:]
    plain[0].save(
        buffer, "GIF", save_all=True, append_images=more, duration=durations, loop=0
    )
    return buffer.getvalue()
