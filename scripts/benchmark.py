"""Measure minitrain against plain PyTorch: python scripts/benchmark.py [--json]

Both sides run in one process and take turns, so that a machine that slows down slows
both. A row is the median over the rounds, the ratio the median of the rounds' ratios.
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor, nn

from minitrain import SGD, Batches, Board, ParameterVector, train
from minitrain.models import MLP
from minitrain.tensorboard import step_scalars

OPTIONS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


class Row(NamedTuple):
    """One comparison: seconds of minitrain and of its peer, and their ratio."""

    name: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    ratios: list[float]


def compare(
    name: str,
    peer: str,
    ours: Callable[[], None],
    theirs: Callable[[], None],
    rounds: int,
) -> Row:
    """Time both in turn, after one round to warm up that does not count."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        times.append((_seconds(ours), _seconds(theirs)))
    times = times[1:]
    ratios = [a / b for a, b in times]
    return Row(
        name,
        peer,
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(ratios),
        ratios,
    )


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def mlp_epoch(inputs: Tensor, labels: Tensor, batch_size: int) -> None:
    """An epoch with everything that a run logs by default."""
    model = MLP()
    names = [name for name, _ in model.named_parameters()]
    optimizer = SGD(ParameterVector(model), **OPTIONS)
    batches = Batches(inputs, labels, batch_size, seed=0)
    loss_fn = nn.functional.cross_entropy
    with tempfile.TemporaryDirectory() as folder, Board(Path(folder)) as board:
        for step in train(model, optimizer, batches, loss_fn, measure_every=10):
            if step.grad_norms is not None:
                board.log(step.number, step_scalars(step, names))
            board.beat()


def bare_mlp_epoch(inputs: Tensor, labels: Tensor, batch_size: int) -> None:
    """The same epoch as a plain loop that logs nothing."""
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), **OPTIONS)
    for indices in torch.randperm(len(inputs)).split(batch_size):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[indices]), labels[indices])
        loss.backward()
        optimizer.step()


def main(rounds: int = 7, as_json: bool = False) -> None:
    """Measure, and print a table.

    Args:
        rounds: How often each side runs.
        as_json: Print JSON in place of the table.
    """
    inputs, labels = torch.randn(60_000, 1, 28, 28), torch.randint(10, (60_000,))
    rows = [
        compare(
            "MLP epoch, batch 64, default logging",
            "bare loop, torch.optim.SGD, no logging",
            lambda: mlp_epoch(inputs, labels, 64),
            lambda: bare_mlp_epoch(inputs, labels, 64),
            rounds,
        )
    ]
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if as_json:
        print(json.dumps({"machine": machine, "rows": [r._asdict() for r in rows]}))
        return
    print("  ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'measured':38}  {'against':38}  {'ours':>8}  {'theirs':>8}  ratio")
    for row in rows:
        print(
            f"{row.name:38}  {row.peer:38}  {row.ours:7.3f}s  {row.theirs:7.3f}s  "
            f"{row.ratio:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
        )


if __name__ == "__main__":
    tyro.cli(main)
