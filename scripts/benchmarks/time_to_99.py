"""The time to 99 % on MNIST against a published recipe, on the same number of threads.

experiments/mnist-99.toml trains with its instrument panel, and logs all that a run logs
by default; the recipe, in plain PyTorch, logs nothing. Both start from tensors in
memory; the note has the mean test accuracies.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmarks.compare import Row, row
from benchmarks.one_epoch_adam import one_epoch_adam

from minitrain import Board, evaluate
from minitrain.experiment.build import build
from minitrain.experiment.parts import Run, with_cadence
from minitrain.experiment.reading import read
from minitrain.runs.scalars import step_scalars

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "mnist-99.toml"


def train_and_log(run: Run) -> None:
    """The steps of the experiment, as a run makes and logs them."""
    with tempfile.TemporaryDirectory() as folder, Board(Path(folder)) as board:
        for step in run.train():
            if values := step_scalars(step):
                board.log(step.number, values)
                run.findings.note(step.number, values)
            board.beat()


def rows(rounds: int) -> Iterator[Row]:
    threads, config = torch.get_num_threads(), read(EXPERIMENT)
    seconds: list[list[float]] = [[], []]
    accuracies: list[list[float]] = [[], []]
    for seed in range(rounds + 1):  # the first does not count
        config = config.model_copy(update={"seed": seed, "threads": threads})
        run = with_cadence(build(config))
        start = time.perf_counter()
        train_and_log(run)
        middle = time.perf_counter()
        inputs, targets = run.data.train
        model = one_epoch_adam(inputs, targets, seed)
        end = time.perf_counter()
        for side, (span, trained) in enumerate(
            [(middle - start, run.model), (end - middle, model)]
        ):
            seconds[side].append(span)
            test = evaluate(trained, run.test_batches, run.loss_fn)
            accuracies[side].append(test.accuracy)
    ours, theirs = seconds[0][1:], seconds[1][1:]
    found = row("99 % on MNIST, training", ours, "one epoch of Adam", theirs)
    means = [f"{statistics.fmean(each):.2%}" for each in accuracies]
    yield found._replace(note=f"test accuracy {means[0]} and {means[1]}")
