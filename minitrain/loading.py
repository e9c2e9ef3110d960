"""Samples of an indexable data set in batches, made by worker processes or here."""

import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from minitrain._torch import end_workers
from minitrain.batches import order_of
from minitrain.epochs import Batch, Cut, bounds_of, check_batch_size
from minitrain.randomness import seed_by
from minitrain.samples import Samples, count, part


@dataclass(frozen=True)
class DatasetBatches:
    """An indexable data set in batches; the order is a function of (seed, epoch).

    An item of the data set is a pair (input, target) of tensors, numbers or nested
    tuples, lists and dictionaries of them, which become batches as in a DataLoader. All
    targets may be None.

    What an item draws at random, to augment an image for example, from torch, `random`
    or `numpy.random`, is a function of (seed, epoch, sample): any epoch can be read at
    any time, from any batch on, with the same bits for any number of workers.

    >>> batches = DatasetBatches([(0.0, 1), (0.5, 0), (1.0, 1)], batch_size=2)
    >>> [targets.tolist() for inputs, targets in batches.epoch(1)]
    [[1, 0], [1]]

    Args:
        dataset: Has a length and, for every number below it, an item.
        batch_size: Samples in a batch.
        seed: Determines the order and the random numbers; None keeps the order of the
            data.
        num_workers: Processes that make the samples; 0 makes them here. On Linux they
            are forks, elsewhere the data set must be picklable.
        pin_memory: Whether batches are laid where an accelerator fetches them faster.
        cut: As for `Batches`.

    Raises:
        ValueError: batch_size is not from 1 to the length of the data set.
    """

    dataset: Any
    batch_size: int
    seed: int | None = None
    num_workers: int = 0
    pin_memory: bool = False
    cut: Cut | None = None

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, self.num_samples)

    @property
    def num_samples(self) -> int:
        """The samples of an epoch."""
        return len(self.dataset)

    def __len__(self) -> int:
        return len(bounds_of(self))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches (inputs, targets) in order, but the first `skip`.

        Args:
            epoch: The number of the epoch.
            skip: How many batches are left out at its beginning.
        """
        bounds = bounds_of(self)[skip:]
        if not bounds:
            return  # without starting a worker
        order = self.order(epoch)
        # A part without a sample takes its form from one: from any.
        last = self.num_samples - 1
        chosen = [order[min(s, last) : max(e, s + 1)] for s, e in bounds]
        loader = DataLoader(
            _Drawing(self.dataset, self.seed, epoch),
            batch_sampler=[indices.tolist() for indices in chosen],
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            collate_fn=collate,
            multiprocessing_context=_start_method() if self.num_workers else None,
            generator=torch.Generator(),  # not the one that training draws from
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
            iterator = iter(loader)
        try:
            for batch, (start, end) in zip(iterator, bounds, strict=False):
                yield part(batch, 0, 0) if start == end else batch
        finally:
            end_workers(iterator)

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of the samples in an epoch: (N,), on every device."""
        if self.seed is None:
            return torch.arange(self.num_samples)
        return order_of(self.num_samples, epoch, self.seed)

    def first(self, num: int) -> Batch:
        """Return the first samples, in the order of the data set, made here."""
        return self.choose(range(min(num, self.num_samples)))

    def choose(self, indices: Sequence[int]) -> Batch:
        """Return the samples with these numbers as one batch, made here."""
        return collate(_Drawing(self.dataset, self.seed, 0).__getitems__(indices))


@dataclass(frozen=True)
class _Drawing(Dataset):
    """A data set in an epoch: what a sample draws is a function of its number."""

    dataset: Any
    seed: int | None
    epoch: int

    def __getitems__(self, indices: Iterable[int]) -> list[Any]:
        """Return the samples with these numbers, as a DataLoader asks for a batch."""
        with keeping_random_states():
            return [self._make(index) for index in indices]

    def _make(self, index: int) -> Any:
        seed_by(f"sample {index} of epoch {self.epoch}, seed {self.seed}")
        try:
            return self.dataset[index]
        except Exception as error:
            error.add_note(f"while making sample {index} of the data set")
            raise


@contextmanager
def keeping_random_states() -> Iterator[None]:
    """Put the states of all random numbers of the CPU back as they were before."""
    states = torch.get_rng_state(), random.getstate()
    numpy = sys.modules.get("numpy")  # what was never imported draws nothing
    numpy_state = numpy and numpy.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def _start_method() -> str | None:
    """Return how workers start: by fork where that is sound, else as torch has it."""
    return "fork" if sys.platform == "linux" else None


def collate(items: Sequence[Any]) -> tuple[Samples, Samples]:
    """Return items as one batch.

    Raises:
        ValueError: They are not pairs (input, target), or cannot be one batch.
    """
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(
                f"an item of the data set is of type {type(item).__name__}: it must be "
                "a pair (input, target)"
            )
    try:
        inputs, targets = map(_column, zip(*items, strict=True))
    except (TypeError, RuntimeError, LookupError) as error:
        raise ValueError(
            f"items of the data set cannot be one batch: {error}. Each part must be a "
            "tensor or a number, of one shape in all samples"
        ) from error
    count((inputs, targets))
    return inputs, targets


def _column(parts: Sequence[Any]) -> Samples:
    return None if all(part is None for part in parts) else default_collate([*parts])
