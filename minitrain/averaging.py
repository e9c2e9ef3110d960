"""A moving average of the weights, which often predicts better than the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a model's parameters and buffers.

    After every step average <- decay * average + (1 - decay) * theta, from the weights
    at the start. What is not a floating point number, a counter say, is as it is now.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.weight.data.fill_(0.0)
    >>> average = WeightAverage(model, decay=0.75)
    >>> _ = model.weight.data.fill_(4.0)
    >>> average.update()
    >>> with average.in_place():
    ...     model.weight.item()
    1.0
    >>> model.weight.item()
    4.0

    Args:
        model: Whose weights are averaged; it is not changed.
        decay: The share of the average that a step keeps, such as 0.999.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging,
    1992, for the idea.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay = {decay}: must be between 0 and 1")
        self.decay = decay
        self._model = model
        self._average = {k: x.detach().clone() for k, x in self._tensors.items()}

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """The model's own, as they are now: a pass may put another tensor in place."""
        return self._model.state_dict(keep_vars=True)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        for name, tensor in self._tensors.items():
            average = self._average[name]
            if average.is_floating_point() or average.is_complex():
                average.lerp_(tensor, 1 - self.decay)
            else:
                average.copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights, and afterwards its own, bit for bit."""
        own = {name: x.detach().clone() for name, x in self._tensors.items()}
        try:
            self._fill(self._average)
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights, by the names of the model's own."""
        return dict(self._average)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from averaged weights."""
        for name, average in self._average.items():
            average.copy_(state_dict[name])
