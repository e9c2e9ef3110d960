"""One step of SGD against the fastest of torch's three, on four kinds of parameters."""

import functools
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from benchmarks.compare import Row, Work, row, timed
from torch import nn

from minitrain import SGD, ParameterVector


def resnet50() -> list[tuple[int, ...]]:
    """The shapes of the 161 parameters of torchvision's resnet50, 25.6 million."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, width_in, 1, 1), (width,), (width,)]
            shapes += [(width, width, 3, 3), (width,), (width,)]
            shapes += [(4 * width, width, 1, 1), (4 * width,), (4 * width,)]
            if block == 0:
                shapes += [(4 * width, width_in, 1, 1), (4 * width,), (4 * width,)]
            width_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "MLP": [(128, 784), (128,), (10, 128), (10,)],
    "ResNet-50": resnet50(),
    "1000 of 32": [(32,)] * 1000,
    "64 million": [(64_000_000,)],
}
STEPS = {"MLP": 200, "ResNet-50": 2, "1000 of 32": 10, "64 million": 1}
"""Steps in a round, so that a round takes long enough to be timed."""
TORCH = {
    "torch plain": {"foreach": False},
    "torch foreach": {"foreach": True},
    "torch fused": {"fused": True},
}


class Weights(nn.Module):
    """Parameters of these shapes; the numbers play no role."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.tensors = nn.ParameterList(nn.Parameter(torch.randn(s)) for s in shapes)


def stepper(optimizer: torch.optim.Optimizer, num_steps: int) -> Work:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p) if p.grad is None else p.grad

    def work() -> None:
        for _ in range(num_steps):
            optimizer.step()

    return work


def rows(rounds: int) -> Iterator[Row]:
    """All sides of a shape take turns; the peer is torch's with the smallest median.

    The note is the share of the bandwidth that x += a y, over 64 million float32,
    reaches in its turn: a plain step moves 12 bytes a parameter, one with momentum 20.
    """
    x, y = torch.randn(64_000_000), torch.randn(64_000_000)
    for name, shapes in SHAPES.items():
        make = functools.partial(stepper, num_steps=STEPS[name])
        for momentum in (0.0, 0.9):
            options: dict[str, Any] = {"lr": 1e-6, "momentum": momentum}
            listed, laid_flat = Weights(shapes), Weights(shapes)
            sides = {
                key: make(torch.optim.SGD(listed.parameters(), **options, **flags))
                for key, flags in TORCH.items()
            }
            theta = [*ParameterVector(laid_flat)]
            for kind, params in {
                "list": [*listed.parameters()],
                "vector": theta,
            }.items():
                for fused in (False, True):
                    optimizer = SGD(params, **options, fused=fused)
                    sides[kind + ", fused" * fused] = make(optimizer)
            sides["triad"] = lambda: x.add_(y, alpha=1e-6)
            times = timed(sides, rounds)
            bandwidth = 12 * len(x) / statistics.median(times.pop("triad"))
            peer = min(TORCH, key=lambda key: statistics.median(times[key]))
            size = sum(p.numel() for p in listed.parameters()) * STEPS[name]
            for key in [key for key in times if key not in TORCH]:
                found = row(
                    f"{name}, momentum {momentum}, {key}", times[key], peer, times[peer]
                )
                share = size * (20 if momentum else 12) / found.ours / bandwidth
                yield found._replace(note=f"{share:.2f} of the triad")
