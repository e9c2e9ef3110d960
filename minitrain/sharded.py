"""Tensors of which each process holds a part: the DTensors of torch's `fully_shard`."""

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = {Tensor, nn.Parameter}


def are_sharded(tensors: Collection[Tensor]) -> bool:
    """Return whether there is a DTensor among them.

    While nobody has imported torch.distributed.tensor, which takes longer than to start
    a training, there is none.
    """
    module: Any = sys.modules.get("torch.distributed.tensor")
    if module is None or PLAIN.issuperset(map(type, tensors)):
        return False
    return any(isinstance(tensor, module.DTensor) for tensor in tensors)


def norms_of_whole(
    norm_of: Callable[[Tensor], Tensor], tensors: Sequence[Tensor]
) -> Tensor:
    """Return the norm of each whole tensor, the same on every process.

    The squares of the parts' norms add up to that of the whole, |x|^2 = sum_r |x_r|^2,
    in one message for all tensors that lie in the same way on the same processes. What
    is the same on several processes counts once.

    Args:
        norm_of: Returns the norm of an ordinary tensor, a 0-d tensor.
        tensors: DTensors, and ordinary tensors among them.
    """
    found, alike = [], {}
    for place, tensor in enumerate(tensors):
        if are_sharded([tensor]):
            tensor, *layout = _own_part(tensor)
            alike.setdefault(tuple(layout), []).append(place)
        found.append(norm_of(tensor))
    norms = torch.stack(found)
    for (mesh, axes), places in alike.items():
        squares = norms[places].double().square()
        for axis in axes:
            torch.distributed.all_reduce(squares, group=mesh.get_group(axis))
        norms[places] = squares.sqrt().to(norms.dtype)
    return norms


def _own_part(tensor: Any) -> tuple[Tensor, Any, tuple[int, ...]]:
    """Return the part of a DTensor that is held here, and how the whole is cut.

    That is its mesh of processes, and the axes of the mesh along which parts differ.
    """
    if any(placement.is_partial() for placement in tensor.placements):
        return tensor.full_tensor(), tensor.device_mesh, ()  # a sum not yet taken
    pairs = enumerate(tensor.placements)
    axes = tuple(axis for axis, each in pairs if not each.is_replicate())
    return tensor.to_local(), tensor.device_mesh, axes
