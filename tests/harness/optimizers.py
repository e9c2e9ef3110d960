"""Two optimizers side by side: the options, parameters and gradients to compare them.

"Trap n" is one of the 21 traps of a hand-written SGD.
"""

import copy
import pickle
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.names import named
from minitrain.sgd import SGD

Options = dict[str, Any]
MakeOptimizer = Callable[..., Optimizer]
BeforeStep = Callable[[Optimizer, int], None]

TorchSGD = partial(torch.optim.SGD, foreach=False)

NAMES = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
# Trap 21: with dampening = 0.5, d and 1 - d would look the same.
VALUES = product((0, 0.9), (0, 0.3), (0, 1e-3), (False, True), (False, True))
# The 20 legal ones of 32 combinations; 5 dtypes and 3 kinds of lr make 300 of them.
OPTIONS = [
    options
    for options in (dict(zip(NAMES, values, strict=True)) for values in VALUES)
    if not options["nesterov"] or (options["momentum"] and not options["dampening"])
]
EVERYTHING = {"momentum": 0.9, "dampening": 0.3, "weight_decay": 1e-3, "maximize": True}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)


def one_element_lr(value: float) -> Tensor:
    return torch.tensor([[value]])


# Trap 10: Python's 0.1, or the float32 nearest to it, whatever the parameters' dtype.
LRS = (float, torch.tensor, one_element_lr)


def each(name: str, values: Iterable[Any]) -> pytest.MarkDecorator:
    """parametrize, with readable names: of options, for one, those that are on."""

    def label(value: Any) -> str:
        if isinstance(value, dict):
            return ",".join(f"{k}={v}" for k, v in value.items() if v) or "plain"
        if isinstance(value, type):
            return f"{value.__module__.partition('.')[0]}.{value.__name__}"
        return getattr(value, "__name__", named(value))

    return pytest.mark.parametrize(name, values, ids=label)


# Running two optimizers side by side.


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def snapshot(optimizer: Optimizer) -> dict[str, Tensor]:
    """Everything that a step may write to, by name; a vector, parameter by parameter.

    These are the live tensors: deepcopy them to compare with what comes later.
    """
    tensors: dict[str, Tensor] = {}
    first = 0
    for p in parameters_of(optimizer):
        vector = getattr(p, "vector", None)
        found = {"parameter": p, "gradient": p.grad} | optimizer.state.get(p, {})
        for name, value in found.items():
            if value is not None:
                flat = value.detach().to_dense() if value.is_sparse else value.detach()
                parts = [flat] if vector is None else vector.split(flat)
                tensors |= {f"{name} {first + j}": part for j, part in enumerate(parts)}
        first += 1 if vector is None else len(vector.names)
    return tensors


def unequal(mine: dict[str, Tensor], reference: dict[str, Tensor]) -> list[str]:
    """The names of the tensors that differ by a bit, or that only one side has."""

    def same(name: str) -> bool:
        both = name in mine and name in reference
        return both and torch.equal(mine[name], reference[name])

    return [name for name in sorted(mine | reference) if not same(name)]


def first_difference(
    ours: Optimizer,
    theirs: Optimizer,
    before_step: BeforeStep,
    steps: Iterable[int] = range(1, 51),
) -> str | None:
    """The step after which two optimizers differ, and in what; None if nowhere."""
    for step in steps:
        for optimizer in (ours, theirs):
            before_step(optimizer, step)
            optimizer.step()
        if names := unequal(snapshot(ours), snapshot(theirs)):
            return f"step {step}: {', '.join(names)}"
    return None


def two_groups(
    dtype: torch.dtype = torch.float32,
    options: Options = EVERYTHING,
    make_lr: Callable[[float], Any] = float,
) -> list[dict[str, Any]]:
    """Parameters of every layout in two unlike groups, the same at each call."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    channels_last = draw(2, 3, 2, 2).to(memory_format=torch.channels_last)
    first = [draw(5, 3), draw(), draw(0, 3), draw(4, 3).t()]
    second = [draw(16)[::2], channels_last]
    unlike = {
        "momentum": 0.5,
        "dampening": 0.2,
        "weight_decay": 0,
        "nesterov": False,
        "maximize": not options["maximize"],
    }
    return [
        {"params": [nn.Parameter(x) for x in first], "lr": make_lr(0.1), **options},
        {"params": [nn.Parameter(x) for x in second], "lr": make_lr(0.05), **unlike},
    ]


def twins(make_groups: Callable[[], Any] = two_groups) -> tuple[Optimizer, Optimizer]:
    return SGD(make_groups()), TorchSGD(make_groups())


LATE = 10  # the step in which the second group gets its first gradients


def decay_lr(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.95  # a tensor, in place: it is read at every step (trap 10)


def give_gradients(optimizer: Optimizer, step: int) -> None:
    """Drawn from the step: now and then None (trap 9), else in place (trap 3)."""
    decay_lr(optimizer)
    generator = torch.Generator().manual_seed(step)
    for g, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            if (step + i) % 5 == 0 or (g == 1 and step < LATE):
                p.grad = None
            elif p.grad is None:
                p.grad = grad
            else:
                p.grad.copy_(grad)


def training_twins(
    module: nn.Module,
    draw: Callable[[], Tensor],
    params: Callable[[nn.Module], Any] = nn.Module.parameters,
    **options: Any,
) -> tuple[Optimizer, Optimizer, BeforeStep]:
    """Ours for a module, torch's for its copy, and the backward pass of both.

    The loss is the mean square of the module's output at an input drawn in each step.
    """
    twin = copy.deepcopy(module)
    trainable = [p for p in twin.parameters() if p.requires_grad]
    theirs = TorchSGD(trainable, **copy.deepcopy(options))
    ours = SGD(params(module), **options)
    modules = {ours: module, theirs: twin}

    def backward(optimizer: Optimizer, step: int) -> None:
        decay_lr(optimizer)
        optimizer.zero_grad()
        torch.manual_seed(step)
        modules[optimizer](draw()).square().mean().backward()

    return ours, theirs, backward


def assert_all(tensor: Tensor, value: float) -> None:
    torch.testing.assert_close(tensor.detach(), torch.full_like(tensor, value))


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))
