"""What minitrain takes of torch beneath its public names, each with the reason.

They stand here alone, so that a new release of torch is checked in one place. All are
there from torch 2.10 to 2.14.
"""

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

_torch: Any = torch  # whose type stubs leave these names out

# One call for many tensors, as torch's own optimizers make it.
foreach_neg = _torch._foreach_neg
foreach_add = _torch._foreach_add
foreach_add_ = _torch._foreach_add_
foreach_mul_ = _torch._foreach_mul_
fused_sgd_ = _torch._fused_sgd_


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers of a module by name, to look at and to put others there.

    `named_buffers` leaves out those that have no value yet.
    """
    return module._buffers


def without_guard(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of torch's Optimizer without the guard for torch.compile.

    The guard imports torch._dynamo when it is first passed, which takes longer than
    training a small network. Whatever compiles has imported it before.
    """
    if "torch._dynamo" in sys.modules:
        return method
    return getattr(method, "__wrapped__", method)


def call_hooks_if_any(func: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `Optimizer.step` as torch does, where a hook or a profiler is there.

    torch's wrapper records every step for a profiler, which takes longer than the
    update of a small model: 5 % of a training step of the default network.
    """
    hooked = Optimizer.profile_hook_step(func)

    @functools.wraps(func)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_watched = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or _torch.autograd._profiler_enabled()
        )
        return (hooked if is_watched else func)(self, *args, **kwargs)

    return wrapper


def use_count(tensor: Any) -> int:
    """Return how many owners a tensor has in C++: 1 where it is Python's alone.

    A graph that could go backward is one, and DistributedDataParallel another; there is
    no public way to ask. `torch.utils.swap_tensors` asks the same.
    """
    return tensor._use_count()


def share_hooks(source: Tensor, target: Tensor) -> None:
    """Let a tensor call the hooks of another one, those to come included.

    `register_hook` and `register_post_accumulate_grad_hook` keep them in dictionaries,
    from which the handles that they return remove them, in whichever tensor they are.
    """
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if (hooks := getattr(source, name)) is not None:
            setattr(target, name, hooks)


@contextmanager
def released_rnns(module: nn.Module) -> Iterator[None]:
    """Put aside what RNNs hold of their weights beside the parameters themselves.

    They keep a list of them, in which weight_norm leaves weights with their graph, and
    weak references, by which the next forward pass sees whether they were replaced. On
    leaving, both are made anew from the parameters, without `flatten_parameters`, which
    would move these on a GPU.
    """
    rnns: list[Any] = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
    for rnn in rnns:
        rnn._flat_weight_refs = []
        rnn._flat_weights = [
            rnn._parameters.get(name, None if weight is None else weight.detach())
            for name, weight in zip(
                rnn._flat_weights_names, rnn._flat_weights, strict=True
            )
        ]
    try:
        yield
    finally:
        for rnn in rnns:
            rnn._flat_weight_refs = [
                None if weight is None else weakref.ref(weight)
                for weight in rnn._flat_weights
            ]


def end_workers(iterator: Any) -> None:
    """End the workers of a DataLoader's iterator, if it has any.

    torch does so when the iterator is deleted. After an error of a worker that is left
    to the garbage collector, which may run anywhere: in a fork, too, that has no right
    to these processes.
    """
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()


def set_collectives_timeout(timeout: timedelta) -> None:
    """Set how long a collective of the default group may take; public from 2.14 on."""
    from torch.distributed import distributed_c10d as c10d

    name = "set_timeout" if hasattr(c10d, "set_timeout") else "_set_pg_timeout"
    getattr(c10d, name)(timeout, None)
