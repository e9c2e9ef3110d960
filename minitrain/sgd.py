"""Stochastic gradient descent: the update rule, and the bookkeeping around it."""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from minitrain.blocks import Update, apply_grouped
from minitrain.vector import ParameterVector, Theta


def sgd_update(
    param: Tensor,
    grad: Tensor,
    buf: Tensor | None,
    *,
    lr: float | Tensor,
    momentum: float = 0,
    dampening: float = 0,
    weight_decay: float | Tensor = 0,
    nesterov: bool = False,
    maximize: bool = False,
) -> Tensor | None:
    """Walk one step against the gradient, in place; returns the momentum buffer.

    theta <- theta - lr * grad L(theta), and with every option, line by line:

        g <- -g                                      if maximize
        g <- g + weight_decay * theta
        b <- momentum * b + (1 - dampening) * g      b <- g where there is no buffer yet
        g <- g + momentum * b if nesterov else b     only with momentum
        theta <- theta - lr * g

    All tensors have the shape of `param`; `lr` and `weight_decay` are numbers or
    tensors with one element. `grad` is never written to.

    >>> theta = torch.tensor([3.0, 4.0])
    >>> _ = sgd_update(theta, grad=2 * theta, buf=None, lr=0.1)
    >>> theta
    tensor([2.4000, 3.2000])

    Source: torch.optim.SGD and Sutskever et al., On the importance of initialization
    and momentum in deep learning, 2013 (whose buffer holds lr * b instead of b).
    """
    # add(x, alpha=a) rounds once where g + a * x rounds twice: these spellings, and no
    # others, are bit-equal to torch's.
    if maximize:
        grad = -grad
    if isinstance(weight_decay, Tensor) and weight_decay.requires_grad:
        # theta changes in place below, while backward still needs its old value.
        grad = grad.addcmul(param.clone(), weight_decay)
    elif weight_decay != 0:
        grad = grad.add(param, alpha=cast(float, weight_decay))
    if momentum != 0:
        if buf is None:
            buf = grad.clone()
        else:
            buf.mul_(momentum).add_(grad, alpha=1 - dampening)
        grad = grad.add(buf, alpha=momentum) if nesterov else buf
    if isinstance(lr, Tensor) and lr.requires_grad:
        # The next step writes into the buffer, and backward still needs this value.
        param.addcmul_(grad.clone(), lr, value=-1)
    else:
        param.add_(grad, alpha=-cast(float, lr))
    return buf


# With what torch's type stubs leave out.
torch_: Any = torch


class SGD(Optimizer):
    """Stochastic gradient descent on a list of parameters, or on a `ParameterVector`.

    `sgd_update` states the rule. The arguments, the state and its `state_dict` are
    those of `torch.optim.SGD`, and so are the results, to the last bit, by its plain
    path `foreach=False`.

    foreach  False applies the rule to one tensor after the other. Otherwise, on the
             CPU, small tensors are updated together and large ones part by part, which
             is faster and changes no bit.
    fused    True asks for one pass over memory: on the CPU by torch's fused kernel,
             which rounds in other places. With
             m = momentum |b| + |1 - dampening| |g| + weight_decay |theta| a step
             differs by at most 4 eps m in b and 4 eps (|theta| + 2 lr (m + |g|)) in
             theta, where eps is the dtype's, 1.2e-7 in float32.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = SGD(ParameterVector(model), lr=0.1, momentum=0.9)
    >>> model(torch.ones(2)).sum().backward()
    >>> optimizer.step()

    Where torch's SGD errs this one does not: a gradient is never written to; a state
    dict is copied when it is loaded, and refused where a buffer has the wrong shape; a
    tensor lr is not shared by several groups; in differentiable mode the first momentum
    buffer keeps its gradient; and the options of every group are checked.

    Raises ValueError where lr, momentum or weight_decay is negative or not finite, or
    nesterov lacks momentum or has dampening; RuntimeError where fused is combined with
    foreach or differentiable; and as `torch.optim.Optimizer` does for the parameters.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """

    def __init__(
        self,
        params: ParamsT | ParameterVector,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        _check_options(defaults)
        # Parameters whose buffer exists but has seen no gradient yet.
        self._blank: set[Tensor] = set()
        super().__init__(params, defaults)
        if fused and differentiable:
            raise RuntimeError("fused=True does not support differentiable=True")
        if fused and foreach:
            raise RuntimeError("fused=True and foreach=True exclude each other")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; the others are the defaults."""
        if isinstance(param_group, dict):
            _check_options(self.defaults | param_group)
        _as_written(Optimizer.add_param_group)(self, param_group)
        self._separate_lrs()

    def _separate_lrs(self) -> None:
        """Schedulers fill a tensor lr in place: shared, the last group would win."""
        lrs = [id(group["lr"]) for group in self.param_groups]
        for i, group in enumerate(self.param_groups):
            if isinstance(group["lr"], Tensor) and id(group["lr"]) in lrs[:i]:
                group["lr"] = group["lr"].clone()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's result.

        A closure computes the loss and its gradients anew, before the update.

        Raises RuntimeError, and changes nothing, where weight decay meets a sparse
        gradient, or where a `ParameterVector` was cut off from its module.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for vector in self._vectors():
                vector.check()
            for group, updates in [(g, self._collect(g)) for g in self.param_groups]:
                self._apply(group, updates)
        return loss

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """torch's wrapper of `step`, where a profiler or more than a pre-hook is there.

        It takes longer than the update of a small model.
        """
        watched = Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: "SGD", *args: Any, **kwargs: Any) -> Any:
            if (
                self._optimizer_step_post_hooks
                or torch_optimizer._global_optimizer_pre_hooks
                or torch_optimizer._global_optimizer_post_hooks
                or torch_.autograd._profiler_enabled()
            ):
                return watched(self, *args, **kwargs)
            for hook in [*self._optimizer_step_pre_hooks.values()]:
                changed = hook(self, (self, *args), kwargs)
                if changed is not None:
                    (_, *rest), kwargs = changed
                    args = tuple(rest)
            return func(self, *args, **kwargs)

        return step

    def _apply(self, group: dict[str, Any], updates: list[Update]) -> None:
        options = {name: group[name] for name in _RULE_OPTIONS}
        options["lr"] = _as_scalar(group["lr"])
        for param, grad, old_buf in apply_grouped(sgd_update, updates, options, group):
            buf = sgd_update(param, grad, old_buf, **options)
            if old_buf is None and group["momentum"] != 0:
                self.state[param]["momentum_buffer"] = buf
                if group["dampening"] != 0:
                    self._note_whether_blank(param, grad, group["lr"])

    def _collect(self, group: dict[str, Any]) -> list[Update]:
        """What is to be updated: every parameter that has a gradient.

        All buffers are looked up before the first update, as in torch: a parameter
        listed twice finds no buffer twice.
        """
        updates: list[Update] = []
        has_decay, has_momentum = group["weight_decay"] != 0, group["momentum"] != 0
        for i, param in enumerate(group["params"]):
            grad = param.grad
            if grad is None:
                continue
            if has_decay and grad.is_sparse:
                raise RuntimeError(
                    f"parameter {i} has a sparse gradient: weight decay would make it "
                    "dense; put the parameter into a group with weight_decay=0"
                )
            buf = None
            # Without momentum the state stays untouched: a look-up would create it.
            if has_momentum and not (self._blank and param in self._blank):
                buf = self.state[param].get("momentum_buffer")
            updates.append((param, grad, buf))
        return updates

    def _note_whether_blank(self, param: Tensor, grad: Tensor, lr: Any) -> None:
        """torch.distributed.checkpoint fills an empty state by a step with zero
        gradients and lr = 0. A buffer that this makes counts as absent, so that the
        first real gradient is not dampened.
        """
        self._blank.discard(param)
        # torch.compile would break its graph here, for every parameter anew.
        if not torch.compiler.is_compiling() and lr == 0 and not grad.any():
            self._blank.add(param)

    def _vectors(self) -> list[ParameterVector]:
        params = [param for group in self.param_groups for param in group["params"]]
        return [param.vector for param in params if type(param) is Theta]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients.

        That of a `ParameterVector` is set to zero in place, never to None: the module's
        own gradients are views of it.
        """
        vectors = self._vectors()
        for vector in vectors:
            vector.zero_grad()
        if len(vectors) < sum(len(group["params"]) for group in self.param_groups):
            _as_written(Optimizer.zero_grad)(self, set_to_none and not vectors)

    def state_dict(self) -> dict[str, Any]:
        """Momentum buffers and options, in torch's form."""
        return _as_written(Optimizer.state_dict)(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of this or torch's SGD; the state is copied.

        Raises ValueError, and changes nothing, where groups or shapes do not match.
        """
        before = self.__getstate__()
        copies = {
            key: {name: _copied(value) for name, value in state.items()}
            for key, state in state_dict["state"].items()
        }
        state_dict = state_dict | {"state": copies}
        _as_written(Optimizer.load_state_dict)(self, state_dict)
        for g, group in enumerate(self.param_groups):
            for i, param in enumerate(group["params"]):
                buf = self.state.get(param, {}).get("momentum_buffer")
                if buf is not None and buf.shape != param.shape:
                    self.__setstate__(before)
                    raise ValueError(
                        f"momentum_buffer of parameter {i} in group {g} has shape "
                        f"{tuple(buf.shape)}, the parameter {tuple(param.shape)}: the "
                        "state dict belongs to another model"
                    )

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_blank": self._blank}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._blank = set()  # unless the state is a copy's, which brings its own
        super().__setstate__(state)
        for group in self.param_groups:  # of a checkpoint older than these options
            group.setdefault("nesterov", False)
            group.setdefault("maximize", False)
            group.setdefault("foreach", None)
            group.setdefault("differentiable", False)
            group.setdefault("fused", False)
        self._separate_lrs()


_RULE_OPTIONS = (
    "momentum",
    "dampening",
    "weight_decay",
    "nesterov",
    "maximize",
)


def _as_written(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of torch's Optimizer without the guard that torch.compile may need.

    The guard imports torch._dynamo when it is first passed, which takes longer than
    training a small network. Whatever compiles has imported it before.
    """
    if "torch._dynamo" in sys.modules:
        return method
    return getattr(method, "__wrapped__", method)


def _check_options(options: dict[str, Any]) -> None:
    lr = options["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr has shape {tuple(lr.shape)}: a tensor lr has one element")
    for name in ("lr", "momentum", "weight_decay"):
        value = options[name]
        number = value.detach() if isinstance(value, Tensor) else value
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} = {value}: must be finite and not negative")
    momentum, dampening = options["momentum"], options["dampening"]
    if options["nesterov"] and (momentum <= 0 or dampening != 0):
        raise ValueError(
            "nesterov needs momentum > 0 and dampening = 0, "
            f"got momentum = {momentum}, dampening = {dampening}"
        )


def _as_scalar(value: float | Tensor) -> float | Tensor:
    return value.squeeze() if isinstance(value, Tensor) and value.dim() else value


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
