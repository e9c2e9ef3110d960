"""The loss of guessing: what a model reaches that looks at no input."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

NUM_TARGETS = 8192
"""The loss of guessing is taken over at most as many samples."""


@torch.no_grad()
def loss_of_guessing(
    loss_fn: Callable[[Any, Any], Tensor], outputs: Any, targets: Any
) -> float | None:
    """Return the least loss of outputs that are the same for every sample.

    Of class numbers these are the logarithms of the classes' frequencies, of real
    targets their mean or, where all are in [0, 1], also its logit. They are put through
    the loss function itself, so that label smoothing, for one, counts too.

    >>> targets = torch.tensor([1.0, 3.0])
    >>> loss_of_guessing(torch.nn.functional.mse_loss, torch.zeros(2), targets)
    1.0

    Args:
        loss_fn: `loss_fn(outputs, targets)` is the mean loss of a batch.
        outputs: Those of some samples, or of one, for their form.
        targets: Those of all samples, or of enough of them.

    Returns:
        None where outputs or targets are no tensors, or the loss function takes no such
        outputs.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    if not (outputs.is_floating_point() and outputs.dim() and targets.dim()):
        return None
    # Samples at equal distances stand for all, also where they are sorted.
    targets = targets[:: max(1, len(targets) // NUM_TARGETS)]
    numbers = targets.long() if targets.dtype == torch.bool else targets
    losses = []
    for constant in _constants(outputs, numbers):
        try:
            loss = loss_fn(constant, targets)
            losses.append(float(loss))
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue  # the loss function wants another form
    return min(filter(math.isfinite, losses), default=None)


def _constants(outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """Yield outputs for these targets that are the same for every sample."""
    is_number = not targets.is_floating_point()
    if is_number:
        for axis in range(1, outputs.dim()):
            shape = outputs.shape[1:axis] + outputs.shape[axis + 1 :]
            if shape == targets.shape[1:]:
                yield _log_frequencies(outputs, targets, axis)
    if targets.shape[1:].numel() == outputs.shape[1:].numel():
        mean = targets.to(outputs.dtype).mean(dim=0)
        shape = (len(targets), *outputs.shape[1:])
        yield mean.reshape(outputs.shape[1:]).expand(shape)
        if ((mean > 0) & (mean < 1)).all() and targets.min() >= 0 >= targets.max() - 1:
            yield mean.logit().reshape(outputs.shape[1:]).expand(shape)


def _log_frequencies(outputs: Tensor, targets: Tensor, axis: int) -> Tensor:
    """Return the logarithms of the classes' frequencies as outputs for all targets.

    A class that does not occur counts as half a sample, so that its logarithm is
    finite. Numbers that are none of a class, as for places to ignore, do not count.
    """
    num_classes = outputs.shape[axis]
    known = targets[(targets >= 0) & (targets < num_classes)]
    counts = torch.bincount(known.flatten().long(), minlength=num_classes)
    log = (counts.clamp(min=0.5) / max(1, len(known))).log()
    form = [1] * outputs.dim()
    form[axis] = num_classes
    shape = (len(targets), *outputs.shape[1:])
    return log.to(outputs).reshape(form).expand(shape)
