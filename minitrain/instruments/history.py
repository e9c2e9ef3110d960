"""The readings of a run so far, and what the rules ask of them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minitrain import tags


@dataclass(kw_only=True)
class History:
    """Every value of every tag so far, and what is known of the run from the start."""

    num_steps: int
    """Steps of the whole run."""
    batch_size: int
    """Samples in the batch of a step."""
    num_classes: int
    """Classes that the model tells apart."""
    clip_norm: float | None = None
    """The norm that gradients are clipped to, if they are."""
    step: int = 0
    """The last step that anything was noted of."""
    _series: dict[str, list[float]] = field(default_factory=dict)

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
