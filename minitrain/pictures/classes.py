"""What a classifier confuses, where it errs, and what its units look for."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from minitrain.pictures.png import png


class Mistake(NamedTuple):
    """A sample that the model got wrong, and how sure it was of that."""

    sample: int
    target: int
    predicted: int
    probability: float


def worst_mistakes(logits: Tensor, targets: Tensor, num: int) -> list[Mistake]:
    """Find the wrong predictions with the highest probability, softmax(logits).

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> [m.sample for m in worst_mistakes(logits, torch.tensor([1, 1, 1]), num=5)]
    [2, 0]

    Args:
        logits: Shape (N, classes).
        targets: Class numbers, shape (N,).
        num: How many to return at most.

    Returns:
        The mistakes, the surest first.
    """
    probabilities, predicted = logits.float().softmax(dim=1).max(dim=1)
    wrong = (predicted != targets).nonzero().flatten()
    order = probabilities[wrong].argsort(descending=True, stable=True)[:num]
    return [
        Mistake(i, int(targets[i]), int(predicted[i]), float(probabilities[i]))
        for i in wrong[order].tolist()
    ]


def draw_mistakes(
    images: Tensor, mistakes: Sequence[Mistake], classes: Sequence[str]
) -> bytes:
    """Draw the samples that a model got wrong, each with what it took them for.

    Args:
        images: Gray levels, shape (N, height, width): the samples that the mistakes
            count. The lowest of all is drawn white, the highest black.
        mistakes: In the order of the picture, the surest first.
        classes: Names of the classes.

    Returns:
        The picture, a PNG file.
    """
    columns = 8
    rows = max(1, math.ceil(len(mistakes) / columns))
    low, high = images.min().item(), images.max().item()
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
            vmin=low,
            vmax=high,
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
    """Draw the table of what was taken for what.

    The color of a cell is its share of the row's class. The diagonal, where target and
    prediction agree, has no color.

    Args:
        counts: [target, predicted], as `confusion_matrix` returns them.
        classes: Names of the classes.

    Returns:
        The picture, a PNG file.
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


def draw_weights(weights: Tensor, image_shape: Sequence[int]) -> bytes:
    """Draw what each unit of the first layer looks for: its weights as an image.

    Blue is negative, red positive; each unit has a scale of its own. At most 40 are
    drawn.

    Args:
        weights: Of a linear layer, (units, pixels), or of a convolution, (units,
            channels, height, width), of which every channel is an image.
        image_shape: (height, width) of the images that a linear layer sees.

    Returns:
        The picture, a PNG file.
    """
    weights = weights.detach().cpu()
    if weights.dim() == 2:
        images = weights.unflatten(1, tuple(image_shape))
    else:
        images = weights.flatten(0, 1)
    images, columns = images[:40], 10
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(columns, 1.1 * rows + 0.4), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(images):
            largest = images[place].abs().max().item()
            axes.imshow(
                images[place].numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest
            )
    figure.suptitle("First-layer weights: blue is negative, red is positive")
    return png(figure)
