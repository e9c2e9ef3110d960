"""Samples in batches, and the order in which an epoch takes them."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Inputs and targets of some samples, which are counted along the first dimension."""


class Epochs(Protocol):
    """Batches whose order is a function of the epoch."""

    def epoch(self, epoch: int) -> Iterable[Batch]: ...


@dataclass(frozen=True)
class Batches:
    """Resident tensors in batches, in an order that is a function of (seed, epoch).

    With a seed every epoch has its own random order, without one the order is that of
    the tensors. The last batch may be smaller. There is no other state: any epoch can
    be had at any time, from any batch on.

    >>> batches = Batches(torch.arange(5), torch.arange(5), batch_size=2)
    >>> [inputs.tolist() for inputs, targets in batches.epoch(1)]
    [[0, 1], [2, 3], [4]]

    Raises:
        ValueError: Inputs and targets differ in number, or batch_size is not from 1 to
            that number.
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int
    seed: int | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"{len(self.inputs)} inputs and {len(self.targets)} targets: "
                "each input needs one target"
            )
        if not 1 <= self.batch_size <= len(self.inputs):
            raise ValueError(
                f"batch_size = {self.batch_size}: must be from 1 to the number of "
                f"samples, {len(self.inputs)}"
            )

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches (inputs, targets) of an epoch, in its order."""
        if self.seed is None:
            yield from zip(
                self.inputs.split(self.batch_size),
                self.targets.split(self.batch_size),
                strict=True,
            )
            return
        order = self.order(epoch).to(self.inputs.device)
        for indices in order.split(self.batch_size):
            yield (
                self.inputs.index_select(0, indices),
                self.targets.index_select(0, indices),
            )

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of the samples in an epoch: (N,), on every device."""
        digest = hashlib.sha256(f"order of epoch {epoch}, seed {self.seed}".encode())
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(digest.digest()[:8], signed=True))
        return torch.randperm(len(self.inputs), generator=generator)


def epoch_of(batches: Epochs | Iterable[Batch], epoch: int) -> Iterable[Batch]:
    """Return the batches of an epoch: `batches.epoch(epoch)`, or `batches` themselves.

    >>> epoch_of([1, 2], epoch=1)
    [1, 2]
    """
    of_epoch = getattr(batches, "epoch", None)
    return of_epoch(epoch) if callable(of_epoch) else batches  # pyright: ignore
