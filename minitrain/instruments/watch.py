"""One step while it is watched: what the loop tells, and what is read."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from minitrain.instruments.cadence import Plan
from minitrain.instruments.observation import Observation, Readings
from minitrain.instruments.recompute import BatchLoss


class Watch:
    """One step while it is watched."""

    def __init__(
        self,
        plan: Plan,
        same: BatchLoss,
        full: BatchLoss,
        observe: Callable[["Watch", float, int, float | None], Observation],
        read_samples: Callable[["Watch", int], float],
    ) -> None:
        self.readings: Readings = {}
        """Tags and values, complete when the block is left."""
        self.plan = plan
        self.same, self.full = same, full
        """The loss of the batch as the loop computes it, and in full precision."""
        self.observation: Observation | None = None
        """The step, from when its gradient is complete."""
        self.clip_factor: float | None = None
        """What the loop multiplied the gradient by, where it told that it clips."""
        self.mean_square: float | None = None
        """Of the gradients of all samples, where they were measured shard by shard."""
        self._observe, self._read_samples = observe, read_samples

    def read_shard(self, num_samples: int) -> float:
        """Return the mean square of the samples' gradients in a shard, or NaN."""
        return self._read_samples(self, num_samples)

    def note_shards(self, mean: float) -> None:
        """Take in the mean over all shards."""
        self.mean_square = mean

    def note_clipping(self, factor: float) -> None:
        """Take in what a loop of one's own multiplied the gradient by."""
        self.clip_factor = factor

    def before_update(
        self, loss: float, num_samples: int, clip_factor: float | None
    ) -> None:
        """Take in what the loop tells, and read the complete gradient."""
        self.observation = self._observe(self, loss, num_samples, clip_factor)


class Unread:
    """The watch of a step of which nothing is read, at next to no cost."""

    readings: Mapping[str, float] = MappingProxyType({})

    def __init__(self, pass_over: Callable[[float | None], None]) -> None:
        self._pass_over = pass_over

    def note_clipping(self, factor: float) -> None:
        self._pass_over(factor)

    def read_shard(self, num_samples: int) -> float:
        return math.nan

    def note_shards(self, mean: float) -> None:
        pass

    def before_update(
        self, loss: float, num_samples: int, clip_factor: float | None
    ) -> None:
        self._pass_over(clip_factor)
