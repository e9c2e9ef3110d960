"""The picture of a walk: its arrows are the gradients, on equal axes; and it moves."""

import functools
import io
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from harness.pictures import assert_is_a_picture
from matplotlib.colors import to_rgb
from matplotlib.contour import QuadContourSet
from matplotlib.quiver import Quiver
from numpy.testing import assert_array_equal
from PIL import Image
from torch import Tensor

from minitrain.descent import Trajectory, descend
from minitrain.functions import EXAMPLES, Example
from minitrain.pictures import descent
from minitrain.pictures.animation import animate_descent, shown_steps
from minitrain.pictures.descent import Walks, draw_descent, looks
from minitrain.pictures.png import STYLE, Picture, png

each_example = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)


@functools.cache
def walk(example: Example) -> Trajectory:
    return descend(example.function, example.start, lr=example.lr, steps=example.steps)


def draw(example: Example, walks: Walks) -> Picture:
    return draw_descent(
        walks,
        title=f"$f(x, y) = {example.formula}$",
        minima=example.minima,
        window=example.window,
    )


@each_example
def test_arrows_are_the_gradients_on_equal_axes(
    example: Example, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(descent, "NUM_GRID", 51)
    seen = walk(example)
    (axes,) = draw(example, seen).axes
    assert axes.get_aspect() == 1 and example.formula in axes.get_title()
    (arrows,) = [artist for artist in axes.collections if isinstance(artist, Quiver)]
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
    first, second = (png(draw(example, walk(example))) for _ in range(2))
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
    assert_is_a_picture(png(draw_descent(seen, window=window)))


def test_functions_of_other_than_two_variables_are_drawn_over_the_steps():
    for n in (1, 3):
        seen = descend(lambda x: x @ x, torch.ones(n), lr=0.1, steps=20)
        assert_is_a_picture(png(draw_descent(seen, title="R^n")))


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
    assert_is_a_picture(png(draw_descent(seen, title="own", window=window)))


BOWL = EXAMPLES["bowl"]


@functools.cache
def three_walks() -> dict[str, Trajectory]:
    return {
        f"lr = {lr}": descend(BOWL.function, BOWL.start, lr=lr, steps=12)
        for lr in (0.02, 0.09, 0.15)
    }


def paths(figure: Picture, place: int = 0) -> dict[str, np.ndarray]:
    """The points of every line that has a name of its own."""
    lines = figure.axes[place].lines
    named = [line for line in lines if line.get_gid()]
    return {str(line.get_gid()): np.asarray(line.get_xydata()) for line in named}


def test_several_walks_have_their_paths_each_in_its_color() -> None:
    figure = draw(BOWL, three_walks())
    drawn = paths(figure)
    assert list(drawn) == ["lr = 0.02", "lr = 0.09", "lr = 0.15"]
    for label, seen in three_walks().items():
        assert_array_equal(drawn[label], seen.points)
    lines = [line for line in figure.axes[0].lines if line.get_gid()]
    assert len({to_rgb(line.get_color()) for line in lines}) == 3
    assert len({str(line.get_marker()) for line in lines}) == 3
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named[:3] == ["lr = 0.02", "lr = 0.09", "lr = 0.15, diverged"]
    assert not any(isinstance(a, Quiver) for a in figure.axes[0].collections)


def test_what_diverges_beside_others_does_not_set_the_scale() -> None:
    (axes,) = draw_descent(three_walks()).axes
    assert axes.get_xlim()[1] < 6 and axes.get_ylim()[1] < 3
    alone = three_walks()["lr = 0.15"]
    (axes,) = draw_descent(alone).axes
    assert axes.get_ylim()[1] > alone.points[:, 1].max()


def test_walks_in_other_dimensions_are_curves_of_value_and_norm() -> None:
    a, b = (descend(lambda p: p @ p, (1, 2, 3), lr=lr, steps=5) for lr in (0.1, 0.3))
    figure = draw_descent({"a": a, "b": b})
    for place, rows in enumerate(((a.values, b.values), (a.grad_norms, b.grad_norms))):
        drawn = paths(figure, place)
        assert_array_equal(drawn["a"][:, 1], rows[0])
        assert_array_equal(drawn["b"][:, 1], rows[1])


def test_the_scale_tells_rounded_levels() -> None:
    """Through the bands of x^2 + y^2, with the darkest at the lowest."""
    figure = draw(EXAMPLES["paraboloid"], walk(EXAMPLES["paraboloid"]))
    (bar,) = figure.axes[0].child_axes
    told = [float(text.get_text().replace("\N{MINUS SIGN}", "-"))
            for text in bar.get_yticklabels()]  # fmt: skip
    assert len(told) >= 6 and told == sorted(set(told))
    assert all(value == float(f"{value:.2g}") for value in told)
    sets = [a for a in figure.axes[0].collections if isinstance(a, QuadContourSet)]
    (bands,) = [each for each in sets if each.filled]
    assert set(told) <= set(bands.levels)
    light = np.asarray(bands.get_facecolor())[:, :3].sum(axis=1)
    assert (np.diff(light) > 0).all()


def test_a_walk_plots_itself_with_the_names_of_its_variables() -> None:
    seen = descend(lambda u, v: u**2 + 3 * v**2, (3, 4), lr=0.1, steps=9)
    figure = seen.plot(title="own", minima=[(0, 0)])
    assert isinstance(figure, Picture)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("u", "v")
    assert axes.get_title() == "own"
    (line,) = [line for line in axes.lines if line.get_gid() == ""]
    assert_array_equal(line.get_xydata(), seen.points)


def test_a_notebook_shows_a_figure_and_nothing_is_left_behind() -> None:
    """By the method that IPython asks for; in the same style, whatever is set."""
    before = "matplotlib.pyplot" in sys.modules
    settings = matplotlib.rcParams.copy()
    shown = three_walks()["lr = 0.02"].plot()._repr_png_()
    assert_is_a_picture(shown)
    after: Any = dict(matplotlib.rcParams.copy())
    assert after == dict(settings)
    assert all(after[key] != value for key, value in STYLE.items())
    assert ("matplotlib.pyplot" in sys.modules) == before
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        assert three_walks()["lr = 0.02"].plot()._repr_png_() == shown


def test_looks_of_many_walks_differ() -> None:
    seen = [tuple(look.items()) for look in itertools.islice(looks(), 21)]
    assert len(set(seen)) == 21


def test_without_a_walk_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match=r"walks = \{\}.*at least one"):
        draw_descent({})


# The animation


def frames_of(gif: bytes) -> list[np.ndarray]:
    image, frames = Image.open(io.BytesIO(gif)), []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        frames.append(np.asarray(image.convert("RGB")).astype(int))
    return frames


def num_pixels(frame: np.ndarray, color: Any) -> int:
    near = abs(frame - 255 * np.array(to_rgb(color))).max(axis=2) < 12
    return int(near.sum())


def test_an_animation_has_a_frame_for_every_step_and_the_paths_grow() -> None:
    walks = dict(list(three_walks().items())[:2])
    gif = animate_descent(walks, minima=BOWL.minima, window=BOWL.window)
    frames = frames_of(gif)
    assert len(frames) == 13 and len(gif) < 2_000_000
    assert all((frame[0] == 255).all() for frame in frames)  # the margin is white
    image = Image.open(io.BytesIO(gif))
    assert image.info["loop"] == 0 and image.info["duration"] == 400
    for look in itertools.islice(looks(), 2):
        counts = [num_pixels(frame, look["color"]) for frame in frames]
        assert counts[-1] > counts[0] + 100
        assert counts[3] > counts[0]


def test_the_head_stands_at_the_point_of_its_step() -> None:
    """Seen from outside: the middle of what is new in a frame of a straight walk."""
    seen = descend(lambda x, y: x + 0 * y, (0, 0), lr=1, steps=4)
    gif = animate_descent(seen, window=(-5, 1, -1, 1))
    color, middles = next(looks())["color"], []
    for frame in frames_of(gif):
        near = abs(frame - 255 * np.array(to_rgb(color))).max(axis=2) < 12
        _, columns = np.nonzero(near[: len(near) * 2 // 3])  # above the legend
        middles.append(columns.min())
    steps = np.diff(middles)
    assert (steps < 0).all() and np.ptp(steps) <= 3


def test_long_walks_are_shown_in_sixty_frames() -> None:
    assert shown_steps(5) == [0, 1, 2, 3, 4, 5]
    steps = shown_steps(4000)
    assert len(steps) == len(set(steps)) == 60 and steps == sorted(steps)
    assert steps[0] == 0 and steps[-1] == 4000


def test_one_point_alone_is_an_animation_too() -> None:
    seen = descend(lambda p: (p**2).sum(), (3, 4), lr=2e40, steps=3)
    assert len(seen.points) == 1
    assert len(frames_of(animate_descent(seen))) == 1
