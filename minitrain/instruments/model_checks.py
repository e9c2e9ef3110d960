"""What a model does with a few samples, before its first step.

Every check is made on a copy of the model, with samples that are all finite.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from minitrain.evaluation import evaluating
from minitrain.instruments import rules
from minitrain.instruments.guessing import loss_of_guessing
from minitrain.instruments.sample_checks import Told
from minitrain.norms import norm
from minitrain.samples import count, part, select, tensors_in

LossFunction = Callable[[Any, Any], Tensor]

NUM_STEPS = 60
"""Steps in which one small batch must be learned."""

ROUNDING = 1e-3
"""The relative difference below which two outputs or losses are taken as equal."""


def check_model(model: nn.Module, loss_fn: LossFunction, batch: Any) -> Iterator[Told]:
    """Look at a copy of a model, which the checks train.

    Args:
        model: The copy.
        loss_fn: `loss_fn(outputs, targets)`.
        batch: Inputs and targets, on the model's device.
    """
    inputs, targets = batch
    if mixed := _check_independence(model, inputs):
        yield mixed
    model.train()
    with torch.no_grad():
        outputs = model(inputs)
        loss = float(loss_fn(outputs, targets))
    if not math.isfinite(loss):
        return  # the first step tells
    told = (
        _check_mean(loss_fn, outputs, targets),
        _check_logits(model, loss_fn, inputs, targets),
        _check_start(loss, loss_fn, outputs, targets),
    )
    yield from (found := [*filter(None, told)])
    if not found and (stuck := _check_learning(model, loss_fn, part(batch, 0, 8))):
        yield stuck


@torch.no_grad()
def _check_independence(model: nn.Module, inputs: Any) -> Told | None:
    """Tell where another sample in a batch changes the outputs of the rest.

    In evaluation mode, where batch normalization looks at no batch.
    """
    num = min(8, count(inputs))
    order = torch.arange(num)
    first = select(inputs, order)
    order[0] = num - 1
    other = select(inputs, order)
    with evaluating(model):
        outputs, again, changed = (
            torch.cat([x[1:].flatten() for x in tensors_in(model(each))]).double()
            for each in (first, first, other)
        )
    size = outputs.abs().max() if outputs.numel() else 0
    if not torch.equal(outputs, again) or outputs.shape != changed.shape or size == 0:
        return None  # it draws random numbers, or keeps something between two calls
    if (difference := ((outputs - changed).abs().max() / size).item()) < ROUNDING:
        return None
    return (
        rules.MIXED,
        f"with another first sample the outputs of the others in its batch change, by "
        f"up to {difference:.2g} of their size.",
        "Look for sums, softmax or reshape over the first dimension.",
    )


def _check_mean(loss_fn: LossFunction, outputs: Any, targets: Any) -> Told | None:
    """Tell where the loss of two halves is not the mean of both, but their sum."""
    half = count(targets) // 2
    if half == 0:
        return None
    whole, first, second = (
        loss_fn(part(outputs, *ends), part(targets, *ends)).item()
        for ends in ((0, 2 * half), (0, half), (half, 2 * half))
    )
    mean = (first + second) / 2
    if mean == 0 or abs(whole / mean - 2) > 0.05:
        return None
    return (
        rules.SUMMED,
        f"the loss of {2 * half} samples is {whole:.3g}, and those of its halves are "
        f"{first:.3g} and {second:.3g}: it is their sum, and grows with the batch.",
        "Take the mean over the samples: reduction='mean'.",
    )


@torch.no_grad()
def _check_logits(
    model: nn.Module, loss_fn: LossFunction, inputs: Any, targets: Any
) -> Told | None:
    """Tell where outputs are probabilities, and the loss takes logits.

    A loss takes logits where a number added to all of them changes nothing; or, of
    single ones, where the right probabilities have a loss.
    """
    outputs = model(inputs)
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    if not (outputs.min() > 0 and outputs.max() < 1 and _is_bounded(model, inputs)):
        return None
    loss, name = loss_fn(outputs, targets).item(), "sigmoid"
    if not targets.is_floating_point():
        axes = range(1, outputs.dim())
        sums = [(outputs.sum(dim=axis) - 1).abs().max() for axis in axes]
        name = "softmax" if min(sums, default=1) < ROUNDING else "sigmoid"
        takes_logits = abs(loss_fn(outputs + 1, targets).item() - loss) < 1e-4 * loss
    else:
        right = targets.reshape(outputs.shape).to(outputs)
        takes_logits = loss_fn(right, targets).item() > 0.1
    if not takes_logits:
        return None
    return (
        rules.NO_LOGITS,
        f"all outputs are between 0 and 1, as after a {name}, and the loss function "
        "applies one itself.",
        f"Leave the {name} at the end of the model out.",
    )


def _is_bounded(model: nn.Module, inputs: Any) -> bool:
    """Return whether outputs stay in [0, 1] with parameters many times as large.

    Those of a last layer without a function behind it do not. A power of two is undone
    bit for bit.
    """
    for parameter in model.parameters():
        parameter *= 128
    outputs = model(inputs)
    for parameter in model.parameters():
        parameter /= 128
    return bool(outputs.min() >= 0 and outputs.max() <= 1)


def _check_start(
    loss: float, loss_fn: LossFunction, outputs: Any, targets: Any
) -> Told | None:
    """Tell where the first loss is far above that of guessing, and of outputs 0.

    Outputs of about unit size are usual, whatever the size of real targets.
    """
    guessing = loss_of_guessing(loss_fn, outputs, targets)
    if guessing is None:
        return None
    of_zero = loss_fn(torch.zeros_like(outputs), targets).item()
    of_unit_size = 1.0 if targets.is_floating_point() else 0.0
    usual = max(guessing, of_zero, of_unit_size)
    if min(guessing, of_zero) < 0 or not loss > 5 * usual:
        return None
    return (
        "exploding gradient",
        f"the loss of the first samples is {loss:.3g}, that of outputs 0 is "
        f"{of_zero:.3g}, and that of guessing {guessing:.3g}.",
        "Look at the scale of the initial weights and of the inputs.",
    )


def _check_learning(model: nn.Module, loss_fn: LossFunction, batch: Any) -> Told | None:
    """Tell where a few samples cannot be told apart, whatever the step.

    Of real targets, which may be large, it is enough that the loss falls.
    """
    inputs, targets = batch
    with torch.no_grad():
        outputs = model(inputs)
    first = loss_fn(outputs, targets).item()
    if first <= 0:
        return None  # nobody can say what share of it is learned
    guessing, goal = loss_of_guessing(loss_fn, outputs, targets), 0.98 * first
    if guessing is not None and not targets.is_floating_point():
        goal = 0.9 * min(first, guessing)
        if guessing < 0.05 * first:
            return None  # they are nearly all the same: there is nothing to tell apart
    start, least = time.perf_counter(), first
    for k in range(NUM_STEPS):
        least = min(least, _step(model, loss_fn, inputs, targets, 1 - k / NUM_STEPS))
        if least < goal or time.perf_counter() - start > 1:
            return None
    return (
        rules.UNLEARNABLE,
        f"in {NUM_STEPS} steps on {count(targets)} samples the loss came from "
        f"{first:.3g} to {least:.3g}"
        + ("." if guessing is None else f", and guessing has {guessing:.3g}."),
        "Unclear: no gradient, dead units or a cut in the model look like that.",
    )


def _step(
    model: nn.Module, loss_fn: LossFunction, inputs: Any, targets: Any, rate: float
) -> float:
    """Make a step whose length is a share of each parameter's own; return the loss."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = loss_fn(model(inputs), targets)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is not None and (steepness := norm(grad)) > 0:
                size = norm(parameter).clamp(min=0.1 * parameter.numel() ** 0.5)
                parameter -= 0.1 * rate * size / steepness * grad
    return loss.item()
