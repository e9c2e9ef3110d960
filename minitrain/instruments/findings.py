"""What the readings of a run mean, in plain sentences with their evidence."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from minitrain import tags
from minitrain.instruments.bad_samples import describe_bad_samples
from minitrain.instruments.evidence import Evidence, Verdict
from minitrain.instruments.rules import (
    CAUSES,
    NO_GRADIENT,
    NOT_FINITE,
    NOT_LEARNED,
    RULES,
    WRONG_GRADIENT,
)
from minitrain.instruments.rules_of_classes import describe_unlearned_class
from minitrain.instruments.sample_checks import check_scale
from minitrain.instruments.truth import Slope


class Finding(NamedTuple):
    """Something that a run should not go on with unnoticed."""

    kind: str
    step: int
    text: str
    """What was seen, with numbers."""
    advice: str
    """What to try, with the names of settings where there are any."""

    def __str__(self) -> str:
        return f"{self.kind} at step {self.step}: {self.text} {self.advice}"


TELLING = (
    tags.GLOBAL_UPDATE_NORM,
    tags.TEST_LOSS,
    tags.VALIDATION_LOSS,
    tags.LEFT_OVER,
)
"""With the values of these the rules are asked."""


class Findings:
    """Takes in the readings of a run, step by step, and says what they mean.

    >>> findings = Findings(num_steps=100, batch_size=64, num_classes=10)
    >>> found = findings.check_inputs(mean=33.3, std=78.6)
    >>> [finding.kind for finding in found]
    ['inputs not normalized']

    Each finding is told once. There is no state but what `state_dict` holds, so that a
    run that is continued finds what it would have found.

    Args:
        num_steps: Steps of the whole run.
        batch_size: Samples in the batch of a step.
        guessing: The loss of outputs that are the same for every sample, as
            `loss_of_guessing` gives it; what needs it is silent without.
        num_classes: Classes that the model tells apart, if it tells classes apart.
        clip_norm: The norm that gradients are clipped to, if they are.
        momentum: That of the updates, where it is known.
        as_flags: Whether advice names flags of `scripts/train.py`, and not arguments.
    """

    def __init__(
        self,
        *,
        num_steps: int,
        batch_size: int,
        guessing: float | None = None,
        num_classes: int | None = None,
        clip_norm: float | None = None,
        momentum: float | None = None,
        as_flags: bool = False,
    ) -> None:
        self.found: list[Finding] = []
        self._evidence = Evidence(
            num_steps=num_steps,
            batch_size=batch_size,
            guessing=guessing if guessing and guessing > 0 else None,
            num_classes=num_classes,
            clip_norm=clip_norm,
            momentum=momentum,
            as_flags=as_flags,
        )

    def take(self, found: Iterable[Finding]) -> list[Finding]:
        """Take in what was found elsewhere, as by `preflight`; return what is new."""
        new: list[Finding] = []
        for kind, step, text, advice in found:
            new += self._tell(step, kind, (text, advice))
        return new

    def check_inputs(self, mean: float, std: float) -> list[Finding]:
        """Look at the mean and the standard deviation of all inputs, at the start."""
        if (told := check_scale(mean, std)) is None:
            return []
        return self._tell(0, told[0], told[1:])

    def check_slopes(self, step: int, slopes: Mapping[str, Slope]) -> list[Finding]:
        """Look at a truth test: whether the gradient is that of the loss."""
        wrong = {name: slope for name, slope in slopes.items() if slope.is_wrong}
        if not wrong:
            return []
        silent = [name for name, slope in wrong.items() if slope.claimed == 0]
        if silent:
            text = (
                f"{', '.join(silent)}: the gradient is 0, but the loss changes, by "
                f"{abs(wrong[silent[0]].measured):.3g} per unit of distance."
            )
            advice = "Look for detach(), no_grad() or .data between it and the loss."
            return self._tell(step, NO_GRADIENT, (text, advice))
        name, slope = next(iter(wrong.items()))
        factor = slope.claimed / slope.measured if slope.measured else math.inf
        part = "the whole gradient" if name == tags.WHOLE else f"the gradient of {name}"
        text = (
            f"along {part} it promises a slope of {slope.claimed:.4g}, and the loss "
            f"shows {slope.measured:.4g}: {factor:.3g} times."
        )
        return self._tell(step, WRONG_GRADIENT, (text, _guess_origin(factor)))

    def check_confusion(
        self, step: int, counts: Tensor, losses: Tensor | None = None
    ) -> list[Finding]:
        """Look at what a test confuses, for a class that is not learned.

        Args:
            step: The last step before the test.
            counts: Counts [target, predicted], as of `confusion_matrix`.
            losses: The mean loss of each class, as of `losses_by_class`.
        """
        told = describe_unlearned_class(counts, losses, self._evidence.guessing)
        return self._tell(step, NOT_LEARNED, told)

    def note(self, step: int, values: Mapping[str, float]) -> list[Finding]:
        """Take in the values of a step, by their tags; return what is found in them.

        Steps without readings are left out.
        """
        self._evidence.note(step, values)
        found: list[Finding] = []
        if not values.keys().isdisjoint(TELLING):
            for kind, rule in RULES.items():
                if self._is_open(kind):
                    found += self._tell(step, kind, rule(self._evidence))
        return found

    def note_failure(
        self, step: int, text: str, batch: Any = None, data: Any = None
    ) -> list[Finding]:
        """Take in that loss or gradient of a step were not finite.

        Args:
            step: The step, which was not made.
            text: What was not finite, in a sentence.
            batch: The samples of the step, in any form, where they are at hand: if one
                of them is not finite, that is the cause.
            data: All samples in their order, where they are in memory.
        """
        if (bad := describe_bad_samples(batch, data)) is not None:
            advice = "Remove such samples, or repair what they are made by."
            return self._tell(step, NOT_FINITE, (f"{text} {bad}.", advice))
        setting = self._evidence.setting
        advice = f"Try a tenth of {setting('lr')}, or {setting('clip_norm', '1')}."
        return self._tell(step, "learning rate too large", (text, advice))

    def state_dict(self) -> dict[str, Any]:
        """Return the readings and what was found in them, as plain values."""
        found = [list(finding) for finding in self.found]
        return self._evidence.state_dict() | {"found": found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as if there had been no interruption."""
        self._evidence.load_state_dict(state_dict)
        self.found = [Finding(*finding) for finding in state_dict["found"]]

    def _is_open(self, kind: str) -> bool:
        """Return whether neither this was found nor anything it may follow from."""
        known = {finding.kind for finding in self.found}
        return not known & {kind, *CAUSES.get(kind, ())}

    def _tell(self, step: int, kind: str, verdict: Verdict) -> list[Finding]:
        if verdict is None or not self._is_open(kind):
            return []
        finding = Finding(kind, step, *verdict)
        self.found.append(finding)
        return [finding]


def _guess_origin(factor: float) -> str:
    """Return what usually makes a gradient so many times too large.

    >>> _guess_origin(65536.0)
    'It is still scaled: unscale it before the step.'
    """
    if factor > 100:
        return "It is still scaled: unscale it before the step."
    if 1.2 < factor < 4:
        return "It has added up: call zero_grad() before every backward pass."
    if 0 < factor < 0.8:
        return "Look for a wrong divisor, in gradient accumulation for example."
    return "Look at hooks and custom backward functions that it passes through."
