"""What the readings of a run mean, in plain sentences with their evidence.

A rule is a function of the readings so far. It gives a sentence and what to try, or
nothing; each finding is told once. A finding may follow from another one: the rules
stand in the order of causes, and what follows from a finding is not looked for.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from minitrain.instruments.truth import Slope


class Finding(NamedTuple):
    """Something that a run should not go on with unnoticed."""

    kind: str
    step: int
    text: str
    """What was seen, with numbers."""
    advice: str
    """What to try, as a flag where there is one."""

    def __str__(self) -> str:
        return f"{self.kind} at step {self.step}: {self.text} {self.advice}"


Said = tuple[str, str] | None


class Findings:
    """Takes in the readings of a run, step by step, and says what they mean.

    >>> findings = Findings(num_steps=100, batch_size=64, num_classes=10)
    >>> found = findings.check_inputs(mean=33.3, std=78.6)
    >>> [finding.kind for finding in found]
    ['inputs not normalised']

    `values` are tags and numbers as on the dashboard; in between steps without
    readings are left out. There is no other state: `state_dict` holds it all, so that a
    run that is continued finds what it would have found.
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
        self.found: list[Finding] = []
        self._series: dict[str, list[float]] = {}
        self._step = 0

    def check_inputs(self, mean: float, std: float) -> list[Finding]:
        """Look at the mean and the standard deviation of all inputs, at the start."""
        # A linear layer's initial weights expect inputs of about unit size.
        if 0.2 <= std <= 5 and abs(mean) <= 2 * std:
            return []
        text = f"the inputs have mean {mean:.3g} and standard deviation {std:.3g}."
        advice = "Bring them to mean 0 and standard deviation 1: (x - mean) / std."
        return self._tell("inputs not normalised", (text, advice))

    def check_slopes(self, step: int, slopes: Mapping[str, Slope]) -> list[Finding]:
        """Look at a truth test: whether the gradient is that of the loss."""
        self._step = step
        wrong = {name: slope for name, slope in slopes.items() if slope.is_wrong}
        silent = [name for name, slope in wrong.items() if slope.claimed == 0]
        if silent:
            name = silent[0]
            return self._tell(
                "block without gradient",
                (
                    f"{', '.join(silent)}: the gradient is 0, but the loss changes, by "
                    f"{abs(wrong[name].measured):.3g} per unit of length.",
                    "Look for detach(), no_grad() or .data between it and the loss.",
                ),
            )
        if wrong:
            name, slope = next(iter(wrong.items()))
            factor = slope.claimed / slope.measured if slope.measured else math.inf
            return self._tell(
                "wrong gradient",
                (
                    f"along {_part(name)} it promises a slope of {slope.claimed:.4g}, "
                    f"and the loss shows {slope.measured:.4g}: {factor:.3g} times.",
                    _origin(factor),
                ),
            )
        return []

    def note(self, step: int, values: Mapping[str, float]) -> list[Finding]:
        """Take in the values of a step; the findings that are new with them."""
        self._step = step
        for tag, value in values.items():
            self._series.setdefault(tag, []).append(value)
        told: list[Finding] = []
        if "update_norm/global" in values or "loss/test" in values:
            for kind, rule in RULES.items():
                told += self._tell(kind, rule(self) if self._is_open(kind) else None)
        return told

    def note_failure(self, step: int, text: str) -> list[Finding]:
        """Take in that loss or gradient were not finite."""
        self._step = step
        advice = "Try a tenth of --optimizer.lr, or --clip-norm 1."
        return self._tell("learning rate too large", (text, advice))

    def state_dict(self) -> dict[str, Any]:
        found = [list(finding) for finding in self.found]
        return {"series": self._series, "found": found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._series = {tag: [*values] for tag, values in state_dict["series"].items()}
        self.found = [Finding(*finding) for finding in state_dict["found"]]

    def _is_open(self, kind: str) -> bool:
        """Whether this was not found yet, nor anything that it may follow from."""
        known = {finding.kind for finding in self.found}
        return not known & {kind, *CAUSES.get(kind, ())}

    def _tell(self, kind: str, said: Said) -> list[Finding]:
        if said is None or not self._is_open(kind):
            return []
        finding = Finding(kind, self._step, *said)
        self.found.append(finding)
        return [finding]

    # What the rules ask

    def all(self, tag: str) -> list[float]:
        """The values of a tag so far, those that are numbers."""
        return [x for x in self._series.get(tag, ()) if not math.isnan(x)]

    def layers(self, quantity: str, part: str) -> dict[str, list[float]]:
        """The values of every layer's weight or bias, in the order of the layers."""
        start, end = quantity + "/", "." + part
        return {
            tag.removeprefix(start).removesuffix(end): values
            for tag, values in self._series.items()
            if tag.startswith(start) and tag.endswith(end)
        }

    def is_past(self, share: float) -> bool:
        """Whether this share of the run is over."""
        return self._step >= share * self.num_steps

    def is_stuck(self) -> bool:
        """Whether the loss has not fallen by 2 % from the first third to the last."""
        losses = self.all("loss/train")
        third = len(losses) // 3
        return (
            self.is_past(0.5)
            and third >= 3
            and _mean(losses[-third:]) > 0.98 * _mean(losses[:third])
        )


def learning_rate_too_large(run: Findings) -> Said:
    """Steps beyond the stable limit, or a loss above that of the start."""
    margins, losses = run.all("audit/margin"), run.all("loss/train")
    above = [margin for margin in margins if margin > 1]
    if len(above) >= 2:
        text = f"{len(above)} of {len(margins)} audited steps went beyond the stable "
        text += f"limit, by up to {max(above):.3g} times."
    elif len(losses) > 5 and (late := _highest(losses[1:], 5)) > 1.5 * losses[0]:
        text = f"the loss rose from {losses[0]:.3g} to {late:.3g}."
    elif died := [name for name, shares in _hidden(run).items() if _have_died(shares)]:
        text = f"most units of {', '.join(died)} have died since the start."
    else:
        return None
    return text, "Try a tenth of --optimizer.lr, or --schedule.warmup 500."


def clipped(run: Findings) -> Said:
    """Clipping that sets the length of nearly every step, and a small one."""
    shares, norms = run.all("clip/fraction"), run.all("grad_norm/global")
    if run.clip_norm is None or len(shares) < 3 or _mean(shares[1:]) < 0.95:
        return None
    times = statistics.median(norms) / run.clip_norm
    if times < 10:
        return None
    return (
        f"{_mean(shares[1:]):.0%} of the steps are clipped, to 1/{times:.3g} of their "
        "length at the median.",
        f"Try --clip-norm {statistics.median(norms):.2g}.",
    )


def learning_rate_too_small(run: Findings) -> Said:
    """Updates that are next to nothing against the parameters, all the time."""
    ratios, losses = run.all("update_ratio/global"), run.all("loss/train")
    # With a useful learning rate the largest is about 1e-3.
    if not run.is_past(0.5) or len(ratios) < 3 or max(ratios) > 2e-4:
        return None
    if _mean(losses[-3:]) < 0.5 * losses[0]:
        return None  # it gets there all the same
    return (
        f"no update was longer than {max(ratios):.2g} of the parameters.",
        f"Try --optimizer.lr {1e-3 / max(max(ratios), 1e-9):.1g} times as large.",
    )


def dead_units(run: Findings) -> Said:
    """Units that get no gradient from any sample of a batch."""
    for layer, values in _hidden(run).items():
        if len(values) >= 2 and min(values[-2:]) > 0.5:
            return (
                f"{min(values[-2:]):.0%} of the units of {layer} get no gradient from "
                "a whole batch.",
                "Look at the initial weights, and try a smaller --optimizer.lr.",
            )
    return None


def _hidden(run: Findings) -> dict[str, list[float]]:
    """The shares of units without gradient, of all layers but the last.

    Where a unit gets no gradient, nor does its bias; the last layer has no activation.
    """
    return dict([*run.layers("zero_share", "bias").items()][:-1])


def _have_died(shares: Sequence[float]) -> bool:
    return len(shares) >= 3 and shares[0] < 0.2 and min(shares[-2:]) > 0.5


def vanishing(run: Findings) -> Said:
    """A gradient that is lost on the way back to the first layer."""
    return _ratio_of_ends(run, lambda ratio: 0 < ratio < 1e-3, "of what reaches")


def exploding(run: Findings) -> Said:
    """A gradient that grows on the way back, or is large from the start."""
    norms, losses = run.all("grad_norm/global"), run.all("loss/train")
    guessing = math.log(run.num_classes)
    if losses and losses[0] > 5 * guessing:
        return (
            f"at the start the loss is {losses[0]:.3g}, and |grad L| {norms[0]:.3g}; "
            f"that of guessing is {guessing:.3g}.",
            "Look at the scale of the initial weights, and try --clip-norm 1.",
        )
    # At a usual start the gradient is about as large as the loss.
    if norms and losses and norms[0] > 20 * losses[0]:
        return (
            f"at the start |grad L| is {norms[0]:.3g}, with a loss of {losses[0]:.3g}.",
            "Look at the scale of the initial weights, and try --clip-norm 1.",
        )
    return _ratio_of_ends(run, lambda ratio: ratio > 100, "times what reaches")


def _ratio_of_ends(run: Findings, is_odd: Callable[[float], bool], how: str) -> Said:
    norms = run.layers("grad_norm", "weight")
    if len(norms) < 2 or len(next(iter(norms.values()))) < 3:
        return None
    first, last = next(iter(norms)), next(reversed(norms))
    below = _mean(norms[last])
    ratio = _mean(norms[first]) / below if below > 0 else math.nan
    if not is_odd(ratio):
        return None
    return (
        f"the gradient that reaches {first}.weight is {ratio:.2g} {how} {last}.weight.",
        "Look at the activations and the initial weights between them.",
    )


def batch_too_small(run: Findings) -> Said:
    """Noise that drowns the gradient of a batch for most of the run.

    At the end of a good run it always does: when little is left to learn.
    """
    shares = run.all("noise/signal_share")
    if not run.is_past(0.8) or run.is_stuck() or len(shares) < 6:
        return None
    usual = sorted(shares)[2 * len(shares) // 3]
    if usual > 1 / 16:  # a noise scale of 15 batches
        return None
    return (
        f"for two thirds of the run at most {usual:.1%} of the squared length of a "
        f"batch's gradient was signal: {run.batch_size} samples are few.",
        f"Try --data.batch-size {16 * run.batch_size}, or --accumulate 16.",
    )


def batch_too_large(run: Findings) -> Said:
    """A gradient that is as sure with a tenth of the samples."""
    shares, scales = run.all("noise/signal_share"), run.all("noise/scale")
    if not run.is_past(0.5) or len(shares) < 3 or min(shares) < 10 / 11:
        return None
    return (
        f"the gradient noise scale was never above {max(scales):.0f} samples, and a "
        f"batch has {run.batch_size}: most of the work is wasted.",
        f"Try --data.batch-size {_power_of_two(2 * max(scales))}.",
    )


def overfitting(run: Findings) -> Said:
    """A test loss that rises while the loss on the training data is low."""
    tests, losses = run.all("loss/test"), run.all("loss/train")
    if len(tests) < 3 or tests[-1] < 1.1 * min(tests):
        return None
    train = _mean(losses[-max(1, len(losses) // len(tests)) :])
    if train > 0.5 * tests[-1]:
        return None
    return (
        f"the test loss rose from {min(tests):.3g} to {tests[-1]:.3g}, while the "
        f"training loss is {train:.3g}.",
        "Try more data, --model.dropout 0.5, or fewer --epochs.",
    )


def labels_without_signal(run: Findings) -> Said:
    """A loss that stays at that of guessing, though every layer gets a gradient."""
    losses, accuracies = run.all("loss/train"), run.all("accuracy/test")
    chance, guessing = 1 / run.num_classes, math.log(run.num_classes)
    if not run.is_stuck() or _gets_little(run):
        return None
    late = _mean(losses[-(len(losses) // 3) :])
    if abs(late / guessing - 1) > 0.05 or max(accuracies, default=0) > 1.5 * chance:
        return None
    return (
        f"the loss stays at {late:.3g}, and that of guessing among {run.num_classes} "
        f"classes is {guessing:.3g}.",
        "Look whether the labels belong to the inputs.",
    )


def flat_plateau(run: Findings) -> Said:
    """A loss that does not fall, because there is next to no gradient."""
    norms, losses = run.all("grad_norm/global"), run.all("loss/train")
    if not run.is_stuck():
        return None
    norm = statistics.median(norms[-(len(norms) // 3) :])
    if norm > 0.05 * losses[-1] and not _gets_little(run):
        return None
    return (
        f"the loss stays at {losses[-1]:.3g}, and |grad L| is {norm:.2g}"
        + (", none of it in most weights." if _gets_little(run) else "."),
        "Look at the initial weights: all equal or saturated, they stay so.",
    )


def steep_plateau(run: Findings) -> Said:
    """A loss that does not fall, though there is a gradient to follow."""
    norms, losses = run.all("grad_norm/global"), run.all("loss/train")
    if not run.is_stuck():
        return None
    return (
        f"the loss stays at {losses[-1]:.3g}, though |grad L| is {norms[-1]:.2g}.",
        "Try another --optimizer.lr, up or down by ten.",
    )


def _gets_little(run: Findings) -> bool:
    """Whether more than half of the weights get a gradient of exactly 0."""
    shares = [values[-1] for values in run.layers("zero_share", "weight").values()]
    return bool(shares) and statistics.median(shares) > 0.5


RULES: dict[str, Callable[[Findings], Said]] = {
    "learning rate too large": learning_rate_too_large,
    "clipped to little": clipped,
    "learning rate too small": learning_rate_too_small,
    "exploding gradient": exploding,
    "dead units": dead_units,
    "vanishing gradient": vanishing,
    "labels without signal": labels_without_signal,
    "flat plateau": flat_plateau,
    "steep plateau": steep_plateau,
    "batch too small": batch_too_small,
    "batch too large": batch_too_large,
    "overfitting": overfitting,
}


_START = ("inputs not normalised", "block without gradient", "wrong gradient")


_STEPS = ("learning rate too large", "learning rate too small", "clipped to little")


_UNITS = ("exploding gradient", "dead units", "vanishing gradient")


CAUSES: dict[str, Sequence[str]] = {
    "learning rate too large": (*_START, "exploding gradient"),
    "learning rate too small": ("clipped to little", "inputs not normalised"),
    "exploding gradient": (*_START, "learning rate too large"),
    "dead units": (*_START, "learning rate too large", "exploding gradient"),
    "vanishing gradient": (*_START, *_STEPS, "exploding gradient", "dead units"),
    "labels without signal": (*_START, *_STEPS, *_UNITS, "flat plateau"),
    "flat plateau": (*_START, *_STEPS, *_UNITS, "labels without signal"),
    "steep plateau": (
        *_START, *_STEPS, *_UNITS, "labels without signal", "flat plateau",
        "batch too small",
    ),
    "batch too small": (*_START, *_STEPS, *_UNITS, "labels without signal",
                        "flat plateau"),
    "batch too large": (*_START, *_STEPS, *_UNITS, "flat plateau"),
    "overfitting": _START,
}  # fmt: skip
"""What a finding may follow from: then it is not told."""


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _highest(values: Sequence[float], width: int) -> float:
    """The highest mean of so many values in a row."""
    starts = range(len(values) - width + 1)
    return max(_mean(values[start : start + width]) for start in starts)


def _power_of_two(value: float) -> int:
    return 2 ** max(0, round(math.log2(max(value, 1))))


def _part(name: str) -> str:
    return "the whole gradient" if name == "all" else f"the gradient of {name}"


def _origin(factor: float) -> str:
    """What usually makes a gradient so many times too large.

    >>> _origin(65536.0)
    'It is still scaled: unscale it before the step.'
    """
    if factor > 100:
        return "It is still scaled: unscale it before the step."
    if 1.2 < factor < 4:
        return "It has added up: call zero_grad() before every backward pass."
    if 0 < factor < 0.8:
        return "Look for a wrong divisor, in gradient accumulation for example."
    return "Look at hooks and custom backward functions that it passes through."
