"""The generators that training draws from: their states, to keep and to put back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class RandomStates:
    """The CPU's generator and, where a device is another one, that device's.

    Dropout, for one, draws from them. The state can be kept in a checkpoint:

    >>> states = RandomStates(torch.device("cpu"))
    >>> kept, drawn = states.state_dict(), torch.rand(1)
    >>> states.load_state_dict(kept)
    >>> torch.equal(torch.rand(1), drawn)
    True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generators = None
        if device.type != "cpu":
            self._generators = torch.get_device_module(device)
        # Of mps there is but one.
        self._which = [] if device.type == "mps" else [device]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states by type of device."""
        states = {"cpu": torch.get_rng_state()}
        if self._generators is not None:
            state = self._generators.get_rng_state(*self._which)
            states[self._device.type] = state
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back; a generator whose state was not kept goes on as it is."""
        torch.set_rng_state(state_dict["cpu"])
        if self._generators is not None and self._device.type in state_dict:
            state = state_dict[self._device.type]
            self._generators.set_rng_state(state, *self._which)

    @contextmanager
    def replay(self, state_dict: dict[str, Any]) -> Iterator[None]:
        """Draw the numbers that followed on a state again, and then go on as before."""
        now = self.state_dict()
        try:
            self.load_state_dict(state_dict)
            yield
        finally:
            self.load_state_dict(now)
