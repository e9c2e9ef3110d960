"""How often the panel reads, against what the readings then cost."""

import random

import pytest

from minitrain.instruments.cadence import Cadence, fit_cadence


@pytest.mark.parametrize("seed", range(20))
def test_readings_stay_within_the_budget_and_use_what_they_can_of_it(seed: int) -> None:
    draw = random.Random(seed)
    step, budget = draw.uniform(0.5, 2), draw.choice([0.01, 0.02, 0.3])
    costs = {kind: 10 ** draw.uniform(-3, 2) for kind in Cadence._fields}
    unit = draw.choice([1, 10])
    for kind, every in fit_cadence(costs, step, budget, unit)._asdict().items():
        share = budget * step * (1 / 2 if kind == "look" else 1 / 6)
        assert costs[kind] / every <= share * (1 + 1e-9)
        assert every % unit == 0 and str(every // unit).rstrip("0") in [*"123456789"]
        # The next smaller number of one digit and zeros would not do.
        n = every // unit
        power = 10 ** (len(str(n)) - 1)
        smaller = n - (power if n > power else power // 10)
        assert n == 1 or costs[kind] / (smaller * unit) > share * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_each_step_is_read_by_what_is_due_and_the_last_by_all_but_the_truth_test(
    seed: int,
) -> None:
    draw = random.Random(seed)
    every = {kind: draw.choice([0, 0, 1, 2, 3, 10, 15]) for kind in Cadence._fields}
    cadence = Cadence(**every)

    def due(number: int) -> set[str]:
        return {k for k, n in every.items() if n and (number == 1 or number % n == 0)}

    for number in range(1, 40):
        plan = cadence.plan(number)
        assert plan.due == due(number) and plan.extra == set()
        assert plan.keeps_gradient == ("look" in due(number + 1))
        last = cadence.plan(number, is_last=True)
        wanted = {kind for kind in ("look", "audit", "noise") if every[kind]}
        assert last.due == due(number) | wanted
        assert last.extra == wanted - due(number)
        assert last.keeps_gradient == plan.keeps_gradient
