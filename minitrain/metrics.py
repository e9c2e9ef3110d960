"""What is measured of predictions besides the loss: one number for each sample."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Metrics = Callable[[Any, Any], Mapping[str, Tensor]]
"""metrics(outputs, targets): by name one number for each sample, shape (N,)."""


def check_metrics(measured: Any) -> None:
    """Make sure that metrics are a dictionary.

    Raises:
        ValueError: They are something else.
    """
    if not isinstance(measured, Mapping):
        raise ValueError(
            f"metrics returned {type(measured).__name__}: they must be a dictionary of "
            "tensors by name"
        )


def sum_of(name: str, values: Tensor, num_samples: int) -> Tensor:
    """Return the sum of a metric over samples.

    Raises:
        ValueError: It is not one number for each of them.
    """
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if shape != (num_samples,):
        raise ValueError(
            f"metric {name!r} is {shape} for {num_samples} samples: it must be one "
            f"number for each, a tensor of shape ({num_samples},)"
        )
    return values.double().sum()


class Sums(NamedTuple):
    """What one batch adds to the sums over all samples."""

    num_samples: int
    loss: Tensor
    metrics: dict[str, Tensor]


def means_of(rows: Sequence[Sums]) -> tuple[float, dict[str, float]]:
    """Return the mean loss and metrics over the samples of batches, in their order.

    A metric that was not measured of all of them is left out: a mean over some of the
    samples means another thing.
    """
    num_samples = sum(row.num_samples for row in rows)

    def mean(values: list[Tensor]) -> float:
        return torch.stack(values).cpu().sum().item() / num_samples

    names = [name for name in rows[0].metrics if all(name in r.metrics for r in rows)]
    metrics = {name: mean([row.metrics[name] for row in rows]) for name in names}
    return mean([row.loss for row in rows]), metrics


def accuracy(outputs: Any, targets: Any) -> dict[str, Tensor]:
    """Return of each sample the share of class numbers that the outputs predict.

    There is one where outputs (N, C, ...) are logits of C > 1 classes in the second
    dimension and targets (N, ...) numbers of them, and nothing otherwise: also where
    the last dimension could be that of the classes as well, or a target is none of
    their numbers.

    >>> accuracy(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    {'accuracy': tensor([1., 0.], dtype=torch.float64)}
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return {}
    shape = outputs.shape
    fits = (
        outputs.dim() >= 2
        and shape[1] > 1
        and (outputs.dim() == 2 or targets.shape != shape[:-1])
        and targets.shape == (shape[0], *shape[2:])
        and targets.dtype in (torch.int64, torch.int32, torch.uint8)
    )
    if not fits or not ((targets >= 0) & (targets < shape[1])).all():
        return {}
    is_right = outputs.argmax(dim=1) == targets
    return {"accuracy": is_right.double().reshape(len(targets), -1).mean(dim=1)}


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


def losses_by_class(
    loss_fn: Callable[[Any, Any], Tensor], logits: Tensor, targets: Tensor
) -> Tensor:
    """Return the mean loss over the samples of each class; NaN where there are none.

    >>> logits = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 50.0]])
    >>> loss_fn = torch.nn.functional.cross_entropy
    >>> losses_by_class(loss_fn, logits, torch.tensor([0, 0, 1]))
    tensor([0.6931, 0.0000], dtype=torch.float64)

    Args:
        loss_fn: `loss_fn(outputs, targets)` is the mean loss over samples.
        logits: Shape (N, classes).
        targets: Class numbers, shape (N,).

    Returns:
        Shape (classes,), as 64-bit floats.
    """
    losses = logits.new_full((logits.shape[1],), math.nan, dtype=torch.float64)
    for number in targets.unique().tolist():
        chosen = targets == number
        losses[number] = loss_fn(logits[chosen], targets[chosen]).double()
    return losses
