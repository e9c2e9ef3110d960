"""Samples in batches, and the order in which an epoch takes them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minitrain.epochs import Batch, Cut, bounds_of, check_batch_size
from minitrain.randomness import number_of
from minitrain.samples import Samples, count, part, select, tensors_in


@dataclass(frozen=True)
class Batches:
    """Samples in memory in batches, in an order that is a function of (seed, epoch).

    With a seed every epoch has its own random order, without one the order is that of
    the samples. The last batch may be smaller. There is no other state: any epoch can
    be read at any time, from any batch on.

    >>> batches = Batches(torch.arange(5), torch.arange(5), batch_size=2)
    >>> [inputs.tolist() for inputs, targets in batches.epoch(1)]
    [[0, 1], [2, 3], [4]]

    Args:
        inputs: A tensor, or a nested tuple, list or dictionary of tensors.
        targets: The same, or None where the loss needs none.
        batch_size: Samples in a batch.
        seed: Determines the order; None keeps that of the samples.
        cut: Chooses the batches, or the parts of them, that this process reads; by
            default all.

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
        """Yield an epoch's batches (inputs, targets) in order, but the first `skip`.

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


def order_of(num_samples: int, epoch: int, seed: int | None) -> Tensor:
    """Return the order of samples in an epoch, a permutation of 0, ..., N - 1."""
    generator = torch.Generator()
    generator.manual_seed(number_of(f"order of epoch {epoch}, seed {seed}"))
    return torch.randperm(num_samples, generator=generator)
