"""Schedules against torch.optim.lr_scheduler where it has them, else a closed form."""

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler
from torch.optim.lr_scheduler import MultiStepLR as MultiStep

from minitrain.schedules import (
    SCHEDULES,
    constant,
    cosine,
    one_cycle,
    step_decay,
    warmup,
)

every_length = pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 1000])


def factors(schedule: Callable[[int, int], float], num_steps: int) -> list[float]:
    return [schedule(step, num_steps) for step in range(num_steps)]


def torch_factors(make: Callable[[SGD], LRScheduler], num_steps: int) -> list[float]:
    optimizer = SGD([torch.zeros(1)], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def close(expected: list[float]) -> object:
    """Torch multiplies step by step, so its roundings add up."""
    return pytest.approx(expected, rel=0, abs=1e-12)


@every_length
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_has_a_positive_factor_of_at_most_one(name: str, num_steps: int):
    for warmup_steps in (0, 1, 5, 2 * num_steps):
        for step, factor in enumerate(factors(SCHEDULES[name], num_steps)):
            assert 0 < factor * warmup(step, warmup_steps) <= 1


@every_length
def test_constant_is_one(num_steps: int):
    assert factors(constant, num_steps) == [1.0] * num_steps


@every_length
def test_step_decay_is_torchs(num_steps: int):
    milestones = [math.ceil(num_steps / 2), math.ceil(3 * num_steps / 4)]
    expected = torch_factors(lambda sgd: MultiStep(sgd, milestones, 0.1), num_steps)
    assert factors(step_decay, num_steps) == close(expected)


@every_length
def test_cosine_is_torchs(num_steps: int):
    expected = torch_factors(lambda sgd: CosineAnnealingLR(sgd, num_steps), num_steps)
    assert factors(cosine, num_steps) == close(expected)


@every_length
def test_one_cycle_runs_straight_through_three_points(num_steps: int):
    """Torch's OneCycleLR puts them one step earlier, so it cannot be the oracle."""
    corners = [0, 0.3 * num_steps, num_steps]
    expected = numpy.interp(range(num_steps), corners, [1 / 25, 1, 0])
    assert factors(one_cycle, num_steps) == close(expected.tolist())


@pytest.mark.parametrize("num_steps", [10, 100, 1000, 4690])
def test_one_cycle_rises_to_exactly_one_then_falls_towards_zero(num_steps: int):
    rates, peak = factors(one_cycle, num_steps), 3 * num_steps // 10
    assert rates[0] == 1 / 25
    assert rates[peak] == max(rates) == 1
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(1 / (0.7 * num_steps))


@pytest.mark.parametrize("warmup_steps", [2, 3, 10, 1000])
def test_warmup_is_torchs(warmup_steps: int):
    expected = torch_factors(
        lambda sgd: LinearLR(sgd, 1 / warmup_steps, total_iters=warmup_steps - 1),
        warmup_steps + 5,
    )
    mine = [warmup(step, warmup_steps) for step in range(warmup_steps + 5)]
    assert mine == close(expected)
    assert mine[warmup_steps - 1 :] == [1.0] * 6


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_no_warmup_changes_nothing(warmup_steps: int):
    assert [warmup(step, warmup_steps) for step in range(5)] == [1.0] * 5
