"""Tensors laid flat into one vector, each in the order of its memory."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Layout = tuple[torch.Size, list[int] | None]
"""The shape in the order of memory, and the permutation back if one is needed."""


def join_as(tensors: Iterable[Tensor], likes: Iterable[Tensor]) -> Tensor:
    """Lay tensors flat in one vector (n,), each in the order of memory of its like."""
    pairs = zip(tensors, likes, strict=True)
    return torch.cat([t.permute(_memory_axes(like)).reshape(-1) for t, like in pairs])


def split_as(flat: Tensor, likes: Iterable[Tensor]) -> list[Tensor]:
    """Return the parts of a vector (n,), views with the shapes of their likes."""
    return split_flat(flat, [layout_of(like) for like in likes])


def split_flat(flat: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
    parts = flat.split([shape.numel() for shape, _ in layouts])
    return [
        part.view(shape) if axes is None else part.view(shape).permute(axes)
        for part, (shape, axes) in zip(parts, layouts, strict=True)
    ]


def _memory_axes(tensor: Tensor) -> list[int]:
    """The axes from the slowest to the fastest in memory: channels-last stays so."""
    return sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))


def layout_of(tensor: Tensor) -> Layout:
    axes = _memory_axes(tensor)
    back = [axes.index(axis) for axis in range(tensor.dim())]
    shape = tensor.permute(axes).shape
    return shape, back if back != sorted(back) else None
