"""Is the gradient true? Differences of the loss tell, along any direction.

Along a unit vector v the loss is a function of one number, phi(t) = L(theta + t v), and
g . v claims to be its derivative at 0: `finite_difference_gradient` measures that.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import compress
from typing import NamedTuple

import torch

from minitrain import tags
from minitrain.gradients import finite_difference_gradient
from minitrain.instruments.observation import Observation, Readings, Vector
from minitrain.instruments.recompute import BatchLoss

TOLERANCE = 0.05
"""The relative error that a gradient may have in the precision of the loss."""

AUTOCAST_TOLERANCE = 0.25
"""That of one from a forward pass with few digits, under autocast."""


class Slope(NamedTuple):
    """A directional derivative, as the gradient claims it and as the loss shows it."""

    claimed: float
    """g . v for the unit vector v."""
    measured: float
    """(L(theta + h v) - L(theta - h v)) / 2h."""
    error: float
    """|claimed - measured| / the larger of both; NaN where rounding hides it."""
    is_wrong: bool
    """Whether no h explains the difference."""


def check_slope(
    loss_of: Callable[[], float],
    theta: Vector,
    direction: Vector,
    claimed: float,
    loss: float,
    *,
    resolution: float = 0.0,
    tolerance: float = TOLERANCE,
    h: float = 1e-2,
) -> Slope:
    """Check whether g . v is the slope of the loss along the unit vector v.

    The losses at theta + h v and theta - h v give the central difference and, with the
    loss at theta, the slope on either side. The claim is wrong where it is farther from
    the central difference than `tolerance`, half the difference of the two sides (what
    curvature and kinks may explain) and differences below `resolution` allow: for two
    of h, h / 10 and h / 100 or, where the others are lost in rounding, for one. That
    there is no slope at all is claimed of any direction, and most slopes are small: h
    and h / 2 have to agree there, for a kink at a distance is none at theta.

    >>> x = Vector([torch.tensor([3.0, 4.0], dtype=torch.float64)])
    >>> v = Vector([torch.tensor([0.6, 0.8], dtype=torch.float64)])
    >>> f = lambda: float(x[0] @ x[0])
    >>> [check_slope(f, x, v, claimed, f()).is_wrong for claimed in (10.0, 12.0)]
    [False, True]

    Args:
        loss_of: Computes L at the present theta.
        theta: Changed in place for each loss and then put back, bit for bit.
        direction: v.
        claimed: g . v.
        loss: L(theta).
        resolution: The difference below which two losses are not told apart.
        tolerance: The relative error that the claim may have.
        h: How far to go along v at first.
    """
    before = theta.copy()

    @cache
    def phi(t: float) -> float:
        with torch.no_grad():
            for tensor, start, v in zip(theta, before, direction, strict=True):
                tensor.copy_(torch.add(start, v, alpha=t))
        return loss_of()

    lengths = (h, h / 10, h / 100) if claimed else (h, h / 2)
    try:
        slopes = [*_compare(phi, lengths, claimed, loss, resolution, tolerance)]
    finally:
        with torch.no_grad():
            for tensor, start in zip(theta, before, strict=True):
                tensor.copy_(start)
    if not slopes:
        return Slope(claimed, math.nan, math.nan, False)
    is_wrong = all(slope.is_wrong for slope in slopes)
    if claimed == 0:
        is_steady = abs(slopes[-1].measured / slopes[0].measured - 1) < 0.25
        is_wrong = is_wrong and len(slopes) == 2 and is_steady
    return slopes[-1]._replace(is_wrong=is_wrong)


def _compare(
    phi: Callable[[float], float],
    lengths: Sequence[float],
    claimed: float,
    loss: float,
    resolution: float,
    tolerance: float,
) -> Iterator[Slope]:
    """Yield the slope measured over each length, until it is clear or out of sight."""
    num_wrong = 0
    for h in lengths:
        measured = _derivative_at_0(phi, h)
        bend = abs(phi(h) - 2 * loss + phi(-h)) / (2 * h)  # half of right - left
        size, rounding = max(abs(claimed), abs(measured)), resolution / h
        if not size > 4 * rounding:
            return
        difference = abs(claimed - measured)
        allowed = tolerance * size + bend + rounding
        is_wrong = not difference <= allowed
        yield Slope(claimed, measured, difference / size, is_wrong)
        num_wrong += is_wrong
        if num_wrong == 2 or (not is_wrong and allowed < size / 2):
            return


def _derivative_at_0(phi: Callable[[float], float], h: float) -> float:
    """Return (phi(h) - phi(-h)) / 2h."""
    zero = torch.zeros((), dtype=torch.float64)
    return finite_difference_gradient(
        lambda t: torch.tensor(phi(t.item()), dtype=torch.float64), zero, h=h
    ).item()


def check_slopes(
    step: Observation, loss_of: BatchLoss, first_loss: float, is_rough: bool
) -> dict[str, Slope]:
    """Check the gradient before an update: as a whole, and the part of each parameter.

    Each is compared along its own direction, where it claims to be steepest.

    Args:
        step: The step before its update.
        loss_of: The loss of its batch, in full precision.
        first_loss: The first one of the run that was audited, or 0.
        is_rough: Whether the gradient comes from a forward pass under autocast.

    Returns:
        The slopes, by the names of the parameters and `tags.WHOLE`.
    """
    loss, generator = loss_of(), torch.Generator().manual_seed(0)
    resolution = loss_of.resolution(step.loss, first_loss)
    slopes = {}
    for name, (point, grads) in _find_blocks(step).items():
        steepness, scale = grads.norm.item(), 1.0
        if steepness > 0:
            direction = Vector(g / steepness for g in grads)
        else:  # where no gradient came, the loss must be flat in any direction
            direction = _draw_direction(point, generator)
            scale = max(1.0, point.norm.item())
        claimed, scale = loss_of.agree(step.unclip(steepness), scale)
        slopes[name] = check_slope(
            loss_of,
            point,
            direction,
            claimed,
            loss,
            resolution=resolution,
            tolerance=AUTOCAST_TOLERANCE if is_rough else TOLERANCE,
            # At half of this h the errors of rounding and curvature are alike.
            h=2 * scale * torch.finfo(point[0].dtype).eps ** (1 / 3),
        )
    return slopes


def _find_blocks(step: Observation) -> dict[str, tuple[Vector, Vector]]:
    """Return theta and gradient, of the whole and of each parameter, by their names.

    Frozen parameters are left out: their gradient of zero does not claim a flat loss.
    """
    parameters, theta = step.parameters, step.parameters.theta()
    names, trained = parameters.names(), parameters.are_trained()
    points, grads = map(parameters.split, (theta, step.gradient))
    whole = theta, step.gradient
    if not all(trained):
        whole = Vector(compress(points, trained)), Vector(compress(grads, trained))
    parts = [(Vector([p]), Vector([g])) for p, g in zip(points, grads, strict=True)]
    each = compress(zip(names, parts, strict=True), trained)
    return {tags.WHOLE: whole, **dict(each)} if any(trained) else {}


def _draw_direction(theta: Vector, generator: torch.Generator) -> Vector:
    """Return a random unit vector of theta's shapes."""
    drawn = Vector(torch.randn(p.shape, generator=generator).to(p) for p in theta)
    return Vector(d / drawn.norm for d in drawn)


def read_truth(slopes: Mapping[str, Slope]) -> Readings:
    """Return the errors of a truth test, those that rounding does not hide."""
    errors = {
        name: slope.error
        for name, slope in slopes.items()
        if math.isfinite(slope.error)
    }
    readings = {}
    if tags.WHOLE in errors:
        readings[tags.TRUTH_ERROR] = errors.pop(tags.WHOLE)
    if errors:
        readings[tags.TRUTH_WORST_ERROR] = max(errors.values())
    return readings
