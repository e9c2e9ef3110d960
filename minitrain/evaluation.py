"""How good a model is: its loss, and what else is measured of its predictions."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minitrain.checks import check_batches, check_loss
from minitrain.epochs import Batch, Epochs, epoch_of, size_of
from minitrain.metrics import (
    Metrics,
    Sums,
    accuracy,
    check_metrics,
    means_of,
    sum_of,
)
from minitrain.samples import Samples, count, join, move, part
from minitrain.shards import Shards


class Evaluation(NamedTuple):
    """How good the predictions are: the mean loss, and the mean of every metric."""

    loss: float
    metrics: dict[str, float]

    @property
    def accuracy(self) -> float:
        """The share that is right, in [0, 1]; NaN where it was not measured."""
        return self.metrics.get("accuracy", math.nan)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Epochs | Iterable[Batch],
    loss_fn: Callable[[Any, Any], Tensor],
    metrics: Metrics | None = None,
    shards: Shards | None = None,
) -> Evaluation:
    """Return the mean loss and metrics over all samples, without gradients.

    The model is in evaluation mode meanwhile, and afterwards as it was, each module in
    its own mode.

    Args:
        model: Any module.
        batches: As for `train`.
        loss_fn: `loss_fn(outputs, targets)` is the mean loss over a batch.
        metrics: By default the accuracy, where `accuracy` has one to measure.
        shards: As for `train`; the processes share the batches.

    Raises:
        ValueError: There is no batch, a batch or loss has another form, or a metric is
            not one number for each sample.
        TypeError: The batches are a data set, which has samples.
    """
    check_batches(batches)
    device, shards = _device_of(model), shards or Shards()
    rows: list[Sums] = []
    with evaluating(model):
        for number, batch in shards.numbered(epoch_of(shards.deal(batches), 0)):
            shards.seed_stream(f"evaluation of batch {number}", device)
            size = size_of(batch)
            inputs, targets = move(batch, device)
            outputs = model(inputs)
            check_loss(loss := loss_fn(outputs, targets))
            measured = (metrics or accuracy)(outputs, targets)
            check_metrics(measured)
            of_metrics = {name: sum_of(name, x, size) for name, x in measured.items()}
            rows.append(Sums(size, loss.double().reshape(()) * size, of_metrics))
    rows = shards.collect(rows)
    if not rows:
        raise ValueError("there is no batch to evaluate on")
    return Evaluation(*means_of(rows))


@torch.no_grad()
def predict(model: nn.Module, inputs: Samples, batch_size: int = 1000) -> Samples:
    """Return the outputs for inputs in memory, in evaluation mode, without gradients.

    Args:
        model: Any module.
        inputs: A tensor, or a nested tuple, list or dictionary of tensors.
        batch_size: How many samples go through the model at a time.

    Raises:
        ValueError: Outputs are not one for each input, in the first dimension.
    """
    device, num_samples = _device_of(model), count(inputs)
    starts = range(0, max(num_samples, 1), batch_size)  # of no samples, one part
    with evaluating(model):
        parts = (part(inputs, start, start + batch_size) for start in starts)
        outputs = join([model(move(each, device)) for each in parts])
    if count(outputs) != num_samples:
        raise ValueError(
            f"{count(outputs)} outputs of {num_samples} inputs: each input needs one, "
            "counted along the first dimension"
        )
    return outputs


def _device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters; without any it is the CPU."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the whole model in evaluation mode, and then each module back in its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
