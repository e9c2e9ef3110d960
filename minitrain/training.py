"""The loop: one step of training after another, for the caller to watch and to stop."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minitrain.data import Batches
from minitrain.errors import NotFiniteError
from minitrain.instruments import grad_norm, grad_norms
from minitrain.panel import Panel, Readings, Watch

Batch = tuple[Tensor, Tensor]
LossFunction = Callable[[Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """What one update did, in plain numbers."""

    number: int
    """Completed updates, this one included."""
    epoch: int
    """The pass over the data that it belongs to, from 1."""
    ends_epoch: bool
    """Whether it was the last of that pass."""
    num_samples: int
    """Samples whose losses were averaged."""
    loss: float
    """Their mean loss, before the update."""
    grad_norm: float
    """|grad L| over all parameters together, before clipping."""
    grad_norms: list[float] | None
    """The same for each parameter, in the order of `model.named_parameters()` without
    frozen ones; None where the step was not measured."""
    lr: float
    """Learning rate of the update."""
    readings: Readings
    """What a panel read of it, tags and values."""


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches | Iterable[Batch],
    loss_fn: LossFunction,
    *,
    epochs: int = 1,
    lr: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    measure_every: int = 1,
    start: int = 0,
    panel: Panel | None = None,
) -> Iterator[Step]:
    """Train the model, one update at a time: theta <- theta - lr * grad L(theta).

    Yields a `Step` after every update; what to do about it (logging, evaluation, an
    early `break`) is up to the caller's `for`. Until the next step is asked for, the
    gradients of this one can be read from the parameters.

    `batches` are `Batches` of resident tensors or anything that can be iterated once
    per epoch for pairs (inputs, targets), such as a DataLoader; they are moved to the
    model's device. `loss_fn(outputs, targets)` is the mean loss over a batch.

    lr            the learning rate as a function of the number of completed updates; by
                  default the optimizer keeps its own.
    clip_norm     g <- g * min(1, clip_norm / |g|).
    accumulate    batches per update: their gradients are averaged by their numbers of
                  samples, so that an update equals that of one large batch, also where
                  the last ones of an epoch are fewer or smaller.
    autocast      dtype of the forward pass, such as torch.bfloat16.
    measure_every steps between two with `grad_norms`; the first and the last have them.

    start         completed updates of a run that is continued: those are passed over.
    panel         watches every step; its readings are in the steps.

    Loss and gradient are checked before every update. Raises NotFiniteError where one
    is infinite or NaN, with the parameters as they were before that step, and
    ValueError where an epoch yields no batch or an argument is out of range.
    """
    for name, value in {
        "epochs": epochs,
        "accumulate": accumulate,
        "measure_every": measure_every,
    }.items():
        if value < 1:
            raise ValueError(f"{name} = {value}: must be at least 1")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm = {clip_norm}: must be positive")
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = _device_of(model)
    model.train()
    number = 0
    for epoch in range(1, epochs + 1):
        before_epoch = number
        for window, ends_epoch in _windows(_epoch_of(batches, epoch), accumulate):
            if number < start:
                number += 1
                continue
            if lr is not None:
                _set_lr(optimizer, lr(number))
            number += 1
            is_last = ends_epoch and epoch == epochs
            batch = (model, window, loss_fn, device)
            watching = nullcontext(Watch())
            is_watched = panel is not None and panel.is_due(number, is_last)
            if panel is not None and is_watched:
                loss_of = functools.partial(_mean_loss, *batch)
                watching = panel.watch(
                    number, loss_of, is_last=is_last, autocast=autocast
                )
            with watching as watch:
                watch.num_samples = sum(len(targets) for _, targets in window)
                optimizer.zero_grad()
                loss = watch.loss = _backward(*batch, autocast)

                optimized = [p for g in optimizer.param_groups for p in g["params"]]
                norm = grad_norm([p.grad for p in optimized if p.grad is not None])
                values = [loss.reshape(1), norm.reshape(1)]
                is_measured = number == 1 or number % measure_every == 0 or is_last
                if is_measured:
                    values.append(grad_norms(parameters))
                # The step's only wait for the device.
                loss_value, norm_value, *norm_values = torch.cat(values).tolist()
                if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
                    raise NotFiniteError(
                        _not_finite(model, optimizer, number, loss_value, norm_value)
                    )
                if clip_norm is not None:
                    watch.clip_factor = min(1.0, clip_norm / (norm_value + 1e-6))
                    nn.utils.clip_grads_with_norm_(optimized, clip_norm, norm)

                optimizer.step()
            if panel is not None and not is_watched and watch.clip_factor is not None:
                panel.pass_over(watch.clip_factor)
            yield Step(
                number=number,
                epoch=epoch,
                ends_epoch=ends_epoch,
                num_samples=watch.num_samples,
                loss=loss_value,
                grad_norm=norm_value,
                grad_norms=norm_values if is_measured else None,
                lr=float(optimizer.param_groups[0]["lr"]),
                readings=watch.readings,
            )
        if number == before_epoch:
            raise ValueError(f"epoch {epoch} yielded no batch to train on")


class Evaluation(NamedTuple):
    """How good the predictions are: the mean loss, and the share that is right."""

    loss: float
    accuracy: float
    """In [0, 1]; NaN where the targets are no class numbers."""


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Batches | Iterable[Batch], loss_fn: LossFunction
) -> Evaluation:
    """Mean loss and accuracy over all samples, in evaluation mode, without gradients.

    Leaves the model as it was, each module in its own mode.

    Raises ValueError where there is no batch.
    """
    device = _device_of(model)
    losses, rights, num_samples = [], [], 0
    with evaluating(model):
        for inputs, targets in _epoch_of(batches, 0):
            inputs, targets = inputs.to(device), targets.to(device)
            outputs = model(inputs)
            num_samples += len(targets)
            losses.append(loss_fn(outputs, targets).double() * len(targets))
            if not targets.is_floating_point():
                rights.append((outputs.argmax(dim=1) == targets).sum())
    if not losses:
        raise ValueError("there is no batch to evaluate on")
    loss = torch.stack(losses).sum().item() / num_samples
    right = torch.stack(rights).sum().item() if rights else math.nan
    return Evaluation(loss, right / num_samples)


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, batch_size: int = 1000) -> Tensor:
    """The outputs for resident inputs, in evaluation mode and without gradients."""
    with evaluating(model):
        return torch.cat([model(batch) for batch in inputs.split(batch_size)])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The whole model in evaluation mode; afterwards each module in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _backward(
    model: nn.Module,
    window: Sequence[Batch],
    loss_fn: LossFunction,
    device: torch.device,
    autocast: torch.dtype | None,
) -> Tensor:
    """Add the gradient of the mean loss over a window of batches; returns that loss."""
    losses = []
    for loss in _shares(model, window, loss_fn, device, autocast):
        loss.backward()
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _mean_loss(
    model: nn.Module,
    window: Sequence[Batch],
    loss_fn: LossFunction,
    device: torch.device,
) -> Tensor:
    """The mean loss over all samples of a window of batches."""
    return torch.stack(list(_shares(model, window, loss_fn, device, None))).sum()


def _shares(
    model: nn.Module,
    window: Sequence[Batch],
    loss_fn: LossFunction,
    device: torch.device,
    autocast: torch.dtype | None,
) -> Iterator[Tensor]:
    """What each batch adds to the mean loss: L = sum_i (n_i / n) L_i.

    n_i are its samples, n those of all batches of the window.
    """
    num_samples = sum(len(targets) for _, targets in window)
    for inputs, targets in window:
        inputs, targets = inputs.to(device), targets.to(device)
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            loss = loss_fn(model(inputs), targets)
        if len(window) > 1:
            loss = loss * (len(targets) / num_samples)
        yield loss


def _not_finite(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    number: int,
    loss: float,
    norm: float,
) -> str:
    """What is known of a step whose loss or gradient is infinite or NaN."""
    bad = [
        name
        for name, p in model.named_parameters()
        if p.grad is not None and not p.grad.isfinite().all()
    ]
    where = f"first in the gradient of {bad[0]}" if bad else "in the loss alone"
    return (
        f"step {number} is not finite, {where}: loss {loss:.4g}, |grad L| {norm:.4g}, "
        f"lr {float(optimizer.param_groups[0]['lr']):.4g}.\n"
        f"The update was not made: the parameters are those after step {number - 1}.\n"
        "A smaller learning rate, clipping (--clip-norm 1) or a warm-up "
        "(--schedule.warmup 500) may help."
    )


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _epoch_of(batches: Batches | Iterable[Batch], epoch: int) -> Iterable[Batch]:
    return batches.epoch(epoch) if isinstance(batches, Batches) else batches


def _windows(batches: Iterable[Batch], size: int) -> Iterator[tuple[list[Batch], bool]]:
    """Consecutive batches, `size` at a time, each with whether it ends the epoch.

    What knows its length, as a DataLoader does, is read just in time: its random draws
    keep their places among the model's. Anything else is read one window ahead.
    """
    iterator = iter(batches)
    if isinstance(batches, Sized):
        for end in range(size, len(batches) + size, size):
            yield list(itertools.islice(iterator, size)), end >= len(batches)
        return
    window = list(itertools.islice(iterator, size))
    while window:
        upcoming = list(itertools.islice(iterator, size))
        yield window, not upcoming
        window = upcoming


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
