"""The loss of a step's own batch, computed again and leaving no trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minitrain.data_parallel import groups_of, mean_over, synchronization_kept
from minitrain.randomness import RandomStates, keep_buffers

LossOf = Callable[[], Tensor]
"""Computes the mean loss of a batch under the model's present parameters."""


class BatchLoss:
    """The loss of one batch, computed again as in the training step.

    Each call starts with the buffers, and draws the random numbers, of the moment when
    the `BatchLoss` was made, so that a dropout mask is the same. Buffers, such as
    BatchNorm's running statistics, and random states are put back afterwards, bit for
    bit.

    Args:
        model: The model, for its buffers.
        loss_of: Computes the loss.
        autocast: The dtype of the forward pass, where it is another.
        beside: Other models that the loss passes through, for their buffers.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_of: LossOf,
        autocast: torch.dtype | None = None,
        beside: Sequence[nn.Module] = (),
    ) -> None:
        self._models = (model, *beside)
        self._loss_of, self._autocast = loss_of, autocast
        self._groups = groups_of(model)
        self._device = next(model.parameters()).device
        self._random = RandomStates(self._device)
        self._start = self._random.keep()
        self._put_back_start = keep_buffers(*self._models)
        self._rounding = 0.0

    @torch.no_grad()
    def __call__(self) -> float:
        """Compute the loss, the mean over processes where the gradient is one."""
        with self.untouched():
            return mean_over(self._groups, self.loss()).item()

    def agree(self, *numbers: float) -> list[float]:
        """Return the means over the processes that share the loss, if there are others.

        What decides how often the loss is computed must be the same on all of them.
        """
        values = torch.tensor(numbers, dtype=torch.float64)
        return mean_over(self._groups, values, self._device).tolist()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Put random states and buffers back, whatever happens to them inside."""
        put_back = keep_buffers(*self._models)
        self._put_back_start()
        try:
            with self._random.replay(self._start), synchronization_kept(self._models):
                yield
        finally:
            put_back()

    def loss(self) -> Tensor:
        """Compute the loss with its graph, drawing random numbers as they come."""
        # On MNIST the error of a loss is up to 4 times the spacing of its numbers, and
        # 0.6 times that of an autocast forward pass: a wide margin over each.
        if self._autocast is None:
            loss = self._loss_of()
            self._rounding = 50 * torch.finfo(loss.dtype).eps
            return loss
        with torch.autocast(self._device.type, self._autocast):
            loss = self._loss_of()
        self._rounding = 4 * torch.finfo(self._autocast).eps
        return loss

    def resolution(self, loss: float, first_loss: float) -> float:
        """Return the difference below which two losses are not told apart.

        A tenth of the run's first loss counts at least: the rounding of a loss near
        zero is that of the larger numbers that it is the difference of. Known from the
        first call on.
        """
        return self._rounding * max(abs(loss), abs(first_loss) / 10)
