"""The batches of each update: windows over those of an epoch."""

import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import NamedTuple

from torch.utils.data import IterableDataset

from minitrain.epochs import Batch, Epochs, epoch_of, size_of


class Window(NamedTuple):
    """The batches of one update."""

    number: int
    epoch: int
    ends_epoch: bool
    is_last: bool
    batches: list[Batch]
    num_samples: int


def windows_of(
    batches: Epochs | Iterable[Batch], epochs: int, accumulate: int, start: int
) -> Iterator[Window]:
    """Yield the batches of every update after the first `start` ones.

    Raises:
        ValueError: An epoch has no batch, or there are fewer updates than `start`.
    """
    number = 0
    for epoch in range(1, epochs + 1):
        before = number
        # What can be read from any place on is not read up to there.
        if start > number and isinstance(batches, Sized):
            number += min(start - number, -(-len(batches) // accumulate))
        of_epoch = epoch_of(batches, epoch, skip=(number - before) * accumulate)
        for window, ends_epoch in _grouped(of_epoch, accumulate):
            number += 1
            if number > start:
                is_last = ends_epoch and epoch == epochs
                num_samples = sum(map(size_of, window))
                yield Window(number, epoch, ends_epoch, is_last, window, num_samples)
        if number == before:
            raise ValueError(
                f"epoch {epoch} yielded no batch to train on"
                + ": what can be iterated only once is used up" * (epoch > 1)
            )
    if number < start:
        raise ValueError(
            f"start = {start}: {epochs} epochs have no more than {number} updates"
        )


def _grouped(batches: Iterable[Batch], size: int) -> Iterator[tuple[list[Batch], bool]]:
    """Yield consecutive batches, `size` at a time, each with whether it ends the epoch.

    What knows its length, as a DataLoader does, is read just in time: its random draws
    keep their places among the model's. Anything else is read one window ahead, as is
    the DataLoader of a stream, whose length is unknown or a guess.
    """
    iterator = iter(batches)
    is_stream = isinstance(getattr(batches, "dataset", None), IterableDataset)
    if isinstance(batches, Sized) and not is_stream:
        for end in range(size, len(batches) + size, size):
            yield list(itertools.islice(iterator, size)), end >= len(batches)
        return
    window = list(itertools.islice(iterator, size))
    while window:
        upcoming = list(itertools.islice(iterator, size))
        yield window, not upcoming
        window = upcoming
