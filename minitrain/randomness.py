"""The generators that training draws from: their states, to keep and to put back."""

import random
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class RandomStates:
    """The generators of the CPU and, where a device is another one, that device's.

    On the CPU they are torch's, from which dropout draws, and those of `random` and
    `numpy`, from which anybody's code may. The states can be kept in a checkpoint:

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
        """Return the states by type of device, and by the name of the module."""
        _, numbers, gauss = random.getstate()
        states = {"cpu": torch.get_rng_state(), "random": _pack(numbers, gauss)}
        if (numpy := sys.modules.get("numpy")) is not None:
            _, key, place, has_gauss, gauss = numpy.random.get_state()
            states["numpy"] = _pack(
                (*key.tolist(), place), gauss if has_gauss else None
            )
        if self._generators is not None:
            state = self._generators.get_rng_state(*self._which)
            states[self._device.type] = state
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back; a generator whose state was not kept goes on as it is."""
        torch.set_rng_state(state_dict["cpu"])
        if "random" in state_dict:
            numbers, gauss = _unpack(state_dict["random"])
            random.setstate((3, tuple(numbers), gauss))
        if "numpy" in state_dict:
            import numpy

            (*key, place), gauss = _unpack(state_dict["numpy"])
            words, is_kept = numpy.array(key, numpy.uint32), int(gauss is not None)
            state = ("MT19937", words, place, is_kept, gauss or 0.0)
            numpy.random.set_state(state)
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


def _pack(numbers: tuple[int, ...], gauss: float | None) -> Tensor:
    """Return the state of a Mersenne twister as a tensor of float64, exact for 32 bits.

    At its end stand whether it keeps the second of two normal numbers, and that one.
    """
    values = array("d", numbers)
    values.extend((gauss is not None, gauss or 0.0))
    return torch.frombuffer(bytearray(values), dtype=torch.float64)


def _unpack(state: Tensor) -> tuple[list[int], float | None]:
    *numbers, has_gauss, gauss = state.tolist()
    return [*map(int, numbers)], gauss if has_gauss else None


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put random states, buffers and modes back, whatever happens to them inside."""
    states = RandomStates(device)
    # A lazy module has buffers without values before it is called.
    filled = [buffer for buffer in model.buffers() if not is_lazy(buffer)]
    buffers = [(buffer, buffer.detach().clone()) for buffer in filled]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with states.replay(states.state_dict()):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
