"""Seconds of a training step as parameters, tensors, batch and data set grow.

Each line goes in turn with a step of the bare loop on the same model and data.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.compare import Row, Work, compare
from benchmarks.loop import OPTIONS
from torch import Tensor, nn

from minitrain import SGD, Batches, ParameterVector, train

NUM_STEPS = 20


class Tensors(nn.Module):
    """So many parameters in so many tensors, all of which reach the loss."""

    def __init__(self, num_parameters: int, num_tensors: int = 1) -> None:
        super().__init__()
        size = num_parameters // num_tensors
        self.tensors = nn.ParameterList(
            nn.Parameter(torch.zeros(size)) for _ in range(num_tensors)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        total = torch.stack([tensor.sum() for tensor in self.tensors]).sum()
        return inputs.flatten(1)[:, :1] * total


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean()


def ours(model: nn.Module, inputs: Tensor, batch_size: int) -> Work:
    batches = Batches(inputs, torch.zeros(len(inputs)), batch_size, seed=0)
    optimizer = SGD(ParameterVector(model), **OPTIONS)

    def work() -> None:
        steps = train(model, optimizer, batches, mean, measure_every=len(inputs))
        for _ in itertools.islice(steps, NUM_STEPS):
            pass

    return work


def bare(model: nn.Module, inputs: Tensor, batch_size: int) -> Work:
    optimizer = torch.optim.SGD(model.parameters(), **OPTIONS)

    def work() -> None:
        order = torch.randperm(len(inputs)).split(batch_size)
        for indices in order[:NUM_STEPS]:
            optimizer.zero_grad()
            model(inputs[indices]).mean().backward()
            optimizer.step()

    return work


def rows(rounds: int) -> Iterator[Row]:
    few = torch.randn(2_000, 16)
    for exponent in (4, 5, 6, 7, 8):
        make = functools.partial(Tensors, 10**exponent)
        yield _compared(f"1e{exponent} parameters", make, few, 64, rounds)
    for exponent in (1, 2, 3, 4):
        make = functools.partial(Tensors, 10**6, 10**exponent)
        yield _compared(f"1e{exponent} tensors", make, few, 64, rounds)
    for batch_size in (16, 256, 4096):
        many = torch.randn(20 * batch_size, 784)
        make = functools.partial(Tensors, 10**4)
        yield _compared(f"batches of {batch_size}", make, many, batch_size, rounds)
    for exponent in (4, 5, 6):
        data = torch.randn(10**exponent, 16)
        make = functools.partial(Tensors, 10**4)
        yield _compared(f"1e{exponent} samples", make, data, 64, rounds)


def _compared(
    name: str, make: Callable[[], nn.Module], inputs: Tensor, size: int, rounds: int
) -> Row:
    works = [side(make(), inputs, size) for side in (ours, bare)]
    return compare(
        f"{NUM_STEPS} steps, {name}", works[0], "bare loop", works[1], rounds
    )


def draw(rows: list[Row], path: Path) -> None:
    """Ours and the bare loop, a picture for each quantity that grows."""
    from matplotlib.figure import Figure

    kinds: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        words = row.name.removeprefix(f"{NUM_STEPS} steps, ").split()
        kind, number = words[-1], words[0]
        if kind not in ("parameters", "tensors", "samples"):
            kind, number = "batch size", words[-1]
        kinds.setdefault(kind, []).append((float(number), row))
    figure = Figure(figsize=(13, 3.5), layout="constrained")
    for axes, (kind, points) in zip(
        figure.subplots(1, max(1, len(kinds)), squeeze=False)[0],
        kinds.items(),
        strict=False,
    ):
        numbers = [number for number, _ in points]
        axes.loglog(
            numbers, [row.ours / NUM_STEPS for _, row in points], "o-", label="ours"
        )
        axes.loglog(
            numbers, [row.theirs / NUM_STEPS for _, row in points], "s--", label="bare"
        )
        axes.set(xlabel=kind, ylabel="seconds a step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)
