"""Tensors of any dtypes as one message of bytes, so that a single collective does."""

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 8
"""Bytes at whose multiples a tensor of any dtype may begin."""


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Return the bytes of some tensors of one device, each at a multiple of eight."""
    parts = []
    for tensor in tensors:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        parts += [flat, flat.new_empty(-len(flat) % ALIGNMENT)]
    return torch.cat(parts)


def unpack(message: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of a message, in its memory, with dtypes and shapes of others.

    >>> sent = [torch.tensor([1.5, 2.5, 3.5]), torch.tensor(4)]
    >>> unpack(pack(sent), like=sent)
    [tensor([1.5000, 2.5000, 3.5000]), tensor(4)]
    """
    tensors, start = [], 0
    for tensor in like:
        end = start + tensor.numel() * tensor.element_size()
        tensors.append(message[start:end].view(tensor.dtype).reshape(tensor.shape))
        start = end + -end % ALIGNMENT
    return tensors
