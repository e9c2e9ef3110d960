"""Samples of an indexable data set in batches, made by worker processes or here."""

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from minitrain.batches import Batch, check_batch_size, number_of, order_of
from minitrain.samples import Samples, count


@dataclass(frozen=True)
class DatasetBatches:
    """An indexable data set in batches; the order is a function of (seed, epoch).

    An item of the data set is a pair (input, target) of tensors, numbers or nested
    tuples, lists and dictionaries of them, which become batches as in a DataLoader.
    What it draws at random, to augment an image for example, from torch, `random` or
    `numpy.random`, is a function of (seed, epoch, sample): any epoch can be had at any
    time, from any batch on, with the same bits for any number of workers.

    >>> batches = DatasetBatches([(0.0, 1), (0.5, 0), (1.0, 1)], batch_size=2)
    >>> [targets.tolist() for inputs, targets in batches.epoch(1)]
    [[1, 0], [1]]

    Args:
        dataset: Has a length and, for every number below it, an item.
        batch_size: Samples in a batch.
        seed: Of order and random numbers; without, the order is that of the data.
        num_workers: Processes that make the samples, by fork; 0 makes them here.
        pin_memory: Whether batches are laid where an accelerator fetches them faster.

    Raises:
        ValueError: batch_size is not from 1 to the length of the data set.
    """

    dataset: Any
    batch_size: int
    seed: int | None = None
    num_workers: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, self.num_samples)

    @property
    def num_samples(self) -> int:
        """The samples of an epoch."""
        return len(self.dataset)

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches (inputs, targets) of an epoch in its order, but the first.

        Args:
            epoch: The number of the epoch.
            skip: How many batches are left out at its beginning.
        """
        indices = self.order(epoch)[skip * self.batch_size :].tolist()
        keys = [(epoch, index) for index in indices]
        starts = range(0, len(keys), self.batch_size)
        loader = DataLoader(
            _Drawing(self.dataset, self.seed),
            batch_sampler=[keys[start : start + self.batch_size] for start in starts],
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            collate_fn=collate,
            # By fork the data set need not be picklable.
            multiprocessing_context="fork" if self.num_workers else None,
            generator=torch.Generator(),  # not the one that training draws from
        )
        yield from loader

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of the samples in an epoch: (N,), on every device."""
        if self.seed is None:
            return torch.arange(self.num_samples)
        return order_of(self.num_samples, epoch, self.seed)

    def first(self, num: int) -> Batch:
        """Return the first samples, in the order of the data set, made here."""
        return self.choose(range(min(num, self.num_samples)))

    def choose(self, indices: Iterable[int]) -> Batch:
        """Return the samples with these numbers as one batch, made here."""
        drawing = _Drawing(self.dataset, self.seed)
        return collate([drawing[0, index] for index in indices])


@dataclass(frozen=True)
class _Drawing(Dataset):
    """A data set whose samples draw what is a function of (seed, epoch, sample)."""

    dataset: Any
    seed: int | None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        with drawing_from(f"sample {index} of epoch {epoch}, seed {self.seed}"):
            return self.dataset[index]


@contextmanager
def drawing_from(text: str) -> Iterator[None]:
    """Seed all random numbers of the CPU by a text, and put their states back."""
    number = number_of(text)
    numpy = sys.modules.get("numpy")  # what was never imported draws nothing
    states = torch.get_rng_state(), random.getstate()
    state = numpy and numpy.random.get_state()
    torch.default_generator.manual_seed(number)
    random.seed(number)
    if numpy is not None:
        numpy.random.seed(number % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy is not None:
            numpy.random.set_state(state)


def collate(items: Sequence[Any]) -> tuple[Samples, Samples]:
    """Return items as one batch.

    Raises:
        ValueError: They are no pairs (input, target), or cannot be one batch.
    """
    if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
        raise ValueError(
            f"an item of the data set is {type(items[0]).__name__}: it must be a pair "
            "(input, target)"
        )
    try:
        inputs, targets = default_collate([tuple(item) for item in items])
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"items of the data set cannot be one batch: {error}. Each part must be a "
            "tensor or a number, of one shape in all samples"
        ) from error
    count((inputs, targets))
    return inputs, targets
