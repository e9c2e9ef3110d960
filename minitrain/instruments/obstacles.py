"""Which instruments cannot work with a model and its optimizer, and why."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from minitrain import tags
from minitrain.data_parallel import groups_of
from minitrain.instruments.cadence import Cadence
from minitrain.instruments.observation import OF_ONE_RULE, OF_SGD_ALONE, Parameters
from minitrain.sharded import are_sharded


def find_obstacles(model: nn.Module, parameters: Parameters) -> dict[str, str]:
    """Return the reasons by instruments, or by the tags of single readings.

    Args:
        model: The model.
        parameters: What its optimizer updates.
    """
    found = {}
    if difference := parameters.difference_of_groups():
        found |= dict.fromkeys(OF_ONE_RULE, difference)
    updated = {parameter for parameter in parameters.each() if parameter.requires_grad}
    if updated != {p for p in model.parameters() if p.requires_grad}:
        found["noise"] = (
            "the optimizer updates others than the trainable parameters of the model, "
            "which the norms of its samples' gradients are of"
        )
    if departure := parameters.departure_from_sgd():
        found |= dict.fromkeys(OF_SGD_ALONE, departure)
    if obstacle := parameters.decay_obstacle():
        found[tags.DECAY_SHARE] = obstacle
    if sharded := [n for n, p in model.named_parameters() if are_sharded([p])]:
        reason = (
            f"{sharded[0]} is a DTensor, of which each process holds a part, and the "
            "panel reads whole tensors"
        )
        found |= dict.fromkeys((*Cadence._fields, tags.LEFT_OVER), reason)
    elif groups_of(model):
        found["noise"] = (
            "DistributedDataParallel averages the gradient over processes, and each of "
            "them sees its own samples alone"
        )
    return found


def find_late_gradient(
    optimizer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, str]:
    """Return what is not read, and why, where `step` itself completes the gradient.

    Args:
        optimizer, args, kwargs: Those of the call, as a hook of it is given them.
    """
    reason = ""
    if any(map(callable, (*args[1:], kwargs.get("closure")))):
        reason = (
            "optimizer.step got a closure, which computes the gradient in its midst"
        )
    elif getattr(optimizer, "grad_scale", None) is not None:
        reason = (
            "the fused optimizer unscales the gradient in the midst of its step: call "
            "scaler.unscale_(optimizer) before scaler.step(optimizer)"
        )
    return dict.fromkeys(Cadence._fields, reason) if reason else {}
