"""The generators that training draws from: their states, to keep and to put back."""

import hashlib
import random
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from minitrain._torch import buffers_of

Kept = tuple[Tensor, Any, Any, Tensor | None]
"""States of torch, `random`, numpy and a device, as each has them; None: unknown."""


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
        of_torch, (_, numbers, gauss), of_numpy, own = self.keep()
        states = {"cpu": of_torch, "random": _pack(numbers, gauss)}
        if of_numpy is not None:
            _, key, place, has_gauss, gauss = of_numpy
            states["numpy"] = _pack(
                (*key.tolist(), place), gauss if has_gauss else None
            )
        if own is not None:
            states[self._device.type] = own
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back; a generator whose state was not kept goes on as it is."""
        of_python = of_numpy = None
        if "random" in state_dict:
            numbers, gauss = _unpack(state_dict["random"])
            of_python = (3, tuple(numbers), gauss)
        if "numpy" in state_dict:
            (*key, place), gauss = _unpack(state_dict["numpy"])
            is_kept = int(gauss is not None)
            of_numpy = ("MT19937", key, place, is_kept, gauss or 0.0)
        own = state_dict.get(self._device.type) if self._generators else None
        self.put_back((state_dict["cpu"], of_python, of_numpy, own))

    def keep(self) -> Kept:
        """Return the states as the modules have them, at a third of the cost."""
        numpy = sys.modules.get("numpy")
        of_numpy = None if numpy is None else numpy.random.get_state()
        own = None
        if self._generators is not None:
            own = self._generators.get_rng_state(*self._which)
        return torch.get_rng_state(), random.getstate(), of_numpy, own

    def put_back(self, kept: Kept) -> None:
        """Put back what `keep` returned."""
        of_torch, of_python, of_numpy, own = kept
        torch.set_rng_state(of_torch)
        if of_python is not None:
            random.setstate(of_python)
        if of_numpy is not None:
            import numpy

            numpy.random.set_state(of_numpy)
        if own is not None and self._generators is not None:
            self._generators.set_rng_state(own, *self._which)

    @contextmanager
    def replay(self, kept: Kept) -> Iterator[None]:
        """Draw the numbers that followed on a state again, and then go on as before."""
        now = self.keep()
        try:
            self.put_back(kept)
            yield
        finally:
            self.put_back(now)


def number_of(text: str) -> int:
    """Return a seed that is a function of a text, with 64 bits of its SHA-256."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


def seed_by(text: str, device: torch.device | None = None) -> None:
    """Seed all random numbers of the CPU, and those of a device, by a text."""
    number = number_of(text)
    torch.default_generator.manual_seed(number)
    random.seed(number)
    if numpy := sys.modules.get("numpy"):  # what was never imported draws nothing
        numpy.random.seed(number % 2**32)
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)


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
    states, put_back = RandomStates(device), keep_buffers(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        with states.replay(states.keep()):
            yield
    finally:
        put_back()
        for module, mode in modes:
            module.training = mode


def keep_buffers(*models: nn.Module) -> Callable[[], None]:
    """Keep the buffers of models; return a function that puts them back.

    A pass may write into a buffer, as BatchNorm's does, or put another tensor there:
    afterwards each is the same tensor again, with the same bits.
    """
    modules = [module for model in models for module in model.modules()]
    places = [(of, name) for of in map(buffers_of, modules) for name in of]
    kept = [
        # A lazy module has buffers without values before it is called.
        (of, name, x, None if x is None or is_lazy(x) else x.detach().clone())
        for (of, name) in places
        for x in [of[name]]
    ]

    @torch.no_grad()
    def put_back() -> None:
        for of, name, buffer, before in kept:
            if buffer is not None and before is not None:
                buffer.copy_(before)
            of[name] = buffer

    return put_back
