"""An epoch of training against a bare PyTorch loop, and what watching it costs."""

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.compare import Row, compare, in_turn, row
from torch import Tensor, nn

from minitrain import SGD, Batches, Board, ParameterVector, train
from minitrain.experiment import Config
from minitrain.instruments.layer_hooks import PerSampleNorms
from minitrain.instruments.panel import Panel
from minitrain.models import CNN, MLP
from minitrain.runs.scalars import step_scalars

OPTIONS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
LOSS = nn.functional.cross_entropy


def logged_epoch(
    make_model: Callable[[], nn.Module], inputs: Tensor, labels: Tensor, every: int
) -> None:
    """With loss, global and per-parameter gradient norm on the board; 0 is never."""
    model = make_model()
    optimizer = SGD(ParameterVector(model), **OPTIONS)
    batches = Batches(inputs, labels, 64, seed=0)
    steps = train(model, optimizer, batches, LOSS, measure_every=every or len(inputs))
    with tempfile.TemporaryDirectory() as folder, Board(Path(folder)) as board:
        for step in steps:
            if every and step.grad_norms is not None:
                board.log(step.number, step_scalars(step))


def bare_epoch(
    make_model: Callable[[], nn.Module], inputs: Tensor, labels: Tensor
) -> None:
    """The same epoch as a plain loop over resident tensors that logs nothing."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), **OPTIONS, fused=True)
    for indices in torch.randperm(len(inputs)).split(64):
        optimizer.zero_grad()
        loss = LOSS(model(inputs[indices]), labels[indices])
        loss.backward()
        optimizer.step()


def rows(rounds: int) -> Iterator[Row]:
    for make_model, num in ((MLP, 60_000), (CNN, 6_400)):
        data = torch.randn(num, 1, 28, 28), torch.randint(10, (num,))
        logged = functools.partial(logged_epoch, make_model, *data)
        bare = functools.partial(bare_epoch, make_model, *data)
        name = make_model.__name__
        every_step = functools.partial(logged, 1)
        quiet = functools.partial(logged, 0)
        yield compare(
            f"{name}, every step logged", every_step, "bare loop", bare, rounds
        )
        yield compare(
            f"{name}, logging alone", every_step, "not logging", quiet, rounds
        )


def panel_rows(rounds: int) -> Iterator[Row]:
    """Training with the default panel against none, both logging every tenth step.

    An epoch of as many samples as MNIST has, so that the first step, of which
    everything is read, is one of many. Both trainings take ten steps in turn: from
    second to second the speed of a machine varies by more than the panel takes.
    """
    inputs, labels = torch.randn(60_000, 1, 28, 28), torch.randint(10, (60_000,))
    for make_model in (MLP, CNN):
        on, off = (Watched(make_model, inputs, labels, on) for on in (True, False))
        times = [in_turn(on.steps(), off.steps()) for _ in range(rounds)]
        ours, theirs = map(list, zip(*times, strict=True))
        name = f"{make_model.__name__}, default panel"
        found = row(name, ours, "no panel", theirs)
        yield found._replace(
            note=f"its own figure: {on.panel_seconds / theirs[-1]:.3f}"
        )
        passes = Passes(make_model, inputs[:6400], labels[:6400])
        name = f"{make_model.__name__}, gradients with the samples' norms"
        yield compare(name, passes.watched, "without", passes.bare, rounds)


class Passes:
    """A hundred forward and backward passes, with the samples' norms or without."""

    def __init__(
        self, make_model: Callable[[], nn.Module], inputs: Tensor, labels: Tensor
    ) -> None:
        self.model = make_model()
        self.norms = PerSampleNorms(self.model)
        self.batches = [*zip(inputs.split(64), labels.split(64), strict=True)]

    def bare(self) -> None:
        for x, y in self.batches:
            self.model.zero_grad()
            LOSS(self.model(x), y).backward()

    def watched(self) -> None:
        for x, y in self.batches:
            self.model.zero_grad()
            with self.norms.watch(check=False):
                LOSS(self.model(x), y).backward()
            assert self.norms.mean_square(len(y)) is not None


class Watched:
    """An epoch with the panel on or off; the cadence is measured once, as in a run."""

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        inputs: Tensor,
        labels: Tensor,
        on: bool,
    ) -> None:
        self.make_model, self.on = make_model, on
        self.batches = Batches(inputs, labels, 64, seed=0)
        self.panel_seconds = 0.0
        model = make_model()
        panel = Panel(model, SGD(ParameterVector(model), **OPTIONS))
        x, y = next(iter(self.batches.epoch(1)))
        budget = Config().instruments.budget
        self.cadence = panel.fit(lambda: LOSS(model(x), y), 64, budget, unit=10)

    def steps(self) -> Iterator[None]:
        model = self.make_model()
        optimizer = SGD(ParameterVector(model), **OPTIONS)
        panel = Panel(model, optimizer, self.cadence) if self.on else None
        steps = train(
            model, optimizer, self.batches, LOSS, measure_every=10, watcher=panel
        )
        with tempfile.TemporaryDirectory() as folder, Board(Path(folder)) as board:
            for step in steps:
                if values := step_scalars(step):
                    board.log(step.number, values)
                yield
        self.panel_seconds = panel.seconds if panel is not None else 0.0
