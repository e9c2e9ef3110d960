"""The saved state of an SGD: brought from lists to vectors and back, and checked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minitrain.flat import join_as, split_as
from minitrain.vector import Theta

Buffers = Sequence[Tensor | None]
Groups = Sequence[Mapping[str, Any]]


def fitted(state_dict: Mapping[str, Any], groups: Groups) -> dict[str, Any]:
    """Return a copy of a saved state, in the form of these groups.

    The buffers of a list of parameters become one where a group holds their
    `ParameterVector`, and the buffer of a vector as many as a group has parameters.

    Raises:
        ValueError: A buffer does not have the shape of its parameter.
    """
    state = copied(state_dict["state"])
    saved_groups = [dict(group) for group in state_dict["param_groups"]]
    for g, (saved, group) in enumerate(zip(saved_groups, groups, strict=False)):
        keys, params = saved["params"], group["params"]
        bufs = _moved([buffer_of(state.get(key)) for key in keys], params, g)
        if bufs is None:
            continue
        for key in keys:
            state.pop(key, None)
        saved["params"] = [(g, i) for i in range(len(bufs))]
        for key, buf in zip(saved["params"], bufs, strict=True):
            if buf is not None:
                state[key] = {"momentum_buffer": buf}
    return {**state_dict, "state": state, "param_groups": saved_groups}


def _moved(saved: Buffers, params: Sequence[Tensor], group: int) -> Buffers | None:
    """Return the buffers of a list as that of a vector, or the other way round.

    None means that they stay as they are.
    """
    if len(saved) == len(params):
        return None
    if len(params) == 1 and isinstance(theta := params[0], Theta):
        parts = theta.vector.split(theta.detach())
        if len(saved) != len(parts):
            return None
        if all(buf is None for buf in saved):
            return [None]
        # What has no buffer has had no gradient, and a vector's gradient is 0 there.
        pairs = zip(saved, parts, strict=True)
        bufs = [torch.zeros_like(p) if buf is None else buf for buf, p in pairs]
        check_shapes(bufs, parts, group)
        return [join_as(bufs, parts)]
    if len(saved) == 1:
        if saved[0] is None:
            return [None] * len(params)
        size = sum(param.numel() for param in params)
        check_shapes(saved, [saved[0].new_empty(size)], group)
        return [part.clone() for part in split_as(saved[0], params)]
    return None


def check_shapes(bufs: Iterable[Any], params: Iterable[Tensor], group: int) -> None:
    """Make sure that each momentum buffer is None or has the shape of its parameter.

    Raises:
        ValueError: One does not.
    """
    for i, (buf, param) in enumerate(zip(bufs, params, strict=True)):
        if buf is None or (isinstance(buf, Tensor) and buf.shape == param.shape):
            continue
        is_tensor = isinstance(buf, Tensor)
        what = (
            f"shape {tuple(buf.shape)}" if is_tensor else f"type {type(buf).__name__}"
        )
        raise ValueError(
            f"momentum_buffer of parameter {i} in group {group} has {what}, the "
            f"parameter {tuple(param.shape)}: the state dict belongs to another model"
        )


def copied(value: Any) -> Any:
    """Return a copy of nested dictionaries in which every tensor is a new one."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


def buffer_of(entry: Any) -> Any:
    """Return the momentum buffer in what is saved of a parameter, or None.

    Where that is not a dictionary of a parameter's state, it is itself what
    `check_shapes` refuses.
    """
    return entry.get("momentum_buffer") if isinstance(entry, Mapping) else entry
