"""What a classifier confuses, where it errs, and what its units look for."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from minitrain.evaluation import Mistake
from minitrain.pictures.png import png


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
    return png(figure)


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
    return png(figure)


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
    return png(figure)
