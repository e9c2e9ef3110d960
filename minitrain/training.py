"""The loop: one step of training after another, for the caller to watch and to stop.

After the backward pass of a step the parameters' gradients are the gradient of the
mean loss L of its batch, as `minitrain.gradient` defines it: with the parameters as one
vector, `theta.grad` is `gradient(L)(theta)`. The step walks against it.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minitrain.checks import (
    check_dependence,
    check_loss,
    check_training,
    warn_if_unused,
    warn_of_evaluation_mode,
)
from minitrain.data_parallel import shards_of
from minitrain.epochs import Batch, Epochs, size_of
from minitrain.lr_groups import keep_lr_ratios, set_lrs
from minitrain.norms import clip_factor, grad_norms, norm
from minitrain.samples import move
from minitrain.shards import Shards
from minitrain.watcher import UNWATCHED, Watcher
from minitrain.windows import Window, windows_of

LossFunction = Callable[[Any, Any], Tensor]
"""loss(outputs, targets), the mean over the samples of a batch: a 0-d tensor."""


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
    """Their mean loss, before the update. Of a model under `DistributedDataParallel` or
    `fully_shard` it is the mean over the processes, as the gradient is."""
    grad_norm: float
    """|grad L| over all parameters together, before clipping."""
    grad_norms: dict[str, float] | None
    """The same of each trainable parameter, by its name in `model.named_parameters()`;
    None where the step was not measured."""
    lr: float
    """Learning rate of the update."""
    readings: Mapping[str, float]
    """What a watcher read of it: tags and values."""


class NotFiniteError(ArithmeticError):
    """Loss or gradient of a step is infinite or NaN, and its update was not made."""

    def __init__(
        self,
        step: int,
        loss: float,
        grad_norm: float,
        parameter: str,
        lr: float,
        batches: Sequence[Batch] = (),
    ) -> None:
        self.step = step
        """The step, from 1, that was not made: the parameters are those before it."""
        self.loss = loss
        self.grad_norm = grad_norm
        self.lr = lr
        self.parameter = parameter
        """The first whose gradient is not finite; empty where only the loss is not."""
        self.batches = batches
        """Those of the step, to look for samples that are not finite themselves."""
        where = "in the norm of the gradient, which overflows"
        if not math.isfinite(loss):
            where = "in the loss alone"
        if parameter:
            where = f"first in the gradient of {parameter}"
        super().__init__(
            f"step {step} is not finite, {where}: loss {loss:.4g}, "
            f"|grad L| {grad_norm:.4g}, lr {lr:.4g}"
        )


@warn_if_unused
def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Epochs | Iterable[Batch],
    loss_fn: LossFunction,
    *,
    epochs: int = 1,
    lr: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    measure_every: int = 1,
    start: int = 0,
    watcher: Watcher | None = None,
    shards: Shards | None = None,
) -> Iterator[Step]:
    """Train the model, one update at a time: theta <- theta - lr * grad L(theta).

    Until the next step is asked for, the gradients of this one can be read from the
    parameters. Logging, evaluation or an early `break` are up to the caller's `for`.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> x, y = torch.ones(1, 1), torch.zeros(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> for step in train(model, optimizer, [(x, y)], nn.functional.mse_loss):
    ...     print(step.number, step.num_samples, model.weight.item())
    1 1 0.0

    Args:
        model: Any module: `model(inputs)` are the outputs. It is put in training mode,
            and batches are moved to the device of its parameters.
        optimizer: Updates the parameters, or some of them.
        batches: `Batches`, `DatasetBatches`, or anything that can be iterated once per
            epoch for pairs (inputs, targets), such as a DataLoader. Each of the two is
            a tensor or a nested tuple, list or dictionary of tensors; targets may be
            None.
        loss_fn: `loss_fn(outputs, targets)` is the mean loss over a batch.
        epochs: Passes over the data.
        lr: The learning rate of the first group as a function of the number of
            completed updates; those of other groups stay in proportion to it, by an
            `lr_ratio` in each. By default the optimizer keeps its own.
        clip_norm: g <- g * min(1, clip_norm / (|g| + 1e-6)), see `clip_factor`.
        accumulate: Batches per update. Their gradients are averaged by their numbers of
            samples, so that an update equals that of one large batch, also where the
            last ones of an epoch are fewer or smaller.
        autocast: Dtype of the forward pass, such as torch.bfloat16.
        measure_every: Steps between two with `grad_norms`; the first and the last step
            have them.
        start: Completed updates of a run that is continued: those are passed over. The
            batches must be of a kind whose order is known; model, optimizer and random
            states are the caller's to restore.
        watcher: Watches every step, as a `Panel` does; its readings are in the steps.
        shards: Slices of each batch, which processes may share; by default one.

    Yields:
        A `Step` after every update.

    Raises:
        NotFiniteError: Loss or gradient is infinite or NaN; the update was not made.
        ValueError: An epoch yields no batch, a batch or loss has another form, or an
            argument is out of range.
        TypeError: An argument is of the wrong kind, such as a number for `lr`.
    """
    check_training(
        model,
        optimizer,
        batches,
        lr=lr,
        clip_norm=clip_norm,
        start=start,
        epochs=epochs,
        accumulate=accumulate,
        measure_every=measure_every,
    )
    watcher = watcher or UNWATCHED
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(model.parameters()).device
    if lr is not None:
        keep_lr_ratios(optimizer, start)
    model.train()
    is_warned = False
    pass_of = (model, loss_fn, device)
    mean_loss = functools.partial(_mean_loss, *pass_of)
    backward = functools.partial(_backward, *pass_of, autocast)
    shards = shards or shards_of(model)
    per_step = accumulate * len(shards.own)
    for window in windows_of(shards.cut(batches), epochs, per_step, start):
        number, is_last = window.number, window.is_last
        if lr is not None:
            set_lrs(optimizer, lr(number - 1))
        loss_of = functools.partial(shards.loss, window, model, mean_loss)
        watching = watcher.step(number, loss_of, is_last=is_last, autocast=autocast)
        with watching as watch:
            optimizer.zero_grad()
            loss, num_samples = shards.backward(
                window, model, optimizer, backward, watch
            )
            grads = _grads_of(optimizer)
            check_dependence(bool(grads))
            total = norm(grads)
            values = [loss.reshape(1), total.reshape(1)]
            if number == 1 or number % measure_every == 0 or is_last:
                values.append(grad_norms(trainable.values()))
            # The step's only wait for the device, where it does not clip.
            loss_value, norm_value, *each = torch.cat(values).tolist()
            if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
                found = loss_value, norm_value, _first_not_finite(trainable)
                lr_value = _lr_of(optimizer)
                raise NotFiniteError(number, *found, lr_value, window.batches)
            factor = None
            if clip_norm is not None:
                factor = _clip(grads, clip_factor(total, clip_norm))
            watch.before_update(loss_value, num_samples, factor)
            optimizer.step()
        yield Step(
            number=number,
            epoch=window.epoch,
            ends_epoch=window.ends_epoch,
            num_samples=num_samples,
            loss=loss_value,
            grad_norm=norm_value,
            grad_norms=dict(zip(trainable, each, strict=True)) if each else None,
            lr=_lr_of(optimizer),
            readings=watch.readings,
        )
        if not (model.training or is_last or is_warned):
            warn_of_evaluation_mode()
            is_warned = True


def _backward(
    model: nn.Module,
    loss_fn: LossFunction,
    device: torch.device,
    autocast: torch.dtype | None,
    window: Window,
) -> Tensor:
    """Add the gradient of the mean loss over a window of batches; return that loss."""
    losses = []
    for loss in _shares(model, loss_fn, device, autocast, window):
        check_dependence(loss.requires_grad)
        loss.backward()
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _mean_loss(
    model: nn.Module, loss_fn: LossFunction, device: torch.device, window: Window
) -> Tensor:
    """Return the mean loss over all samples of a window of batches."""
    return torch.stack(list(_shares(model, loss_fn, device, None, window))).sum()


def _shares(
    model: nn.Module,
    loss_fn: LossFunction,
    device: torch.device,
    autocast: torch.dtype | None,
    window: Window,
) -> Iterator[Tensor]:
    """Yield what each batch adds to the mean loss: L = sum_i (n_i / n) L_i.

    n_i are its samples, n those of all batches of the window.
    """
    for batch in window.batches:
        inputs, targets = (move(samples, device) for samples in batch)
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            loss = loss_fn(model(inputs), targets)
        check_loss(loss)
        if len(window.batches) > 1:
            loss = loss * (size_of(batch) / window.num_samples)
        yield loss


def _grads_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    params = (p for group in optimizer.param_groups for p in group["params"])
    return [p.grad for p in params if p.grad is not None]


def _clip(grads: Iterable[Tensor], factor: Tensor) -> float:
    """Multiply the gradient by a factor in place; return it."""
    number = float(factor)
    if number < 1:
        for grad in grads:
            grad.mul_(factor)
    return number


def _first_not_finite(parameters: Mapping[str, Tensor]) -> str:
    for name, p in parameters.items():
        if p.grad is not None and not p.grad.isfinite().all():
            return name
    return ""


def _lr_of(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])
