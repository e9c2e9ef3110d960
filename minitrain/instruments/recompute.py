"""The loss of a step's own batch, computed again and leaving no trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minitrain.randomness import RandomStates

LossOf = Callable[[], Tensor]


class Replay:
    """The loss of one batch, computed again as in the training step, leaving no trace.

    `loss_of()` is the mean loss of the batch under the model's present parameters. Each
    call draws the random numbers that followed when the `Replay` was made, so that a
    dropout mask is the same; random states and buffers, such as BatchNorm's running
    statistics, are put back afterwards, bit for bit.
    """

    def __init__(
        self, model: nn.Module, loss_of: LossOf, autocast: torch.dtype | None = None
    ) -> None:
        self._model, self._loss_of, self._autocast = model, loss_of, autocast
        self._device = next(model.parameters()).device
        self._random = RandomStates(self._device)
        self._start = self._random.state_dict()
        self.rounding = 0.0
        """The relative difference below which two losses are not told apart: 50 times
        their spacing, or 4 times that of an autocast forward pass. On MNIST the error
        of a loss is up to 4 and 0.6 times as large as that."""

    @torch.no_grad()
    def __call__(self) -> float:
        with self.untouched():
            return self.loss().item()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Put random states and buffers back, whatever happens to them inside."""
        random = self._random.state_dict()
        buffers = [(b, b.detach().clone()) for b in self._model.buffers()]
        try:
            self._random.load_state_dict(self._start)
            yield
        finally:
            self._random.load_state_dict(random)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def loss(self) -> Tensor:
        """The loss with its graph, drawing random numbers as they come."""
        if self._autocast is None:
            loss = self._loss_of()
            self.rounding = 50 * torch.finfo(loss.dtype).eps
            return loss
        with torch.autocast(self._device.type, self._autocast):
            loss = self._loss_of()
        self.rounding = 4 * torch.finfo(self._autocast).eps
        return loss
