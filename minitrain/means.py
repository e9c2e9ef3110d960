"""Means over samples, put together in a fixed order: that of a binary tree.

Of two halves with n_1 and n_2 of n samples the mean is

    m = (n_1 / n) m_1 + (n_2 / n) m_2.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """The mean over some samples: of their losses, of gradients, and of buffers."""

    num_samples: int
    loss: Tensor
    grads: Sequence[Tensor | None] = ()
    """One for each parameter; None where the loss does not depend on it."""
    buffers: Sequence[Tensor] = ()
    """What the forward pass left in the model's buffers."""
    reading: float = math.nan
    """What a watcher has read of the samples."""


def join(left: Mean, right: Mean) -> Mean:
    """Return the mean over the samples of both. Their memory is used again for it.

    >>> one, two = torch.tensor(1.0), torch.tensor(5.0)
    >>> join(Mean(3, one), Mean(1, two)).loss
    tensor(2.)

    What is the same in two buffers stays as it is, and of whole numbers, such as the
    batches that BatchNorm has counted, the first is taken.
    """
    if not left.num_samples or not right.num_samples:
        return left if left.num_samples else right
    num_samples = left.num_samples + right.num_samples
    weights = left.num_samples / num_samples, right.num_samples / num_samples

    def mean(x: Tensor, y: Tensor) -> Tensor:
        return x.mul_(weights[0]).add_(y, alpha=weights[1])

    def mean_grad(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        if x is None:
            return None if y is None else y.mul_(weights[1])
        return x.mul_(weights[0]) if y is None else mean(x, y)

    def mean_buffer(x: Tensor, y: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return torch.where(x == y, x, mean(x.clone(), y))

    return Mean(
        num_samples,
        mean(left.loss, right.loss),
        [*map(mean_grad, left.grads, right.grads)],
        [*map(mean_buffer, left.buffers, right.buffers)],
        weights[0] * left.reading + weights[1] * right.reading,
    )


def root(leaves: Iterator[Mean], num: int) -> Mean:
    """Return the root of a binary tree over the next leaves, a power of two of them."""
    if num == 1:
        return next(leaves)
    return join(root(leaves, num // 2), root(leaves, num // 2))


def as_message(mean: Mean, params: Sequence[Tensor]) -> list[Tensor]:
    """Return a mean as tensors whose shapes do not depend on what is in it."""
    is_there = [float(grad is not None) for grad in mean.grads]
    numbers = mean.loss.new_tensor([mean.num_samples, mean.reading, *is_there])
    pairs = zip(mean.grads, params, strict=True)
    grads = [torch.zeros_like(p) if grad is None else grad for grad, p in pairs]
    return [numbers, mean.loss, *grads, *mean.buffers]


def from_message(message: Sequence[Tensor], num_params: int) -> Mean:
    numbers, loss, *tensors = message
    num_samples, reading, *is_there = numbers.tolist()
    grads = [
        tensor if flag else None
        for tensor, flag in zip(tensors[:num_params], is_there, strict=True)
    ]
    return Mean(int(num_samples), loss, grads, tensors[num_params:], reading)
