"""Batches, whoever makes them: pairs of samples, epoch after epoch."""

import itertools
from collections.abc import Callable, Iterable, Sized
from typing import Protocol, TypeGuard, cast

from minitrain.samples import Samples, count, tensors_in

Batch = tuple[Samples, Samples]
"""Inputs and targets of some samples, which are counted along the first dimension."""

Bounds = tuple[int, int]
"""Where a batch starts in the order of its epoch, and where it ends."""

Cut = Callable[[list[Bounds]], Iterable[Bounds]]
"""Returns those of the batches, or the parts of them, that this process reads."""


class Epochs(Protocol):
    """Batches whose order is a function of the epoch."""

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, skip: int = 0) -> Iterable[Batch]: ...


def size_of(batch: Batch) -> int:
    """Return the number of samples in a batch; without targets the inputs tell.

    >>> import torch
    >>> size_of((torch.zeros(3, 2), None))
    3

    Raises:
        ValueError: It is not a pair (inputs, targets) of samples.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"of type {type(batch).__name__}"
        if isinstance(batch, Sized):
            what += f" and length {len(batch)}"
        raise ValueError(
            f"a batch is {what}: it must be a pair (inputs, targets), each of them a "
            "tensor or a nested tuple, list or dictionary of tensors"
        )
    inputs, targets = batch
    return count(inputs if next(tensors_in(targets), None) is None else targets)


def epoch_of(
    batches: Epochs | Iterable[Batch], epoch: int, skip: int = 0
) -> Iterable[Batch]:
    """Return the batches of an epoch but the first `skip`.

    They are `batches.epoch(epoch, skip)`, or else `batches` themselves.

    >>> epoch_of([1, 2], epoch=1)
    [1, 2]
    """
    if has_epochs(batches):
        return batches.epoch(epoch, skip) if skip else batches.epoch(epoch)
    iterable = cast(Iterable[Batch], batches)
    return [*itertools.islice(iterable, skip, None)] if skip else iterable


def has_epochs(batches: Epochs | Iterable[Batch]) -> TypeGuard[Epochs]:
    """Return whether the order of these batches is a function of the epoch."""
    return callable(getattr(batches, "epoch", None))


class InBatches(Protocol):
    """Samples that are read in batches."""

    @property
    def num_samples(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def cut(self) -> Cut | None: ...


def bounds_of(batches: InBatches) -> list[Bounds]:
    """Return where each batch of an epoch starts and ends, or what is cut of them.

    >>> from types import SimpleNamespace
    >>> bounds_of(SimpleNamespace(num_samples=5, batch_size=2, cut=None))
    [(0, 2), (2, 4), (4, 5)]
    """
    size, num_samples = batches.batch_size, batches.num_samples
    starts = range(0, num_samples, size)
    bounds = [(start, min(start + size, num_samples)) for start in starts]
    return bounds if batches.cut is None else [*batches.cut(bounds)]


def check_batch_size(batch_size: int, num_samples: int) -> None:
    """Make sure that there can be batches of this size.

    Raises:
        ValueError: It is not from 1 to the number of samples.
    """
    if not 1 <= batch_size <= num_samples:
        raise ValueError(
            f"batch_size = {batch_size}: must be from 1 to the number of samples, "
            f"{num_samples}"
        )
