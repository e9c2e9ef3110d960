"""Learning rate schedules: pure functions of the step, with no state to save.

Each gives the factor by which the learning rate lr is multiplied for the update after
`step` completed ones, 0 <= step < num_steps. As functions of the step alone they cannot
drift when a run is resumed. `set_lrs` hands a learning rate to an optimizer's groups.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int, int], float]


def constant(step: int, num_steps: int) -> float:
    """The full learning rate at every step: 1.

    >>> constant(step=50, num_steps=100)
    1.0
    """
    return 1.0


def step_decay(step: int, num_steps: int) -> float:
    """All of it, a tenth after one half of the run, a hundredth after three quarters.

    >>> [step_decay(step, num_steps=100) for step in (0, 49, 50, 74, 75, 99)]
    [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    if step < 0.5 * num_steps:
        return 1.0
    return 0.1 if step < 0.75 * num_steps else 0.01


def cosine(step: int, num_steps: int) -> float:
    """Half a cosine wave from 1 down to 0: (1 + cos(pi step / num_steps)) / 2.

    Source: Loshchilov and Hutter, SGDR, 2017, without restarts.

    >>> [round(cosine(step, num_steps=4), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    return (1 + math.cos(math.pi * step / num_steps)) / 2


def one_cycle(step: int, num_steps: int) -> float:
    """Up from 1/25 to 1 over the first 30 % of the run, then down towards 0.

    Linear in both parts. The large learning rate in the middle explores, the small one
    at the end settles.

    Source: Smith and Topin, Super-convergence, 2018.

    >>> [round(one_cycle(step, num_steps=10), 2) for step in (0, 3, 9)]
    [0.04, 1.0, 0.14]
    """
    peak = 0.3 * num_steps
    if step < peak:
        return 1 / 25 + (1 - 1 / 25) * step / peak
    return (num_steps - step) / (num_steps - peak)


def warmup(step: int, warmup_steps: int) -> float:
    """A linear rise from 1 / warmup_steps to 1, to multiply another schedule with.

    Source: Goyal et al., Accurate, large minibatch SGD, 2017.

    >>> [warmup(step, warmup_steps=4) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "step": step_decay,
    "cosine": cosine,
    "one-cycle": one_cycle,
}
