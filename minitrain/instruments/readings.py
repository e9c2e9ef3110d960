"""Measurements of a gradient: pure functions that change nothing they look at."""

from collections.abc import Iterable

import torch
from torch import Tensor


def zero_shares(parts: Iterable[Tensor]) -> Tensor:
    """The share of elements that are exactly 0, of each part.

    >>> zero_shares([torch.tensor([0.0, 1.0]), torch.zeros(3)])
    tensor([0.5000, 1.0000])
    """
    parts = [*parts]
    counts = torch.stack([part.count_nonzero() for part in parts])
    return 1 - counts / counts.new_tensor([part.numel() for part in parts])


def log2_counts(tensor: Tensor) -> Tensor:
    """How many elements are how large: counts by log2 |x|, computed on its device.

    Shape (64,): element k counts 2^(k - 48) <= |x| < 2^(k - 47). The first takes in
    what is smaller, zeros too, and the last what is larger.

    >>> counts = log2_counts(torch.tensor([1.0, -1.5, 0.25, 0.0]))
    >>> [(k - 48, int(n)) for k, n in enumerate(counts) if n]
    [(-48, 1), (-2, 1), (0, 2)]
    """
    exponents = tensor.detach().abs().log2().floor().clamp(-48, 15)
    return torch.bincount(exponents.flatten().long() + 48, minlength=64)
