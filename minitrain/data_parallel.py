"""Models whose gradients torch averages over processes: under DDP and `fully_shard`.

Each process computes the mean loss L_r of a batch of its own, and what torch leaves in
the parameters is the mean of the gradients of all W processes: the gradient of

    L = (1/W) sum_r L_r,

whatever the numbers of samples. That loss is therefore the one to report and to
compare with.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minitrain.sharded import are_sharded
from minitrain.shards import Shards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    Groups = Sequence[ProcessGroup]


def groups_of(model: nn.Module) -> "Groups":
    """Return the groups of processes over which a model's gradients are averaged.

    The mean is to be taken over one after the other: of a mesh of processes each axis
    is a group. An ordinary model has none.

    Args:
        model: Is a `DistributedDataParallel` or contains one, as a compiled one does;
            or has DTensors as parameters, as `fully_shard` makes them.
    """
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            group: Any = module.process_group
            return [group]
    parameter: Any
    for parameter in model.parameters():
        if are_sharded([parameter]):
            mesh = parameter.device_mesh
            return [mesh.get_group(axis) for axis in range(mesh.ndim)]
    return []


@contextmanager
def synchronization_kept(models: Iterable[nn.Module]) -> Iterator[None]:
    """Have the next pass share buffers as if there had been no passes in the block.

    After a pass without gradients `DistributedDataParallel` would leave that out: then
    the running statistics of BatchNorm were other ones on all processes but the first.
    """
    modules = [module for model in models for module in model.modules()]
    ddps = [m for m in modules if isinstance(m, nn.parallel.DistributedDataParallel)]
    kept = [ddp.require_forward_param_sync for ddp in ddps]
    try:
        yield
    finally:
        for ddp, value in zip(ddps, kept, strict=True):
            ddp.require_forward_param_sync = value


def without_ddp(model: nn.Module) -> nn.Module:
    """Return the model that a `DistributedDataParallel` wraps, or the model itself.

    What one process does with it, or with a copy, waits for no other.
    """
    is_wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
    return model.module if is_wrapped else model


def mean_over(
    groups: "Groups", values: Tensor, device: torch.device | None = None
) -> Tensor:
    """Return the means of some numbers over processes, in float64 where there are any.

    Every process must call it; all then get the same bits.

    Args:
        groups: As `groups_of` returns them. Without any the numbers stay as they are.
        values: Those of this process.
        device: Where the groups can exchange tensors, if it is not that of the values.
    """
    if not groups:
        return values
    mean = values.detach().to(device, torch.float64, copy=True)
    for group in groups:
        torch.distributed.all_reduce(mean, group=group)
        mean /= group.size()
    return mean


def shards_of(model: nn.Module) -> Shards:
    """Return the shards of a step: one on each process, as its model is trained."""
    groups = groups_of(model)
    return Averaged(groups=groups) if groups else Shards()


@dataclasses.dataclass(frozen=True)
class Averaged(Shards):
    """A batch on every process, where the model itself averages the gradients."""

    groups: "Groups" = ()

    def backward(self, *arguments: Any, **options: Any) -> tuple[Tensor, int]:
        """Do as `Shards.backward`; return the loss and the samples of all processes."""
        loss, num_samples = super().backward(*arguments, **options)
        loss = loss.reshape(()).double()
        own = torch.stack([loss, loss.new_tensor(num_samples)])
        loss, num_each = mean_over(self.groups, own)
        num_processes = math.prod(group.size() for group in self.groups)
        return loss, round(num_each.item() * num_processes)
