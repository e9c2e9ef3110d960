"""What a classifier confuses, where it errs, and what its units look for."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitrain.pictures.png import Picture, in_our_style


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


@in_our_style
def draw_mistakes(
    images: Tensor, mistakes: Sequence[Mistake], classes: Sequence[str]
) -> Picture:
    """Draw the samples that a model got wrong, each with what it took them for.

    Args:
        images: Gray levels, shape (N, height, width): the samples that the mistakes
            count. The lowest of all is drawn white, the highest black.
        mistakes: In the order of the picture, the surest first.
        classes: Names of the classes.

    Returns:
        The figure.
    """
    columns, width, height = 4, 1.4, 2.0  # of the place for one, in inches
    rows = max(1, math.ceil(len(mistakes) / columns))
    low, high = images.min().item(), images.max().item()
    figure = Picture(figsize=(width * columns, height * rows + 0.6))
    # One system of axes, in inches: one for every image takes five times as long.
    axes = figure.add_axes(
        (0, 0, 1, 1), xlim=(0, width * columns), ylim=(height * rows, -0.6)
    )
    axes.set_axis_off()
    text = functools.partial(axes.text, horizontalalignment="center")
    for place, mistake in enumerate(mistakes):
        left, top = width * (place % columns) + 0.1, height * (place // columns) + 0.7
        axes.imshow(
            images[mistake.sample].cpu().numpy(),
            extent=(left, left + 1.2, top + 1.2, top),
            aspect="auto",
            cmap="gray_r",
            vmin=low,
            vmax=high,
        )
        name, taken_for = classes[mistake.target], classes[mistake.predicted]
        space = "\n" if len(name + taken_for) > 8 else " "
        text(
            left + 0.6,
            top - 0.05,
            f"{name},{space}not {taken_for}\n({mistake.probability:.1%} sure)",
            fontsize=12,
        )
    heading = "Worst mistakes: what it is,\nand what the model took it for"
    text(width * columns / 2, -0.1, heading, fontsize=14)
    return figure


@in_our_style
def draw_confusion(counts: Tensor, classes: Sequence[str]) -> Picture:
    """Draw the table of what was taken for what.

    The color of a cell is its share of the row's class. The diagonal, where target and
    prediction agree, has no color.

    Args:
        counts: [target, predicted], as `confusion_matrix` returns them.
        classes: Names of the classes.

    Returns:
        The figure.
    """
    size = 1.5 + 0.45 * max(4, len(classes))
    figure = Picture(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    wrong = shares - torch.diag(shares.diag())
    darkest = 0.05
    axes.imshow(wrong.cpu().numpy(), cmap="Oranges", vmin=0, vmax=darkest)
    style: dict[str, Any] = {"ha": "center", "va": "center"}
    style["fontsize"] = min(13, 46 / len(str(counts.max().item())))  # to fit its cell
    for target, row in enumerate(counts.tolist()):
        for predicted, count in enumerate(row):
            if count:
                weight = "bold" if target == predicted else "normal"
                is_dark = wrong[target, predicted] > 0.6 * darkest
                color = "white" if is_dark else "black"
                text = str(count)
                axes.text(predicted, target, text, weight=weight, color=color, **style)
    is_long = max(map(len, classes)) > 3
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(classes)), classes, **(turned if is_long else {}))
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="taken for", ylabel="it is", title="Confusion")
    return figure


@in_our_style
def draw_weights(weights: Tensor, image_shape: Sequence[int]) -> Picture:
    """Draw what each unit of the first layer looks for: its weights as an image.

    Blue is negative, red positive; each unit has a scale of its own. At most 40 are
    drawn.

    Args:
        weights: Of a linear layer, (units, pixels), or of a convolution, (units,
            channels, height, width), of which every channel is an image.
        image_shape: (height, width) of the images that a linear layer sees.

    Returns:
        The figure.
    """
    weights = weights.detach().cpu()
    if weights.dim() == 2:
        images = weights.unflatten(1, tuple(image_shape))
    else:
        images = weights.flatten(0, 1)
    images, columns = images[:40], 8
    rows = math.ceil(len(images) / columns)
    figure = Picture(figsize=(0.65 * columns, 0.7 * rows + 0.6), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(images):
            largest = images[place].abs().max().item()
            axes.imshow(
                images[place].numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest
            )
    figure.suptitle("First-layer weights:\nblue is negative, red is positive")
    return figure
