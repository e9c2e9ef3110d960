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
