"""How often the panel reads: as often as a budget of time allows."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Cadence(NamedTuple):
    """Steps between two readings of each kind; 0 is never."""

    look: int = 1
    audit: int = 50
    truth: int = 500
    noise: int = 50


def cadence(
    costs: Mapping[str, float], step_seconds: float, budget: float, unit: int = 1
) -> Cadence:
    """How often readings of these costs can be made within a budget.

    `costs` are the seconds of a reading of each kind, `budget` the share of the steps'
    own time that the panel may take: half of it for `look`, a sixth for each other
    kind. Every number of steps is a multiple of `unit` with one digit and zeros.

    >>> costs = {"look": 0.1, "audit": 0.3, "truth": 5.0, "noise": 0.2}
    >>> cadence(costs, step_seconds=1.0, budget=0.03, unit=10)
    Cadence(look=10, audit=60, truth=1000, noise=40)
    """

    def steps_between(kind: str) -> int:
        share = budget / (2 if kind == "look" else 6)
        least = costs[kind] / (share * step_seconds * unit)
        power = 10 ** max(0, math.floor(math.log10(max(least, 1))))
        return unit * power * max(1, math.ceil(least / power))

    return Cadence(*map(steps_between, Cadence._fields))
