"""Samples of any form: tensors, or nested tuples, lists and dictionaries of them.

All tensors of one nest have the same first dimension: their n-th entries together are
the n-th sample.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Samples = Any
"""A tensor, or a nested tuple, list or dictionary of tensors."""


def map_tensors(function: Callable[[Tensor], Tensor], samples: Samples) -> Samples:
    """Return a nest of the same form, with the function applied to every tensor.

    What is not a tensor stays as it is.

    >>> map_tensors(torch.square, {"x": torch.tensor([2, 3]), "name": "a"})
    {'x': tensor([4, 9]), 'name': 'a'}
    """
    if isinstance(samples, Tensor):
        return function(samples)
    if isinstance(samples, dict):
        return {key: map_tensors(function, value) for key, value in samples.items()}
    if isinstance(samples, tuple | list):
        mapped = [map_tensors(function, each) for each in samples]
        if hasattr(samples, "_fields"):  # a named tuple takes its parts one by one
            return type(samples)(*mapped)
        return type(samples)(mapped)
    return samples


def tensors_in(samples: Samples) -> Iterator[Tensor]:
    """Yield every tensor of a nest, in its order."""
    if isinstance(samples, Tensor):
        yield samples
    elif isinstance(samples, dict):
        for value in samples.values():
            yield from tensors_in(value)
    elif isinstance(samples, tuple | list):
        for each in samples:
            yield from tensors_in(each)


def count(samples: Samples) -> int:
    """Return the number of samples: the first dimension of every tensor.

    >>> count((torch.zeros(3, 2), {"mask": torch.ones(3)}))
    3

    Raises:
        ValueError: There is no tensor, one has no dimension, or they differ.
    """
    if isinstance(samples, Tensor) and samples.dim():
        return len(samples)  # the usual form, at once
    tensors = [*tensors_in(samples)]
    sizes = {len(x) for x in tensors if x.dim()}
    if not all(x.dim() for x in tensors):
        raise ValueError(
            "a tensor has no dimension: samples are counted along the first one"
        )
    if not sizes:
        raise ValueError(
            f"{type(samples).__name__}: samples are a tensor, or a nested tuple, list "
            "or dictionary of tensors"
        )
    if len(sizes) > 1:
        raise ValueError(
            f"tensors of {sorted(sizes)} samples together: each sample needs an entry "
            "in the first dimension of every tensor"
        )
    return sizes.pop()


def select(samples: Samples, indices: Tensor) -> Samples:
    """Return the samples with these numbers, in their order, in memory of their own."""
    return map_tensors(lambda x: x.index_select(0, indices.to(x.device)), samples)


def part(samples: Samples, start: int, end: int) -> Samples:
    """Return the samples from number `start` to before `end`, as views."""
    return map_tensors(lambda x: x[start:end], samples)


def move(samples: Samples, device: torch.device) -> Samples:
    """Return the samples on a device; what comes from pinned memory does not wait."""

    def moved(x: Tensor) -> Tensor:
        if x.device == device:
            return x
        return x.to(device, non_blocking=x.is_pinned())

    return (
        moved(samples) if isinstance(samples, Tensor) else map_tensors(moved, samples)
    )


def join(parts: list[Samples]) -> Samples:
    """Return samples that come in parts of one form as one nest.

    >>> join([(torch.tensor([1]), torch.tensor([2])), (torch.tensor([3]),) * 2])
    (tensor([1, 3]), tensor([2, 3]))
    """
    columns = [[*tensors_in(each)] for each in parts]
    joined = map(torch.cat, zip(*columns, strict=True))
    return map_tensors(lambda _: next(joined), parts[0])
