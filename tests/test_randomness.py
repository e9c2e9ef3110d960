"""Every generator goes on from where it was kept."""

import random

import numpy
import pytest
import torch
from harness.networks import Centered

from minitrain.randomness import RandomStates, undisturbed

STATES = RandomStates(torch.device("cpu"))


def draw() -> list[float]:
    """Numbers of all generators; of normal ones, two are made at a time."""
    return [
        torch.rand(1).item(),
        random.random(),
        random.gauss(),
        numpy.random.rand(),
        numpy.random.randn(),
    ]


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_state_dict_brings_every_number_back(num_before: int) -> None:
    for _ in range(num_before):
        draw()
    kept = STATES.state_dict()
    expected = [draw(), draw()]
    STATES.load_state_dict(kept)
    assert [draw(), draw()] == expected


def test_what_was_not_kept_goes_on() -> None:
    kept = STATES.state_dict()
    draw()
    now = STATES.keep()
    expected = draw()
    STATES.put_back(now)
    STATES.load_state_dict({"cpu": kept["cpu"]})
    assert draw()[1:] == expected[1:]


def test_a_replay_draws_the_same_numbers_and_leaves_no_trace() -> None:
    start = STATES.keep()
    first = draw()
    now = STATES.keep()
    expected = draw()
    STATES.put_back(now)
    with pytest.raises(KeyError), STATES.replay(start):
        assert draw() == first
        raise KeyError
    assert draw() == expected


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_buffer_that_a_pass_puts_in_place_is_gone_again(num_before: int) -> None:
    model, inputs = Centered(), torch.ones(2, 5)
    for _ in range(num_before):
        model(inputs)
    mean, num_passes = model.mean, model.num_passes
    bits = mean.clone()
    with undisturbed(model, torch.device("cpu")):
        model(inputs)
        assert not torch.equal(model.mean, bits) and model.num_passes is not None
    assert model.mean is mean and torch.equal(mean, bits)
    assert model.num_passes is num_passes
