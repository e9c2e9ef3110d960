"""When the panel reads: as often as a budget of time allows."""

import math
import sys
from collections.abc import Collection, Mapping
from typing import NamedTuple

NOTHING: frozenset[str] = frozenset()

EXTRA = ("look", "audit", "noise")
"""What reads the last step in any case. A truth test would cost too much for that."""


class Plan(NamedTuple):
    """What a panel does at a step."""

    due: frozenset[str] = NOTHING
    """The kinds that read it."""
    extra: frozenset[str] = NOTHING
    """Those of them that read it beyond the cadence: later readings know nothing of
    that, because a run that is continued later has no last step here."""
    keeps_gradient: bool = False
    """Whether the next step looks, and compares its gradient with this one's."""

    @property
    def compares(self) -> bool:
        """Whether the parameters after the step are compared with those before it."""
        return not self.due.isdisjoint(("look", "audit"))

    @property
    def audits(self) -> bool:
        """Whether the loss of the batch is computed again."""
        return not self.due.isdisjoint(("audit", "truth"))

    @property
    def keeps_vectors(self) -> bool:
        """Whether the gradient is needed after the update."""
        return self.compares or self.keeps_gradient


IDLE = Plan()


class Cadence(NamedTuple):
    """Steps between two readings of each kind; 0 is never.

    >>> Cadence(look=2, audit=4, truth=0, noise=0).plan(3)
    Plan(due=frozenset(), extra=frozenset(), keeps_gradient=True)
    """

    look: int = 1
    audit: int = 50
    truth: int = 500
    noise: int = 50

    def plan(self, number: int, is_last: bool = False) -> Plan:
        """Return what to do at step `number`, counted from 1: the first is read."""
        unit = math.gcd(*self) or sys.maxsize  # no kind reads between its multiples
        if number > 1 and number % unit and (number + 1) % unit and not is_last:
            return IDLE  # most steps, at no cost
        due, extra = self._due(number), NOTHING
        if is_last:
            extra = frozenset(kind for kind in EXTRA if getattr(self, kind)) - due
        return Plan(due | extra, extra, "look" in self._due(number + 1))

    def without(self, kinds: Collection[str]) -> "Cadence":
        """Return the same where these kinds, those of them that it knows, never read.

        >>> Cadence(look=2, audit=4).without({"audit", "truth", "audit/margin"})
        Cadence(look=2, audit=0, truth=0, noise=50)
        """
        return self._replace(**dict.fromkeys({*self._fields} & {*kinds}, 0))

    def _due(self, number: int) -> frozenset[str]:
        return frozenset(
            kind
            for kind, every in self._asdict().items()
            if every and (number == 1 or number % every == 0)
        )


def fit_cadence(
    costs: Mapping[str, float], step_seconds: float, budget: float, unit: int = 1
) -> Cadence:
    """Return how often readings of these costs can be made within a budget.

    Half of the budget is for `look`, a sixth for each other kind. Every number of steps
    is a multiple of `unit` with one digit and zeros.

    >>> costs = {"look": 0.1, "audit": 0.3, "truth": 5.0, "noise": 0.2}
    >>> fit_cadence(costs, step_seconds=1.0, budget=0.03, unit=10)
    Cadence(look=10, audit=60, truth=1000, noise=40)

    Args:
        costs: The seconds of a reading of each kind.
        step_seconds: Those of a step.
        budget: The share of the steps' own time that all readings together may take.
        unit: Steps between two that are logged.
    """

    def steps_between(kind: str) -> int:
        share = budget / (2 if kind == "look" else 6)
        least = costs[kind] / (share * step_seconds * unit)
        power = 10 ** max(0, math.floor(math.log10(max(least, 1))))
        return unit * power * max(1, math.ceil(least / power))

    return Cadence(*map(steps_between, Cadence._fields))
