"""Curves of several runs side by side."""

import numpy as np
from numpy.testing import assert_allclose

from minitrain.pictures import runs


def test_each_run_has_its_curves_and_noisy_ones_their_mean() -> None:
    steps = list(range(1, 201))
    noisy = [float(step % 2) for step in steps]
    figure = runs.draw_runs(
        {
            "a": {"loss/train": (steps, noisy), "accuracy/test": ([100], [0.9])},
            "b": {"loss/train": ([1, 2], [3.0, 2.0])},
        }
    )
    loss, gradient, accuracy = figure.axes
    faint, mean, short = loss.lines
    assert_allclose(np.asarray(faint.get_ydata()), noisy)
    # A fiftieth of 200 values is 4: each with two neighbors on either side.
    assert_allclose(np.asarray(mean.get_ydata())[2:5], [0.6, 0.4, 0.6])
    assert_allclose(np.asarray(short.get_ydata()), [3.0, 2.0])
    assert [line.get_label() for line in (mean, short)] == ["a", "b"]
    assert not gradient.lines and len(accuracy.lines) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_negative_losses_are_drawn_on_an_even_scale() -> None:
    """As the likelihood of a density may be; such a run has no accuracy, either."""
    curves = {"grad_norm/global": ([1, 2], [3.0, 0.0])}
    curves |= {"loss/train": ([1, 2], [2.0, -3.0]), "loss/test": ([2], [-2.5])}
    figure = runs.draw_runs({"a": curves})
    loss, gradient, test = figure.axes
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]
    assert loss.get_ylim()[0] < -3 and loss.get_ylim()[1] > 2 and gradient.lines
    assert_allclose(np.asarray(test.lines[0].get_ydata()), [-2.5])
    assert test.get_title() == "test loss"
