"""Which samples are not finite: their places, for a sentence."""

import math
from typing import Any

import torch
from torch import Tensor

from minitrain.samples import tensors_in


def find_bad_samples(samples: Any) -> list[int]:
    """Return the places of all samples with an infinite or NaN number in them.

    >>> find_bad_samples((torch.tensor([1.0, torch.nan]), torch.tensor([0, 1])))
    [1]
    """
    bad: set[int] = set()
    for tensor in tensors_in(samples):
        if tensor.is_floating_point() and tensor.dim() and not _seems_finite(tensor):
            is_bad = ~tensor.isfinite().flatten(1 if tensor.dim() > 1 else 0)
            is_bad = is_bad.any(dim=1) if is_bad.dim() > 1 else is_bad
            bad.update(is_bad.nonzero().flatten().tolist())
    return sorted(bad)


def _seems_finite(tensor: Tensor) -> bool:
    """Return whether the sum is finite: much cheaper than to look at each number."""
    return math.isfinite(tensor.sum(dtype=torch.float32).item())


def describe_bad_samples(batch: Any, data: Any = None) -> str | None:
    """Say which samples of a batch are not finite, and which of the data set.

    >>> describe_bad_samples(torch.tensor([1.0, 2.0, torch.inf]))
    'sample 2 of the batch has numbers that are not finite'

    Args:
        batch: Samples of any form.
        data: All samples, in their order, where they are in memory.

    Returns:
        None where all samples of the batch are finite.
    """
    if not (bad := find_bad_samples(batch)):
        return None
    text = f"sample {bad[0]} of the batch has numbers that are not finite"
    if data is not None and (of_all := find_bad_samples(data)):
        first = ", ".join(map(str, of_all[:3]))
        text += f"; of the data set they are {first}"
        text += f" and {len(of_all) - 3} more" if len(of_all) > 3 else ""
    return text
