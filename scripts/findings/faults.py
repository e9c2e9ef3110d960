"""What is planted: faults, each with what should be found, and healthy settings."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from findings.problems import PROBLEMS, Problem, Transformer, images, softmax
from findings.trial import Trial
from torch import Tensor, nn

from minitrain.schedules import SCHEDULES

IMAGES, LAYERED = ("mlp", "cnn"), ("mlp", "cnn", "spirals", "sine")
CLASSES = ("mlp", "cnn", "spirals")
RELU = CLASSES
ALL = tuple(PROBLEMS)


@dataclass(frozen=True)
class Fault:
    """What is planted into the runs of some problems."""

    kinds: tuple[str, ...]
    """What should be found: any of these names the cause."""
    problems: tuple[str, ...]
    change: dict[str, Any]


class Detached(nn.Module):
    """Cuts off the gradient, as .detach() in a forward pass does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Doubled(nn.Module):
    """Has a backward pass that doubles the gradient, and a forward pass that does not.

    2 x - x.detach() is x, with the derivative 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - x.detach()


class Mixed(nn.Module):
    """Normalizes over the samples of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * len(x) * x.softmax(dim=0)


def insert(module: nn.Module, model: nn.Module) -> None:
    """Put a module behind the first activation."""
    assert isinstance(model, nn.Sequential)
    kinds = nn.ReLU, nn.Tanh
    place = next(i for i, m in enumerate(model) if isinstance(m, kinds))
    model.insert(place + 1, module)


def append(module: nn.Module, model: nn.Module) -> None:
    """Put a module behind the last layer."""
    if isinstance(model, nn.Sequential):
        model.append(module)
    else:
        assert isinstance(model, Transformer)
        model.end = module


def add_sigmoid_layers(model: nn.Module) -> None:
    """Put eight more sigmoid layers before the last layer."""
    assert isinstance(model, nn.Sequential)
    last = model[-1]
    assert isinstance(last, nn.Linear)
    width = last.in_features
    for _ in range(8):
        for module in (nn.Sigmoid(), nn.Linear(width, width)):
            model.insert(len(model) - 1, module)


@torch.no_grad()
def scale(factor: float, model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(factor)


@torch.no_grad()
def lower_biases(model: nn.Module) -> None:
    next(p for p in model.parameters() if p.dim() == 1).fill_(-100)


def shuffle(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y[torch.randperm(len(y))]


def shift(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y.roll(1, dims=0)


def unnormalize(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return 78.6 * x + 33.3, y


def move_targets(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y + 100


def sort(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    order = y.flatten().argsort()
    return x[order], y[order]


def zero_half(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    is_lost = torch.rand(len(x)) < 0.5
    return torch.where(is_lost.view(-1, *[1] * (x.dim() - 1)), 0, x), y


def spoil_class(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, torch.where(y == 3, torch.randint_like(y, 10), y)


def put_nan(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone()
    x[len(x) // 2].flatten()[0] = torch.nan
    return x, y


def repeat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    chosen = torch.arange(len(x)) % (len(x) // 4)
    return x[chosen], y[chosen]


def drop_classes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    kept = (y == 1) | (torch.rand(len(y)) < 0.02)
    chosen = kept.nonzero().flatten()
    chosen = chosen[torch.arange(len(y)) % len(chosen)]
    return x[chosen] + 1e-3 * torch.randn_like(x), y[chosen]


def sum_up(loss_fn: Any) -> Any:
    return lambda outputs, targets: loss_fn(outputs, targets) * len(targets)


def only_at_first(step: int, num_steps: int) -> float:
    return 1.0 if step < 0.03 * num_steps else 0.0


def model(change: Callable[..., object], *args: Any) -> dict[str, Any]:
    return {"spoil_model": functools.partial(change, *args)}


FAULTS: dict[str, Fault] = {
    "learning rate x 60": Fault(("learning rate too large",), ALL, {"lr_times": 60.0}),
    "learning rate / 1000": Fault(
        ("learning rate too small",), ALL, {"lr_times": 1e-3}
    ),
    "a schedule of 0 from the start": Fault(
        ("learning rate too small",), ALL, {"schedule": only_at_first}
    ),
    "momentum 0.999": Fault(
        ("momentum too large",), ALL, {"optimizer": {"momentum": 0.999}}
    ),
    "weight decay 0.5": Fault(
        ("weight decay too large",), ALL, {"optimizer": {"weight_decay": 0.5}}
    ),
    "clipped to 0.0001": Fault(
        ("gradient clipped to almost nothing",), ALL, {"clip_norm": 1e-4}
    ),
    "eight sigmoid layers": Fault(
        ("vanishing gradient",), LAYERED, model(add_sigmoid_layers)
    ),
    "weights x 10": Fault(("exploding gradient",), LAYERED, model(scale, 10.0)),
    "biases of -100": Fault(("dead units",), RELU, model(lower_biases)),
    "weights of zero": Fault(("dead units",), LAYERED, model(scale, 0.0)),
    "a detached block": Fault(
        ("block without gradient",), LAYERED, model(insert, Detached())
    ),
    "a wrong backward pass": Fault(
        ("wrong gradient",), LAYERED, model(insert, Doubled())
    ),
    "a gradient still scaled": Fault(
        ("wrong gradient",), ALL, {"in_own_loop": True, "loss_scale": 65536.0}
    ),
    "a forgotten zero_grad": Fault(
        ("gradient not reset",), ALL, {"forgets_zero_grad": True}
    ),
    "the same in a stranger's loop": Fault(
        ("gradient not reset",), ALL, {"forgets_zero_grad": True, "in_own_loop": True}
    ),
    "batches of 2": Fault(
        ("batch too small",), IMAGES, {"batch_size": 2, "optimizer": {"lr": 0.001}}
    ),
    "batches of 8192": Fault(
        ("batch too large",),
        IMAGES,
        {"batch_size": 8192, "num_samples": 49_152, "epochs": 3},
    ),
    "300 samples": Fault(("overfitting",), IMAGES, {"num_samples": 300, "epochs": 120}),
    "loss summed": Fault(("loss is a sum",), ALL, {"spoil_loss": sum_up}),
    "softmax twice": Fault(
        ("probabilities instead of logits",),
        (*CLASSES, "language"),
        model(append, nn.Softmax(dim=-1)),
    ),
    "softmax over the batch": Fault(
        ("samples depend on each other",), LAYERED, model(insert, Mixed())
    ),
    "shuffled targets": Fault(("labels without signal",), ALL, {"spoil_data": shuffle}),
    "targets shifted by one": Fault(
        ("labels shifted",), LAYERED, {"spoil_data": shift}
    ),
    "one class with random labels": Fault(
        ("labels of a class contradicted", "class not learned"),
        IMAGES,
        {"spoil_data": spoil_class},
    ),
    "the same without a preflight": Fault(
        ("class not learned",),
        IMAGES,
        {"spoil_data": spoil_class, "looks_first": False},
    ),
    "one class in most samples": Fault(
        ("classes out of balance",), CLASSES, {"spoil_data": drop_classes}
    ),
    "sorted and not shuffled": Fault(
        ("samples in order",), LAYERED, {"spoil_data": sort, "is_shuffled": False}
    ),
    "the same in a loop without a preflight": Fault(
        ("samples in order",),
        CLASSES,
        {
            "spoil_data": sort,
            "is_shuffled": False,
            "num_samples": 6400,
            "in_own_loop": True,
            "looks_first": False,
            "schedule": SCHEDULES["constant"],
        },
    ),
    "every sample four times": Fault(
        ("repeated samples",), LAYERED, {"spoil_data": repeat}
    ),
    "half of the inputs zero": Fault(
        ("constant samples",), LAYERED, {"spoil_data": zero_half}
    ),
    "inputs from 0 to 255": Fault(
        ("inputs not normalized",), LAYERED, {"spoil_data": unnormalize}
    ),
    "targets moved by 100": Fault(
        ("targets not normalized",), ("sine",), {"spoil_data": move_targets}
    ),
    "NaN in one sample": Fault(
        ("samples not finite",), LAYERED, {"spoil_data": put_nan}
    ),
}


def healthy_trials() -> dict[str, Trial]:
    """Return the settings of runs in which nothing should be found."""
    trials = {}
    for name, problem in PROBLEMS.items():
        # Without momentum the steps are a tenth as long in the end.
        for lr, momentum in ((0.4, 0.9), (1, 0.9), (2, 0.9), (2, 0), (4, 0)):
            options = {"momentum": momentum}
            trials[f"{name}, lr x {lr}, momentum {momentum}"] = Trial(
                problem, optimizer=options, lr_times=lr
            )
        usual = Trial(problem)
        for schedule in ("constant", "step", "cosine"):
            change = {"schedule": SCHEDULES[schedule]}
            trials[f"{name}, {schedule}"] = replace(usual, **change)
        sizes = problem.batch_size // 2, 2 * problem.batch_size
        for size in sizes:
            trials[f"{name}, batch {size}"] = replace(usual, batch_size=size)
        trials[f"{name}, clipped"] = replace(usual, clip_norm=1.0)
        trials[f"{name}, bfloat16"] = replace(usual, autocast=torch.bfloat16)
        trials[f"{name}, own loop"] = replace(usual, in_own_loop=True)
    for name in IMAGES:
        digits = replace(PROBLEMS[name], data=functools.partial(images, "digits"))
        trials[f"{name}, digits"] = Trial(digits)
    linear: Problem = replace(PROBLEMS["mlp"], model=softmax)
    return trials | {"softmax": Trial(linear)}
