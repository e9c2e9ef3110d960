"""Stochastic gradient descent: the update rule, and the bookkeeping around it."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from minitrain import _torch
from minitrain.blocks import Update, apply_grouped
from minitrain.rule import check_options
from minitrain.sgd_state import buffer_of, check_shapes, copied, fitted
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
    """Walk one step against the gradient, in place.

    theta <- theta - lr * grad L(theta), and with every option, line by line:

        g <- -g                                      if maximize
        g <- g + weight_decay * theta
        b <- momentum * b + (1 - dampening) * g      b <- g where there is no buffer yet
        g <- g + momentum * b if nesterov else b     only with momentum
        theta <- theta - lr * g

    >>> theta = torch.tensor([3.0, 4.0])
    >>> _ = sgd_update(theta, grad=2 * theta, buf=None, lr=0.1)
    >>> theta
    tensor([2.4000, 3.2000])

    Args:
        param: theta, of any shape.
        grad: g, the gradient, of the same shape. It is never written to.
        buf: b, the momentum buffer, of the same shape; None where there is none yet.
        lr, weight_decay: Numbers, or tensors with one element.
        momentum, dampening, nesterov, maximize: See the lines above.

    Returns:
        The momentum buffer, or without momentum what was given.

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


class SGD(Optimizer):
    """Stochastic gradient descent on a list of parameters, or on a `ParameterVector`.

    `sgd_update` states the rule. Arguments, state and `state_dict` are those of
    `torch.optim.SGD`, and so are the results, to the last bit, with `foreach=False`.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = SGD(ParameterVector(model), lr=0.1, momentum=0.9)
    >>> model(torch.ones(2)).sum().backward()
    >>> optimizer.step()

    Where torch's SGD errs this one does not: a gradient is never written to; a loaded
    state is copied, and refused where a buffer has the wrong shape; a tensor lr is not
    shared by several groups; in differentiable mode the first momentum buffer keeps its
    gradient; and the options of every group are checked.

    Args:
        params: Parameters, groups of them, or a `ParameterVector`.
        lr, momentum, dampening, weight_decay, nesterov, maximize: See `sgd_update`.
        foreach: False applies the rule to one tensor after the other. Otherwise, on the
            CPU, small tensors are updated together and large ones part by part, which
            is faster and changes no bit.
        differentiable: Whether gradients flow through the update.
        fused: True asks for one pass over memory: on the CPU by torch's fused kernel,
            which rounds in other places. With
            m = momentum |b| + |1 - dampening| |g| + weight_decay |theta| a step differs
            by at most 4 eps m in b and 4 eps (|theta| + 2 lr (m + |g|)) in theta, where
            eps is the dtype's, 1.2e-7 in float32.

    Raises:
        ValueError: An option is impossible, see `minitrain.rule.check_options`.
        RuntimeError: fused is combined with foreach or differentiable.

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
        _check(defaults)
        self._blank: set[Tensor] = set()
        """Parameters whose buffer exists but has seen no gradient yet."""
        super().__init__(params, defaults)
        if fused and differentiable:
            raise RuntimeError("fused=True does not support differentiable=True")
        if fused and foreach:
            raise RuntimeError("fused=True and foreach=True exclude each other")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; the others are the defaults."""
        if isinstance(param_group, dict):
            _check(self.defaults | param_group)
        _torch.without_guard(Optimizer.add_param_group)(self, param_group)
        self._separate_lrs()

    def _separate_lrs(self) -> None:
        """Schedulers fill a tensor lr in place: shared, the last group would win."""
        lrs = [id(group["lr"]) for group in self.param_groups]
        for i, group in enumerate(self.param_groups):
            if isinstance(group["lr"], Tensor) and id(group["lr"]) in lrs[:i]:
                group["lr"] = group["lr"].clone()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients anew, before the update.

        Returns:
            What the closure returns.

        Raises:
            RuntimeError: Weight decay meets a sparse gradient, or a `ParameterVector`
                was cut off from its module. Nothing has changed.
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

    profile_hook_step = staticmethod(_torch.call_hooks_if_any)

    def _apply(self, group: dict[str, Any], updates: list[Update]) -> None:
        options = {name: group[name] for name in _RULE_OPTIONS}
        lr = group["lr"]
        options["lr"] = lr.squeeze() if isinstance(lr, Tensor) and lr.dim() else lr
        for param, grad, old_buf in apply_grouped(sgd_update, updates, options, group):
            buf = sgd_update(param, grad, old_buf, **options)
            if old_buf is None and group["momentum"] != 0:
                self.state[param]["momentum_buffer"] = buf
                if group["dampening"] != 0:
                    self._note_whether_blank(param, grad, group["lr"])

    def _collect(self, group: dict[str, Any]) -> list[Update]:
        """Find what is to be updated: every parameter that has a gradient.

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
                    f"parameter {i} has a sparse gradient, which weight decay would "
                    "make dense: put it into a group with weight_decay=0"
                )
            buf = None
            # Without momentum the state stays untouched: a look-up would create it.
            if has_momentum and not (self._blank and param in self._blank):
                buf = self.state[param].get("momentum_buffer")
            updates.append((param, grad, buf))
        return updates

    def _note_whether_blank(self, param: Tensor, grad: Tensor, lr: Any) -> None:
        """Count a buffer as absent that a step with lr = 0 made of a zero gradient.

        torch.distributed.checkpoint fills an empty state by such a step, and the first
        real gradient must not be dampened.
        """
        self._blank.discard(param)
        # torch.compile would break its graph here, for every parameter anew.
        if not torch.compiler.is_compiling() and lr == 0 and not grad.any():
            self._blank.add(param)

    def _vectors(self) -> list[ParameterVector]:
        params = [param for group in self.param_groups for param in group["params"]]
        return [param.vector for param in params if type(param) is Theta]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients; that of a `ParameterVector` is set to zero in place.

        It is never None: the module's own gradients are views of it.
        """
        vectors = self._vectors()
        for vector in vectors:
            vector.zero_grad()
        if len(vectors) < sum(len(group["params"]) for group in self.param_groups):
            _torch.without_guard(Optimizer.zero_grad)(self, set_to_none and not vectors)

    def state_dict(self) -> dict[str, Any]:
        """Return momentum buffers and options, in torch's form."""
        return _torch.without_guard(Optimizer.state_dict)(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of this or torch's SGD; the state is copied.

        That of a list fits the `ParameterVector` of the same parameters, and back.

        Raises:
            ValueError: Groups or shapes do not match. Nothing has changed.
        """
        before = self.__getstate__()
        state_dict = fitted(state_dict, self.param_groups)
        _torch.without_guard(Optimizer.load_state_dict)(self, state_dict)
        try:
            for g, group in enumerate(self.param_groups):
                params = group["params"]
                bufs = [buffer_of(self.state.get(param)) for param in params]
                check_shapes(bufs, params, g)
        except ValueError:
            self.__setstate__(before)
            raise

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_blank": self._blank}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._blank = set()  # unless the state is a copy's, which brings its own
        super().__setstate__(state)
        for group in self.param_groups:  # of a checkpoint older than these options
            for name in ("nesterov", "maximize", "differentiable", "fused"):
                group.setdefault(name, False)
            group.setdefault("foreach", None)
        self._separate_lrs()


_RULE_OPTIONS = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")


def _check(options: dict[str, Any]) -> None:
    lr = options["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr has shape {tuple(lr.shape)}: it must have one element")
    check_options(copied(options))
