"""Measure minitrain against its peers: python scripts/benchmark.py [SECTION ...]

Sections: `sgd` (one step of the optimizer) and `loop` (an epoch of training). All sides
of a row run in one process and take turns, so that a machine that slows down slows all
of them. A row shows the median seconds of a round for minitrain and for the fastest
peer, and the median, the smallest and the largest of the rounds' ratios.
"""

import functools
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor, nn

from minitrain import SGD, Batches, Board, ParameterVector, train
from minitrain.models import CNN, MLP
from minitrain.tensorboard import step_scalars

OPTIONS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
Work = Callable[[], Any]


class Row(NamedTuple):
    """One comparison: seconds of minitrain and of the fastest peer, and their ratio."""

    name: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    ratios: list[float]
    note: str = ""


def compare(name: str, ours: Work, peers: dict[str, Work], rounds: int) -> Row:
    """Time all in turn, after one round to warm up that does not count.

    The peer is the one with the smallest median.
    """
    works = {"": ours, **peers}
    times: dict[str, list[float]] = {key: [] for key in works}
    for _ in range(rounds + 1):
        for key, work in works.items():
            times[key].append(_seconds(work))
    medians = {key: statistics.median(times[key][1:]) for key in works}
    peer = min(peers, key=medians.__getitem__)
    pairs = zip(times[""][1:], times[peer][1:], strict=True)
    ratios = [mine / its for mine, its in pairs]
    ratio = statistics.median(ratios)
    return Row(name, peer, medians[""], medians[peer], ratio, ratios)


def _seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# One step of the optimizer.


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
# Steps per round, so that a round takes long enough to be timed.
STEPS = {"MLP": 200, "ResNet-50": 2, "1000 of 32": 10, "64 million": 1}


class Weights(nn.Module):
    """Parameters of these shapes, with gradients; the numbers play no role."""

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


def sgd_rows(rounds: int) -> Iterator[Row]:
    triad = triad_bytes_per_second(rounds)
    for name, shapes in SHAPES.items():
        for momentum in (0.0, 0.9):
            options: dict[str, Any] = {"lr": 1e-6, "momentum": momentum}
            make = functools.partial(stepper, num_steps=STEPS[name])
            weights = [Weights(shapes) for _ in range(3)]
            peers = {
                f"torch {flag}": make(
                    torch.optim.SGD(weights[0].parameters(), **options, **flags)
                )
                for flag, flags in {
                    "plain": {"foreach": False},
                    "foreach": {"foreach": True},
                    "fused": {"fused": True},
                }.items()
            }
            num_bytes = sum(p.numel() for p in weights[0].parameters()) * (
                20 if momentum else 12
            )
            for kind, fused in itertools.product(("list", "vector"), (False, True)):
                params = (
                    ParameterVector(weights[1])
                    if kind == "vector"
                    else weights[2].parameters()
                )
                ours = SGD(params, **options, fused=fused)
                row = compare(
                    f"{name}, momentum {momentum}, {kind}{', fused' * fused}",
                    make(ours),
                    peers,
                    rounds,
                )
                share = num_bytes * STEPS[name] / row.ours / triad
                yield row._replace(note=f"{share:.2f} of the triad's bandwidth")


def triad_bytes_per_second(rounds: int) -> float:
    """What x += a y reaches over 64 million float32: 12 bytes an element."""
    x, y = torch.randn(64_000_000), torch.randn(64_000_000)
    times = [_seconds(lambda: x.add_(y, alpha=1e-6)) for _ in range(rounds + 1)]
    return 12 * x.numel() / statistics.median(times[1:])


# An epoch of training.


def logged_epoch(
    make_model: Callable[[], nn.Module], inputs: Tensor, labels: Tensor, measure: bool
) -> None:
    """With loss, global and per-parameter gradient norm of every step on the board."""
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    optimizer = SGD(ParameterVector(model), **OPTIONS)
    batches = Batches(inputs, labels, 64, seed=0)
    loss_fn = nn.functional.cross_entropy
    every = 1 if measure else len(inputs)
    with tempfile.TemporaryDirectory() as folder, Board(Path(folder)) as board:
        for step in train(model, optimizer, batches, loss_fn, measure_every=every):
            if measure:
                board.log(step.number, step_scalars(step, names))


def bare_epoch(
    make_model: Callable[[], nn.Module], inputs: Tensor, labels: Tensor
) -> None:
    """The same epoch as a plain loop over resident tensors that logs nothing."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), **OPTIONS, fused=True)
    for indices in torch.randperm(len(inputs)).split(64):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[indices]), labels[indices])
        loss.backward()
        optimizer.step()


def loop_rows(rounds: int) -> Iterator[Row]:
    inputs, labels = torch.randn(60_000, 1, 28, 28), torch.randint(10, (60_000,))
    for make_model, num in ((MLP, 60_000), (CNN, 6_400)):
        data = make_model, inputs[:num], labels[:num]
        name = f"{make_model.__name__}, {num} samples"
        logged = functools.partial(logged_epoch, *data, True)
        bare = {"bare loop, fused, no log": functools.partial(bare_epoch, *data)}
        quiet = {"minitrain, no log": functools.partial(logged_epoch, *data, False)}
        yield compare(f"{name}, every step logged", logged, bare, rounds)
        yield compare(f"{name}, every step logged", logged, quiet, rounds)


Section = Literal["sgd", "loop"]
SECTIONS: dict[Section, Callable[[int], Iterator[Row]]] = {
    "sgd": sgd_rows,
    "loop": loop_rows,
}


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "processor": models[0] if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(
    sections: tyro.conf.Positional[tuple[Section, ...]] = ("sgd", "loop"),
    rounds: int = 7,
    threads: int = 0,
    as_json: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Measure, and print a table.

    Args:
        sections: What to measure.
        rounds: How often each side runs.
        threads: Threads of torch; 0 leaves it to torch.
        as_json: Print JSON in place of the table.
    """
    if threads:
        torch.set_num_threads(threads)
    measured = {section: list[Row]() for section in sections}
    if not as_json:
        print("  ".join(f"{key} {value}" for key, value in machine().items()))
        print(f"triad {triad_bytes_per_second(rounds) / 1e9:.1f} GB/s")
    for section in sections:
        for row in SECTIONS[section](rounds):
            measured[section].append(row)
            if not as_json:
                print(
                    f"{row.name:44}  {row.peer:25}  {row.ours:8.4f}s  "
                    f"{row.theirs:8.4f}s  {row.ratio:.2f} "
                    f"({min(row.ratios):.2f} to {max(row.ratios):.2f})  {row.note}",
                    flush=True,
                )
    if as_json:
        rows = {name: [r._asdict() for r in found] for name, found in measured.items()}
        print(json.dumps({"machine": machine(), "rows": rows}))


if __name__ == "__main__":
    tyro.cli(main)
