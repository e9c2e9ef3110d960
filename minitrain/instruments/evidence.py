"""The readings of a run so far, and what the rules ask of them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minitrain import tags
from minitrain.instruments.remedies import setting


@dataclass(kw_only=True)
class Evidence:
    """Every value of every tag so far, and what is known of the run from the start."""

    num_steps: int
    """Steps of the whole run."""
    batch_size: int
    """Samples in the batch of a step."""
    guessing: float | None = None
    """The loss of outputs that are the same for every sample, where it is known."""
    num_classes: int | None = None
    """Classes that the model tells apart, if it tells classes apart."""
    clip_norm: float | None = None
    """The norm that gradients are clipped to, if they are."""
    momentum: float | None = None
    """That of the updates, where it is known."""
    as_flags: bool = False
    """Whether advice names flags of the runner, and not arguments."""
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

    def losses(self, part: str = "train") -> list[float]:
        """Return the losses of a part so far, or none where one of them is negative.

        Rules look at ratios of losses. Where 0 is not the least, as of likelihoods of
        densities, these say nothing.
        """
        values = self.values(tags.tag(tags.LOSS, part))
        return [] if min(values, default=0) < 0 else values

    def layers(self, quantity: str, part: str) -> dict[str, list[float]]:
        """Return the values of every layer's weight or bias, in the layers' order."""
        start, end = tags.tag(quantity, ""), "." + part
        return {
            tag.removeprefix(start).removesuffix(end): values
            for tag, values in self._series.items()
            if tag.startswith(start) and tag.endswith(end)
        }

    def hidden_layers(self) -> dict[str, list[float]]:
        """Return the shares of units without gradient, of all layers but the last.

        Where a unit gets no gradient, nor does its bias; the last layer has no
        activation.
        """
        return dict([*self.layers(tags.ZERO_SHARE, "bias").items()][:-1])

    def is_past(self, share: float) -> bool:
        """Return whether this share of the run is over."""
        return self.step >= share * self.num_steps

    def late_loss(self) -> float:
        """Return the mean loss of the last third of the readings."""
        losses = self.values(tags.TRAIN_LOSS)
        return mean(losses[-max(1, len(losses) // 3) :])

    def is_stuck(self) -> bool:
        """Return whether the loss fell by less than 2 %, first third to last.

        A run that is at its goal before the first third ends is not stuck.
        """
        losses = self.losses()
        third = len(losses) // 3
        if not self.is_past(0.5) or third < 3:
            return False
        late = mean(losses[-third:])
        return late > 0.98 * mean(losses[:third]) and late > 0.7 * losses[0]

    def has_learned(self, share: float) -> bool:
        """Return whether the last losses are below this share of the first one.

        Where the loss of guessing is known and lower, it counts in the first one's
        place. Where no loss is known, nobody can say that nothing was learned.
        """
        losses = self.losses()
        if not losses:
            return True
        start = losses[0] if self.guessing is None else min(losses[0], self.guessing)
        return mean(losses[-3:]) < share * start

    def setting(self, name: str, value: str = "") -> str:
        """Return what a setting is called here, with a value or without."""
        return setting(name, value, as_flag=self.as_flags)

    def state_dict(self) -> dict[str, Any]:
        return {"series": self._series}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._series = {tag: [*values] for tag, values in state_dict["series"].items()}


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


Verdict = tuple[str, str] | None
"""What was seen, with numbers, and what to try; None where there is nothing to say."""
