"""How good a model is: its loss, its accuracy, and what it confuses."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minitrain.batches import Batch, Epochs, epoch_of


class Evaluation(NamedTuple):
    """How good the predictions are: the mean loss, and the share that is right."""

    loss: float
    accuracy: float
    """In [0, 1]; NaN where the targets are no class numbers."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Epochs | Iterable[Batch],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
) -> Evaluation:
    """Return the mean loss and the accuracy over all samples, without gradients.

    The model is in evaluation mode meanwhile, and afterwards as it was, each module in
    its own mode.

    Raises:
        ValueError: There is no batch.
    """
    device = next(model.parameters()).device
    losses, rights, num_samples = [], [], 0
    with evaluating(model):
        for inputs, targets in epoch_of(batches, 0):
            inputs, targets = inputs.to(device), targets.to(device)
            outputs = model(inputs)
            num_samples += len(targets)
            losses.append(loss_fn(outputs, targets).double() * len(targets))
            if not targets.is_floating_point():
                rights.append((outputs.argmax(dim=1) == targets).sum())
    if not losses:
        raise ValueError("there is no batch to evaluate on")
    loss = torch.stack(losses).sum().item() / num_samples
    right = torch.stack(rights).sum().item() if rights else math.nan
    return Evaluation(loss, right / num_samples)


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, batch_size: int = 1000) -> Tensor:
    """Return the outputs for resident inputs, in evaluation mode, without gradients."""
    with evaluating(model):
        return torch.cat([model(batch) for batch in inputs.split(batch_size)])


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


def confusion_matrix(logits: Tensor, targets: Tensor) -> Tensor:
    """Count how often each class was taken for each.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> confusion_matrix(logits, torch.tensor([0, 1, 1])).tolist()
    [[1, 0], [1, 1]]

    Args:
        logits: Shape (N, classes).
        targets: Class numbers, shape (N,).

    Returns:
        Counts [target, predicted], shape (classes, classes).
    """
    num_classes = logits.shape[1]
    pairs = targets * num_classes + logits.argmax(dim=1)
    counts = torch.bincount(pairs, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)
