"""Samples in batches, and the order in which an epoch takes them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minitrain.epochs import Batch
from minitrain.randomness import number_of
from minitrain.samples import Samples, count, part, select, tensors_in

Bounds = tuple[int, int]
"""Where a batch starts in the order of its epoch, and where it ends."""

Cut = Callable[[list[Bounds]], Iterable[Bounds]]
"""Returns those of the batches, or the parts of them, that are had here."""


@dataclass(frozen=True)
class Batches:
    """Samples in memory in batches, in an order that is a function of (seed, epoch).

    With a seed every epoch has its own random order, without one the order is that of
    the samples. The last batch may be smaller. There is no other state: any epoch can
    be had at any time, from any batch on.

    >>> batches = Batches(torch.arange(5), torch.arange(5), batch_size=2)
    >>> [inputs.tolist() for inputs, targets in batches.epoch(1)]
    [[0, 1], [2, 3], [4]]

    Args:
        inputs: A tensor, or a nested tuple, list or dictionary of tensors.
        targets: The same, or None where the loss needs none.
        batch_size: Samples in a batch.
        seed: Of the order.
        cut: Of the batches of an epoch, what is had here, where processes share them;
            by default all.

    Raises:
        ValueError: Inputs and targets differ in number, or batch_size is not from 1 to
            that number.
    """

    inputs: Samples
    targets: Samples
    batch_size: int
    seed: int | None = None
    cut: Cut | None = None

    def __post_init__(self) -> None:
        num_inputs = num_targets = count(self.inputs)
        if self.targets is not None:
            num_targets = count(self.targets)
        if num_inputs != num_targets:
            raise ValueError(
                f"{num_inputs} inputs and {num_targets} targets: each input needs one "
                "target"
            )
        check_batch_size(self.batch_size, num_inputs)

    @property
    def num_samples(self) -> int:
        """The samples of an epoch."""
        return count(self.inputs)

    def __len__(self) -> int:
        return len(bounds_of(self))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches (inputs, targets) of an epoch in its order, but the first.

        Args:
            epoch: The number of the epoch.
            skip: How many batches are left out at its beginning.
        """
        samples = self.inputs, self.targets
        order = None if self.seed is None else self.order(epoch)
        if order is not None:  # on the device once, not once for every batch
            order = order.to(next(tensors_in(samples)).device)
        for start, end in bounds_of(self)[skip:]:
            if order is None:
                yield part(samples, start, end)
            else:
                yield select(samples, order[start:end])

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of the samples in an epoch: (N,), on every device."""
        return order_of(self.num_samples, epoch, self.seed)

    def first(self, num: int) -> Batch:
        """Return the first samples, in the order in which they were given."""
        return part((self.inputs, self.targets), 0, num)


class InBatches(Protocol):
    """Samples that are had in batches."""

    @property
    def num_samples(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def cut(self) -> Cut | None: ...


def bounds_of(batches: InBatches) -> list[Bounds]:
    """Return where each batch of an epoch starts and ends, or what is cut of them.

    >>> bounds_of(Batches(torch.arange(5), None, batch_size=2))
    [(0, 2), (2, 4), (4, 5)]
    """
    size, num_samples = batches.batch_size, batches.num_samples
    starts = range(0, num_samples, size)
    bounds = [(start, min(start + size, num_samples)) for start in starts]
    return bounds if batches.cut is None else [*batches.cut(bounds)]


def order_of(num_samples: int, epoch: int, seed: int | None) -> Tensor:
    """Return the order of samples in an epoch, a permutation of 0, ..., N - 1."""
    generator = torch.Generator()
    generator.manual_seed(number_of(f"order of epoch {epoch}, seed {seed}"))
    return torch.randperm(num_samples, generator=generator)


def check_batch_size(batch_size: int, num_samples: int) -> None:
    """Make sure that batches of this size can be had.

    Raises:
        ValueError: It is not from 1 to the number of samples.
    """
    if not 1 <= batch_size <= num_samples:
        raise ValueError(
            f"batch_size = {batch_size}: must be from 1 to the number of samples, "
            f"{num_samples}"
        )
