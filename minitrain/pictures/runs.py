"""The curves of several runs side by side."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch

from minitrain import tags
from minitrain.pictures.png import SERIES, Picture, in_our_style, use_log_scale

Curve = tuple[Any, Any]
"""Steps, and the value at each: two sequences or arrays."""


@in_our_style
def draw_runs(runs: Mapping[str, Mapping[str, Curve]]) -> Picture:
    """Draw loss, gradient norm and a test over the steps, for all runs together.

    The test is the accuracy, or the loss where none of the runs has an accuracy.

    Noisy curves are drawn faintly, with their running mean over a fiftieth of the run
    on top.

    Args:
        runs: For each run, by its name, its curves (steps, values) by tag.

    Returns:
        The figure.
    """
    figure = Picture(figsize=(11, 3.8), layout="constrained")
    panels = {
        tags.TRAIN_LOSS: "training loss of a batch",
        tags.GLOBAL_GRAD_NORM: "|grad L|",
        tags.TEST_ACCURACY: "test accuracy",
    }
    if not any(tags.TEST_ACCURACY in curves for curves in runs.values()):
        del panels[tags.TEST_ACCURACY]
        panels[tags.TEST_LOSS] = "test loss"
    for axes, (tag, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for color, (name, curves) in zip(
            itertools.cycle(SERIES), runs.items(), strict=False
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
        if tag != tags.TEST_ACCURACY:
            use_log_scale(axes)
        axes.grid(alpha=0.3)
    lines = [line for axes in figure.axes for line in axes.lines]
    named = {str(line.get_label()): line for line in lines}
    shown = {name: line for name, line in named.items() if name in runs}
    if shown:
        place = "outside lower center"
        figure.legend(shown.values(), shown, loc=place, ncols=min(4, len(shown)))
    return figure


def _running_mean(values: Any, width: int) -> list[float]:
    """Average each value with its neighbors up to width // 2 away on either side."""
    series, half = torch.tensor(values, dtype=torch.float64), width // 2
    windows = [series[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [window.mean().item() for window in windows]
