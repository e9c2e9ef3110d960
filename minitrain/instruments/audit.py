"""Does a step do what its gradient promised? The loss before and after it tells."""

import math
from typing import NamedTuple


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
