"""Is the gradient true? Differences of the loss tell, along any direction."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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
