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
