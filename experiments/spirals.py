"""Two spirals that turn about each other: on which of them does a point lie?

The classic that no straight line solves: a network has to bend its boundary in between
the arms. Its picture shows how it does, and grows sharper while it learns.

    minitrain train spirals
    minitrain train spirals --model.hidden 8 --log.pictures 10

Source: Lang and Witbrock, Learning to tell two spirals apart, 1988.
"""

# Result: 100 % test accuracy for each of the seeds 0, 1 and 2.

import math

import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from minitrain import Data
from minitrain.evaluation import predict
from minitrain.pictures.png import BLUE, VERMILION

SETTINGS = {
    "epochs": 100,
    "data.batch-size": 50,
    "optimizer.lr": 0.1,
    "optimizer.weight-decay": 1e-5,
}


def data(turns: float = 1.5, noise: float = 0.03) -> Data:
    """Return points of the plane, (N, 2), and the number of the spiral of each, (N,).

    Args:
        turns: How often each spiral turns about the center.
        noise: Standard deviation of the points about their spiral; the arms of both
            are 1 / turns apart.
    """
    train, test = (draw_spirals(1000, turns, noise, seed) for seed in (0, 1))
    return Data(train, test, classes=("blue", "orange"))


def draw_spirals(
    num: int, turns: float, noise: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw points at even distances along two spirals of radius 2, half each."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(num) % 2
    radius = torch.rand(num, generator=generator).sqrt()
    angle = 2 * math.pi * turns * radius + math.pi * targets
    spiral = 2 * radius * torch.stack([angle.cos(), angle.sin()])
    return spiral.T + noise * torch.randn(num, 2, generator=generator), targets


def model(hidden: tuple[int, ...] = (64, 64)) -> nn.Module:
    """Return a multilayer perceptron, of points to logits (N, 2).

    Args:
        hidden: Width of each hidden layer.
    """
    widths = (2, *hidden)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, hidden, strict=False):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2))


def draw(model: nn.Module, data: Data) -> dict[str, Figure]:
    """Return a picture of the plane, as the model divides it, with the test points."""
    points, targets = (tensor.cpu().numpy() for tensor in data.test)
    across = torch.linspace(-2.4, 2.4, 201)
    plane = torch.cartesian_prod(across, across)
    share = predict(model, plane).softmax(dim=1)[:, 1].view(201, 201).T.cpu().numpy()

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot(aspect="equal", title="The boundary, and test points")
    colors = LinearSegmentedColormap.from_list("", [BLUE, "white", VERMILION])
    square = (-2.4, 2.4, -2.4, 2.4)
    axes.imshow(share, colors, extent=square, origin="lower", alpha=0.4)
    axes.contour(share, [0.5], colors="black", extent=square, linewidths=1)
    for color, number in ((BLUE, 0), (VERMILION, 1)):
        axes.scatter(*points[targets == number].T, s=6, color=color)
    axes.set(xlabel="x", ylabel="y")
    return {"boundary": figure}
