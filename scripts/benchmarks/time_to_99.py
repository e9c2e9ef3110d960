"""Measure the time to 99 % on MNIST: python scripts/benchmarks/time_to_99.py

experiments/mnist-99.toml, with everything that a run logs by default, in turn with a
published recipe in plain PyTorch that logs nothing, on the same number of threads.
"""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from one_epoch_adam import one_epoch_adam
from torch import Tensor, nn

from minitrain import SGD, Batches, Board, ParameterVector, data, train
from minitrain.config import read
from minitrain.experiment import build_model, learning_rate
from minitrain.tensorboard import step_scalars

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "mnist-99.toml"


def fast_cnn(inputs: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """The training of the experiment, as a run does it and logs it."""
    config = read(EXPERIMENT)
    torch.manual_seed(seed)
    model = build_model(config.model)
    names = [name for name, _ in model.named_parameters()]
    optimizer = SGD(ParameterVector(model), **config.optimizer.model_dump())
    batches = Batches(inputs, labels, config.data.batch_size, seed=seed)
    steps = train(
        model,
        optimizer,
        batches,
        functools.partial(
            nn.functional.cross_entropy, label_smoothing=config.loss.label_smoothing
        ),
        epochs=config.epochs,
        lr=learning_rate(config, config.epochs * len(batches)),
        measure_every=config.log.every,
    )
    with tempfile.TemporaryDirectory() as folder, Board(Path(folder)) as board:
        for step in steps:
            if step.grad_norms is not None:
                board.log(step.number, step_scalars(step, names))
            board.beat()
    return model


def main(rounds: int = 5, threads: int = 2) -> None:
    """Train both in turn, and print seconds and test accuracy of each.

    Args:
        rounds: How often each side runs, after one that does not count.
        threads: Threads of both sides.
    """
    torch.set_num_threads(threads)
    mnist = data.load("mnist")
    inputs, labels = mnist.inputs(mnist.train), mnist.train.labels
    test_inputs = mnist.inputs(mnist.test)

    def measure(recipe: Callable[[Tensor, Tensor, int], nn.Module], seed: int) -> float:
        start = time.perf_counter()
        model = recipe(inputs, labels, seed).eval()
        seconds = time.perf_counter() - start
        with torch.no_grad():
            right = model(test_inputs).argmax(dim=1) == mnist.test.labels
        accuracy = right.double().mean().item()
        print(f"seed {seed}  {recipe.__name__:14}  {seconds:6.2f} s  {accuracy:.2%}")
        return seconds

    recipes = (fast_cnn, one_epoch_adam)
    times = [[measure(recipe, s) for recipe in recipes] for s in range(rounds + 1)]
    ours, theirs = map(statistics.median, zip(*times[1:], strict=True))
    print(f"medians {ours:.2f} s and {theirs:.2f} s: ratio {ours / theirs:.3f}")


if __name__ == "__main__":
    tyro.cli(main)
