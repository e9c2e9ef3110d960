"""Who watches a training: the one seam by which instruments reach the loop."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor


class Watch(Protocol):
    """One step, while a watcher watches it."""

    @property
    def readings(self) -> Mapping[str, float]:
        """What was read of the step, complete when it is over."""
        ...

    def read_shard(self, num_samples: int) -> float:
        """Measure what the backward pass of one shard alone can tell; NaN for nothing.

        Args:
            num_samples: The samples in the shard, whose mean loss was differentiated.
        """
        ...

    def note_shards(self, mean: float) -> None:
        """Take in the mean over all samples of what was read of their shards."""
        ...

    def before_update(
        self, loss: float, num_samples: int, clip_factor: float | None
    ) -> None:
        """Look at the complete gradient, before the update uses it.

        Args:
            loss: The mean loss of the step's batch.
            num_samples: The samples in the batch.
            clip_factor: What clipping multiplied the gradient by; None without any.
        """
        ...


class Watcher(Protocol):
    """Somebody who watches the steps of a training, and never changes them."""

    def step(
        self,
        number: int,
        loss_of: Callable[[], Tensor],
        *,
        is_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> AbstractContextManager[Watch]:
        """Enclose a step, from before its gradients are reset to after its update.

        Args:
            number: The step, from 1.
            loss_of: Computes the mean loss of the step's batch in full precision.
            is_last: Whether it is the last step of the training.
            autocast: The dtype of the step's own forward pass, where it is another.
        """
        ...


class _Unwatched:
    """The watcher, and the watch of every step, where nobody watches."""

    readings: Mapping[str, float] = MappingProxyType({})

    def step(self, *_: object, **__: object) -> AbstractContextManager[Watch]:
        return nullcontext(self)

    def read_shard(self, num_samples: int) -> float:
        return math.nan

    def note_shards(self, mean: float) -> None:
        pass

    def before_update(
        self, loss: float, num_samples: int, clip_factor: float | None
    ) -> None:
        pass


UNWATCHED = _Unwatched()
