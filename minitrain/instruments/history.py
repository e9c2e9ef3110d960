"""The readings of a run so far, and what the rules ask of them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from minitrain import tags


class History:
    """Every value of every tag so far, and what is known of the run from the start.

    Args:
        num_steps: Steps of the whole run.
        batch_size: Samples in the batch of a step.
        num_classes: Classes that the model tells apart.
        clip_norm: The norm that gradients are clipped to, if they are.
    """

    def __init__(
        self,
        *,
        num_steps: int,
        batch_size: int,
        num_classes: int,
        clip_norm: float | None = None,
    ) -> None:
        self.num_steps, self.batch_size = num_steps, batch_size
        self.num_classes, self.clip_norm = num_classes, clip_norm
        self.step = 0
        """The last step that anything was noted of."""
        self._series: dict[str, list[float]] = {}

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Take in the values of a step."""
        self.step = step
        for tag, value in values.items():
            self._series.setdefault(tag, []).append(value)

    def values(self, tag: str) -> list[float]:
        """Return the values of a tag so far, those that are numbers."""
        return [x for x in self._series.get(tag, ()) if not math.isnan(x)]

    def layers(self, quantity: str, part: str) -> dict[str, list[float]]:
        """Return the values of every layer's weight or bias, in the layers' order."""
        start, end = tags.tag(quantity, ""), "." + part
        return {
            tag.removeprefix(start).removesuffix(end): values
            for tag, values in self._series.items()
            if tag.startswith(start) and tag.endswith(end)
        }

    def is_past(self, share: float) -> bool:
        """Return whether this share of the run is over."""
        return self.step >= share * self.num_steps

    def is_stuck(self) -> bool:
        """Return whether the loss fell by less than 2 %, first third to last."""
        losses = self.values(tags.TRAIN_LOSS)
        third = len(losses) // 3
        return (
            self.is_past(0.5)
            and third >= 3
            and mean(losses[-third:]) > 0.98 * mean(losses[:third])
        )

    def state_dict(self) -> dict[str, Any]:
        return {"series": self._series}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._series = {tag: [*values] for tag, values in state_dict["series"].items()}


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)
