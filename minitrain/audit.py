"""Is the gradient true, and does the step do what it promised? The loss itself answers.

Both audits compute the loss of a step's own batch again, with other parameters and all
else the same: the directional derivative and the curvature are differences of losses.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minitrain.randomness import RandomStates

LossOf = Callable[[], Tensor]


class Replay:
    """The loss of one batch, computed again as in the training step, leaving no trace.

    `loss_of()` is the mean loss of the batch under the model's present parameters. Each
    call draws the random numbers that followed when the `Replay` was made, so that a
    dropout mask is the same; random states and buffers, such as BatchNorm's running
    statistics, are put back afterwards, bit for bit.
    """

    def __init__(
        self, model: nn.Module, loss_of: LossOf, autocast: torch.dtype | None = None
    ) -> None:
        self._model, self._loss_of, self._autocast = model, loss_of, autocast
        self._device = next(model.parameters()).device
        self._random = RandomStates(self._device)
        self._start = self._random.state_dict()
        self.rounding = 0.0
        """The relative difference below which two losses are not told apart: 50 times
        their spacing, or 4 times that of an autocast forward pass. On MNIST the error
        of a loss is up to 4 and 0.6 times as large as that."""

    @torch.no_grad()
    def __call__(self) -> float:
        with self.untouched():
            return self.loss().item()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Put random states and buffers back, whatever happens to them inside."""
        random = self._random.state_dict()
        buffers = [(b, b.detach().clone()) for b in self._model.buffers()]
        try:
            self._random.load_state_dict(self._start)
            yield
        finally:
            self._random.load_state_dict(random)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def loss(self) -> Tensor:
        """The loss with its graph, drawing random numbers as they come."""
        if self._autocast is None:
            loss = self._loss_of()
            self.rounding = 50 * torch.finfo(loss.dtype).eps
            return loss
        with torch.autocast(self._device.type, self._autocast):
            loss = self._loss_of()
        self.rounding = 4 * torch.finfo(self._autocast).eps
        return loss


class StepAudit(NamedTuple):
    """What a step promised and what it delivered; NaN where rounding hides it."""

    promised: float
    """P = -g . update: the decrease of the loss if it were linear."""
    delivered: float
    """D = L(theta) - L(theta + update), on the same batch."""
    ratio: float
    """D / P: 1 where the loss is linear, 0 where the step gained nothing."""
    curvature: float
    """2 (P - D) / |update|^2: the second derivative along the step, from the losses."""
    largest_stable_lr: float
    """The learning rate at which a step along this curvature starts to climb."""
    margin: float
    """lr / largest_stable_lr: above 1 the steps grow from one to the next."""


def step_audit(
    loss_before: float,
    loss_after: float,
    slope: float,
    update_norm: float,
    *,
    lr: float,
    momentum: float = 0,
    dampening: float = 0,
    nesterov: bool = False,
    resolution: float = 0.0,
) -> StepAudit:
    """Compare the decrease that the gradient promised with the one delivered.

    `slope` is g . update, negative where the step descends; g is the gradient of
    `loss_before` alone, without weight decay or clipping. L(theta + update) is
    L + slope + curvature |update|^2 / 2, which defines the curvature: of a network with
    kinks it is the honest one, as its Hessian does not see them. Differences of losses
    below `resolution` say nothing, and what would follow from them is NaN.

    On f = x^2 + y^2 the ratio is 1 - lr, the curvature 2, and the stable limit 1:

    >>> audit = step_audit(25.0, 16.0, -10.0, 1.0, lr=0.1)  # from (3, 4), lr 0.1
    >>> audit.ratio, audit.curvature, audit.largest_stable_lr
    (0.9, 2.0, 1.0)
    """
    promised, delivered = -slope, loss_before - loss_after
    ratio = curvature = limit = math.nan
    if abs(promised) > resolution:
        ratio = delivered / promised
    if abs(promised - delivered) > resolution and update_norm > 0:
        curvature = 2 * (promised - delivered) / update_norm**2
        limit = largest_stable_lr(
            curvature, momentum=momentum, dampening=dampening, nesterov=nesterov
        )
    margin = lr / limit if limit else math.inf  # 0 where the loss overflows
    return StepAudit(promised, delivered, ratio, curvature, limit, margin)


def largest_stable_lr(
    curvature: float,
    *,
    momentum: float = 0,
    dampening: float = 0,
    nesterov: bool = False,
) -> float:
    """The learning rate above which SGD diverges on a parabola of this curvature.

    2 (1 + momentum) / ((1 - dampening) curvature), and with Nesterov's momentum
    2 (1 + momentum) / ((1 + 2 momentum) curvature); infinite where it is not positive:
    downhill there is no limit.

    >>> largest_stable_lr(2.0), largest_stable_lr(2.0, momentum=0.9)
    (1.0, 1.9)
    """
    share = 1 + 2 * momentum if nesterov else 1 - dampening
    if curvature * share <= 0:
        return math.inf
    return 2 * (1 + momentum) / (share * curvature)


class Slope(NamedTuple):
    """A directional derivative, as the gradient claims it and as the loss shows it."""

    claimed: float
    """g . v for the unit vector v."""
    measured: float
    """(L(theta + h v) - L(theta - h v)) / 2h."""
    error: float
    """|claimed - measured| / the larger of both; NaN where rounding hides it."""
    is_wrong: bool
    """Whether no step length h explains the difference."""


def check_slope(
    loss_of: Callable[[], float],
    tensors: Sequence[Tensor],
    direction: Sequence[Tensor],
    claimed: float,
    loss: float,
    *,
    resolution: float = 0.0,
    tolerance: float = 0.05,
    h: float = 1e-2,
) -> Slope:
    """Is g . v the slope of the loss along the unit vector v? Two losses tell, or more.

    The losses at theta + h v and theta - h v give the slope on either side of theta
    and, as their mean, the central difference. The claim is wrong where it is farther
    from that than `tolerance`, half the difference of the two sides (what curvature and
    kinks may explain) and differences below `resolution` allow: for two lengths of h,
    h / 10 and h / 100 or, where the others are lost in rounding, for one. That there is
    no slope at all is claimed of any direction, and most slopes are small: h and h / 2
    have to agree there, for a kink at a distance is none at theta.

    `tensors` are changed in place for each loss and then put back, bit for bit.

    >>> x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    >>> v, f = torch.tensor([0.6, 0.8], dtype=torch.float64), lambda: float(x @ x)
    >>> [check_slope(f, [x], [v], claimed, f()).is_wrong for claimed in (10.0, 12.0)]
    [False, True]
    """
    before = [tensor.detach().clone() for tensor in tensors]

    def loss_at(length: float) -> float:
        with torch.no_grad():
            for tensor, start, v in zip(tensors, before, direction, strict=True):
                tensor.copy_(torch.add(start, v, alpha=length))
        return loss_of()

    verdicts: list[Slope] = []
    try:
        for length in (h, h / 10, h / 100) if claimed else (h, h / 2):
            left = (loss - loss_at(-length)) / length
            right = (loss_at(length) - loss) / length
            measured, rounding = (left + right) / 2, resolution / length
            size = max(abs(claimed), abs(measured))
            if not size > 4 * rounding:
                break
            difference = abs(claimed - measured)
            allowed = tolerance * size + abs(right - left) / 2 + rounding
            is_wrong = not difference <= allowed
            verdicts.append(Slope(claimed, measured, difference / size, is_wrong))
            if not is_wrong and allowed < size / 2:
                return verdicts[-1]
            if sum(verdict.is_wrong for verdict in verdicts) == 2:
                break
    finally:
        with torch.no_grad():
            for tensor, start in zip(tensors, before, strict=True):
                tensor.copy_(start)
    if not verdicts:
        return Slope(claimed, math.nan, math.nan, False)
    is_wrong = all(verdict.is_wrong for verdict in verdicts)
    if claimed == 0:
        is_steady = abs(verdicts[-1].measured / verdicts[0].measured - 1) < 0.25
        is_wrong = is_wrong and len(verdicts) == 2 and is_steady
    return verdicts[-1]._replace(is_wrong=is_wrong)
