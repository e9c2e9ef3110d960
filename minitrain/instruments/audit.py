"""Does a step do what its gradient promised? The loss before and after it tells."""

import math
from typing import NamedTuple

from minitrain import tags
from minitrain.instruments.observation import OF_ONE_RULE, Observation, Readings
from minitrain.instruments.recompute import BatchLoss
from minitrain.norms import dot


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


def audit_step(
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

    L(theta + update) is L + slope + curvature |update|^2 / 2, which defines the
    curvature: of a network with kinks it is the honest one, as its Hessian does not see
    them. What follows from differences of losses below `resolution` is NaN.

    On f = x^2 + y^2 the ratio is 1 - lr, the curvature 2, and the stable limit 1:

    >>> audit = audit_step(25.0, 16.0, -10.0, 1.0, lr=0.1)  # from (3, 4), lr 0.1
    >>> audit.ratio, audit.curvature, audit.largest_stable_lr
    (0.9, 2.0, 1.0)

    Args:
        loss_before: L(theta) of the step's batch.
        loss_after: L(theta + update) of the same batch.
        slope: g . update, negative where the step descends; g is the gradient of
            `loss_before` alone, without weight decay or clipping.
        update_norm: |update|.
        lr: The learning rate of the step.
        momentum: The other options of the update, as in `largest_stable_lr`.
        dampening: See there.
        nesterov: See there.
        resolution: The difference below which two losses are not told apart.
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
    """Return the learning rate above which SGD diverges on a parabola.

    2 (1 + momentum) / ((1 - dampening) curvature), and with Nesterov's momentum
    2 (1 + momentum) / ((1 + 2 momentum) curvature). Where the curvature is not positive
    it is infinite: downhill there is no limit.

    >>> largest_stable_lr(2.0), largest_stable_lr(2.0, momentum=0.9)
    (1.0, 1.9)
    """
    share = 1 + 2 * momentum if nesterov else 1 - dampening
    if curvature * share <= 0:
        return math.inf
    return 2 * (1 + momentum) / (share * curvature)


def read_audit(step: Observation, loss_of: BatchLoss, first_loss: float) -> Readings:
    """Return the readings of the audit of a step, those that are finite.

    What a learning rate has to do with the curvature is known of SGD alone, with the
    same options for all parameters.

    Args:
        step: The step.
        loss_of: The loss of its batch, computed as the loop does.
        first_loss: The first one of the run that was audited.
    """
    loss_after = loss_of()
    options = step.parameters.options()[0]
    audit = audit_step(
        step.loss,
        loss_after,
        step.unclip(dot(step.update, step.gradient).item()),
        step.update.norm.item(),
        lr=float(options["lr"]),
        momentum=options.get("momentum", 0),
        dampening=options.get("dampening", 0),
        nesterov=options.get("nesterov", False),
        resolution=loss_of.resolution(step.loss, first_loss),
    )
    readings = {
        tags.tag(tags.AUDIT, field): value
        for field, value in audit._asdict().items()
        if math.isfinite(value)
    }
    if math.isfinite(loss_after):
        readings[tags.AUDIT_LOSS] = loss_after
    rule = step.parameters
    if rule.departure_from_sgd() or rule.difference_of_groups():
        return {k: x for k, x in readings.items() if k not in OF_ONE_RULE}
    return readings
