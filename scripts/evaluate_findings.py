"""Plant faults, and see what is found: python scripts/evaluate_findings.py [--seeds N]

Every fault is planted into runs of a multilayer perceptron and of a small convolutional
network on MNIST, each from several seeds. It counts as found where the finding that it
should give is among those of the run. Healthy runs of many settings should give none.
"""

import functools
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from minitrain import SGD, Batches, ParameterVector, evaluate, train
from minitrain.experiment.builtin import load_data
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.findings import Findings
from minitrain.instruments.panel import Panel
from minitrain.runs.scalars import step_scalars
from minitrain.schedules import SCHEDULES
from minitrain.system.terminal import exit_code
from minitrain.training import NotFiniteError

LOSS = nn.functional.cross_entropy


@dataclass(frozen=True)
class Run:
    """A short run, healthy by default; a fault changes one thing."""

    model: Callable[[], nn.Module]
    spoil_model: Callable[[nn.Module], object] = lambda model: None
    spoil_data: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda x, y: (x, y)
    optimizer: dict[str, Any] = field(default_factory=dict)
    forgets_zero_grad: bool = False
    num_samples: int = 6400
    batch_size: int = 64
    epochs: int = 2
    schedule: str = "one-cycle"
    clip_norm: float | None = None
    autocast: torch.dtype | None = None
    name: str = "mnist"


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(400, 10),
    )  # fmt: skip


def softmax() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


class Detached(nn.Module):
    """Cuts off the gradient, as .detach() in a forward pass does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Doubled(nn.Module):
    """Has a backward pass that doubles the gradient, and a forward pass that does not.

    2 x - x.detach() is x, with the derivative 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - x.detach()


def insert(module: nn.Module, model: nn.Module) -> None:
    """Put a module behind the first activation."""
    assert isinstance(model, nn.Sequential)
    place = next(i for i, m in enumerate(model) if isinstance(m, nn.ReLU))
    model.insert(place + 1, module)


def add_sigmoid_layers(model: nn.Module) -> None:
    """Put eight more sigmoid layers before the last layer."""
    assert isinstance(model, nn.Sequential)
    last = model[-1]
    assert isinstance(last, nn.Linear)
    width = last.in_features
    for _ in range(8):
        for module in (nn.Sigmoid(), nn.Linear(width, width)):
            model.insert(len(model) - 1, module)


@torch.no_grad()
def scale(factor: float, model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(factor)


@torch.no_grad()
def lower_biases(model: nn.Module) -> None:
    next(p for p in model.parameters() if p.dim() == 1).fill_(-100)


def shuffle(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y[torch.randperm(len(y))]


def unnormalize(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return 78.6 * x + 33.3, y


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "learning rate x 60": ("learning rate too large", {"optimizer": {"lr": 3.0}}),
    "learning rate / 1000": ("learning rate too small", {"optimizer": {"lr": 5e-5}}),
    "eight sigmoid layers": ("vanishing gradient", {"spoil_model": add_sigmoid_layers}),
    "weights x 10": (
        "exploding gradient",
        {"spoil_model": functools.partial(scale, 10.0)},
    ),
    "biases of -100": ("dead units", {"spoil_model": lower_biases}),
    "a detached block": (
        "block without gradient",
        {"spoil_model": functools.partial(insert, Detached())},
    ),
    "a forgotten zero_grad": ("wrong gradient", {"forgets_zero_grad": True}),
    "a wrong backward pass": (
        "wrong gradient",
        {"spoil_model": functools.partial(insert, Doubled())},
    ),
    "batches of 2": (
        "batch too small",
        {"batch_size": 2, "optimizer": {"lr": 0.001}},
    ),
    "batches of 8192": (
        "batch too large",
        {"batch_size": 8192, "num_samples": 49_152, "epochs": 3},
    ),
    "shuffled labels": ("labels without signal", {"spoil_data": shuffle}),
    "inputs from 0 to 255": ("inputs not normalized", {"spoil_data": unnormalize}),
    "300 samples": ("overfitting", {"num_samples": 300, "epochs": 120}),
    "weights of zero": (
        "dead units",
        {"spoil_model": functools.partial(scale, 0.0)},
    ),
    "clipped to 0.0001": ("gradient clipped to almost nothing", {"clip_norm": 1e-4}),
}
"""What is planted, what should be found, and how it changes a run."""


def healthy_runs() -> dict[str, Run]:
    """Return settings that people use, each of which learns."""
    runs = {
        f"{model.__name__}, lr {lr}, momentum {momentum}": Run(
            model, optimizer={"lr": lr, "momentum": momentum}
        )
        for model, lr, momentum in itertools.product(
            (mlp, cnn, softmax), (0.02, 0.1), (0.0, 0.9)
        )
        if (model, lr, momentum) != (softmax, 0.1, 0.9)
    }
    for model in (mlp, cnn):
        usual = Run(model)
        for schedule in ("constant", "step", "cosine"):
            run = replace(usual, schedule=schedule)
            runs[f"{model.__name__}, {schedule}"] = run
        for size in (32, 256):
            runs[f"{model.__name__}, batch {size}"] = replace(usual, batch_size=size)
        runs[f"{model.__name__}, bfloat16"] = replace(usual, autocast=torch.bfloat16)
        runs[f"{model.__name__}, clipped"] = replace(usual, clip_norm=1.0)
        runs[f"{model.__name__}, digits"] = replace(usual, name="digits")
    return runs


@functools.cache
def examples(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dataset = load_data(name)
    train_inputs, test_inputs = (
        dataset.inputs(dataset.train),
        dataset.inputs(dataset.test),
    )
    return train_inputs, dataset.train.labels, test_inputs, dataset.test.labels


def find(run: Run, seed: int) -> list[str]:
    """Train as the run says; return the kinds of what is found."""
    torch.manual_seed(seed)
    train_inputs, labels, test_inputs, test_labels = examples(run.name)
    chosen = torch.randperm(len(train_inputs))[: run.num_samples]
    inputs, targets = run.spoil_data(train_inputs[chosen], labels[chosen])
    test = Batches(test_inputs[:2000], test_labels[:2000], 1000)
    model = run.model()
    run.spoil_model(model)
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, **run.optimizer}
    optimizer = SGD(ParameterVector(model), **options)
    if run.forgets_zero_grad:
        optimizer.zero_grad = lambda set_to_none=True: None
    batches = Batches(inputs, targets, run.batch_size, seed=seed)
    num_steps = run.epochs * len(batches)
    findings = Findings(
        num_steps=num_steps,
        batch_size=run.batch_size,
        num_classes=10,
        clip_norm=run.clip_norm,
    )
    findings.check_inputs(inputs.mean().item(), inputs.std().item())
    every = max(1, num_steps // 20)
    # Of the noise a long run has more readings: the default budget allows this many.
    cadence = Cadence(every, every, 2 * every, noise=min(every, 100))
    panel = Panel(model, optimizer, cadence)
    schedule = SCHEDULES[run.schedule]
    number = 0
    try:
        for step in train(
            model,
            optimizer,
            batches,
            LOSS,
            epochs=run.epochs,
            lr=lambda step: options["lr"] * schedule(step, num_steps),
            clip_norm=run.clip_norm,
            autocast=run.autocast,
            measure_every=max(1, every // 4),
            watcher=panel,
        ):
            number = step.number
            findings.note(number, step_scalars(step))
            if "truth/worst_error" in step.readings:
                findings.check_slopes(number, panel.slopes)
            if step.ends_epoch and (step.epoch % max(1, run.epochs // 10) == 0):
                result = evaluate(model, test, LOSS)
                values = {"loss/test": result.loss, "accuracy/test": result.accuracy}
                findings.note(number, values)
    except NotFiniteError:
        findings.note_failure(number + 1, "the step is not finite.")
    return [finding.kind for finding in findings.found]


def main(seeds: int = 5, first_seed: int = 0, only: str = "") -> int:
    """Run all, and print a table: what was planted, found, missed, and found besides.

    Args:
        seeds: Runs of each kind and model.
        first_seed: The seed of the first of them.
        only: Part of the name of what to plant; by default everything.
    """
    torch.set_num_threads(1)
    numbers = range(first_seed, first_seed + seeds)
    print(f"{'planted':24} {'should be found':34} found  missed  besides")
    num_found = num_planted = num_besides = 0
    for name, (kind, change) in CHANGES.items():
        if only not in name:
            continue
        kinds = [
            find(replace(Run(model), **change), seed)
            for model in (mlp, cnn)
            for seed in numbers
        ]
        found = sum(kind in run for run in kinds)
        besides = Counter(k for run in kinds for k in run if k != kind)
        num_found, num_planted = num_found + found, num_planted + len(kinds)
        num_besides += sum(besides.values())
        others = ", ".join(f"{n} x {k}" for k, n in besides.items()) or "-"
        print(
            f"{name:24} {kind:34} {found:5}  {len(kinds) - found:6}  {others}",
            flush=True,
        )
    alarms, num_healthy = 0, 0
    for name, run in healthy_runs().items():
        for seed in numbers if not only or only in name else ():
            kinds = find(run, seed)
            num_healthy, alarms = num_healthy + 1, alarms + bool(kinds)
            if kinds:
                print(f"healthy: {name}, seed {seed}: {', '.join(kinds)}", flush=True)
    share = num_found / num_planted if num_planted else math.nan
    print(f"\n{num_found} of {num_planted} planted faults found ({share:.1%})")
    print(f"{num_besides} findings besides, in the same runs")
    share = alarms / num_healthy if num_healthy else math.nan
    print(f"{alarms} of {num_healthy} healthy runs gave a false alarm ({share:.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
