"""The rules: what the readings of a run may mean.

A rule is a function of the readings so far. It gives a sentence and what to try, or
nothing. A finding may follow from another one: the rules stand in the order of causes,
and what follows from a finding is not looked for.
"""

import math
import statistics
from collections.abc import Callable, Sequence

from minitrain import tags
from minitrain.instruments.history import History, mean

Verdict = tuple[str, str] | None
"""What was seen, with numbers, and what to try; None where there is nothing to say."""


def learning_rate_too_large(run: History) -> Verdict:
    """Steps go beyond the stable limit, or the loss rises above that of the start."""
    margins, losses = run.values(tags.AUDIT_MARGIN), run.values(tags.TRAIN_LOSS)
    above = [margin for margin in margins if margin > 1]
    if len(above) >= 2:
        text = f"{len(above)} of {len(margins)} audited steps went beyond the stable "
        text += f"limit, by up to {max(above):.3g} times."
    elif len(losses) > 5 and (late := _highest(losses[1:], 5)) > 1.5 * losses[0]:
        text = f"the loss rose from {losses[0]:.3g} to {late:.3g}."
    elif dead := [n for n, zeros in _hidden_layers(run).items() if _have_died(zeros)]:
        text = f"most units of {', '.join(dead)} have died since the start."
    else:
        return None
    return text, "Try a tenth of --optimizer.lr, or --schedule.warmup 500."


def clipped_to_almost_nothing(run: History) -> Verdict:
    """Clipping sets the size of nearly every step, and a small one."""
    shares, norms = run.values(tags.CLIP_FRACTION), run.values(tags.GLOBAL_GRAD_NORM)
    if run.clip_norm is None or len(shares) < 3 or mean(shares[1:]) < 0.95:
        return None
    times = statistics.median(norms) / run.clip_norm
    if times < 10:
        return None
    return (
        f"{mean(shares[1:]):.0%} of the steps are clipped, to 1/{times:.3g} of their "
        "norm at the median.",
        f"Try --clip-norm {statistics.median(norms):.2g}.",
    )


def learning_rate_too_small(run: History) -> Verdict:
    """Updates are next to nothing against the parameters, all the time."""
    ratios, losses = run.values(tags.GLOBAL_UPDATE_RATIO), run.values(tags.TRAIN_LOSS)
    # With a useful learning rate the largest is about 1e-3.
    if not run.is_past(0.5) or len(ratios) < 3 or max(ratios) > 2e-4:
        return None
    if mean(losses[-3:]) < 0.5 * losses[0]:
        return None  # it gets there all the same
    return (
        f"no update was more than {max(ratios):.2g} of the parameters in norm.",
        f"Try --optimizer.lr {1e-3 / max(max(ratios), 1e-9):.1g} times as large.",
    )


def dead_units(run: History) -> Verdict:
    """Units get no gradient from any sample of a batch."""
    for layer, values in _hidden_layers(run).items():
        if len(values) >= 2 and min(values[-2:]) > 0.5:
            return (
                f"{min(values[-2:]):.0%} of the units of {layer} get no gradient from "
                "a whole batch.",
                "Look at the initial weights, and try a smaller --optimizer.lr.",
            )
    return None


def _hidden_layers(run: History) -> dict[str, list[float]]:
    """Return the shares of units without gradient, of all layers but the last.

    Where a unit gets no gradient, nor does its bias; the last layer has no activation.
    """
    return dict([*run.layers(tags.ZERO_SHARE, "bias").items()][:-1])


def _have_died(shares: Sequence[float]) -> bool:
    return len(shares) >= 3 and shares[0] < 0.2 and min(shares[-2:]) > 0.5


def vanishing_gradient(run: History) -> Verdict:
    """The gradient is lost on the way back to the first layer."""
    return _ratio_of_ends(run, lambda ratio: 0 < ratio < 1e-3, "of what reaches")


def exploding_gradient(run: History) -> Verdict:
    """The gradient grows on the way back, or is large from the start."""
    norms, losses = run.values(tags.GLOBAL_GRAD_NORM), run.values(tags.TRAIN_LOSS)
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


def _ratio_of_ends(run: History, is_odd: Callable[[float], bool], how: str) -> Verdict:
    norms = run.layers(tags.GRAD_NORM, "weight")
    if len(norms) < 2 or len(next(iter(norms.values()))) < 3:
        return None
    first, last = next(iter(norms)), next(reversed(norms))
    below = mean(norms[last])
    ratio = mean(norms[first]) / below if below > 0 else math.nan
    if not is_odd(ratio):
        return None
    return (
        f"the gradient that reaches {first}.weight is {ratio:.2g} {how} {last}.weight.",
        "Look at the activations and the initial weights between them.",
    )


def batch_too_small(run: History) -> Verdict:
    """Noise drowns the gradient of a batch for most of the run.

    At the end of a good run it always does: when little is left to learn.
    """
    shares = run.values(tags.SIGNAL_SHARE)
    if not run.is_past(0.8) or run.is_stuck() or len(shares) < 6:
        return None
    usual = sorted(shares)[2 * len(shares) // 3]
    if usual > 1 / 16:  # a noise scale of 15 batches
        return None
    return (
        f"for two thirds of the run at most {usual:.1%} of the squared norm of a "
        f"batch's gradient was signal: {run.batch_size} samples are few.",
        f"Try --data.batch-size {16 * run.batch_size}, or --accumulate 16.",
    )


def batch_too_large(run: History) -> Verdict:
    """The gradient would be as sure with a tenth of the samples."""
    shares, scales = run.values(tags.SIGNAL_SHARE), run.values(tags.NOISE_SCALE)
    if not run.is_past(0.5) or len(shares) < 3 or min(shares) < 10 / 11:
        return None
    return (
        f"the gradient noise scale was never above {max(scales):.0f} samples, and a "
        f"batch has {run.batch_size}: most of the work is wasted.",
        f"Try --data.batch-size {_power_of_two(2 * max(scales))}.",
    )


def overfitting(run: History) -> Verdict:
    """The test loss rises while the loss on the training data is low."""
    tests, losses = run.values(tags.TEST_LOSS), run.values(tags.TRAIN_LOSS)
    if len(tests) < 3 or tests[-1] < 1.1 * min(tests):
        return None
    train = mean(losses[-max(1, len(losses) // len(tests)) :])
    if train > 0.5 * tests[-1]:
        return None
    return (
        f"the test loss rose from {min(tests):.3g} to {tests[-1]:.3g}, while the "
        f"training loss is {train:.3g}.",
        "Try more data, --model.dropout 0.5, or fewer --epochs.",
    )


def labels_without_signal(run: History) -> Verdict:
    """The loss stays at that of guessing, though every layer gets a gradient."""
    losses, accuracies = run.values(tags.TRAIN_LOSS), run.values(tags.TEST_ACCURACY)
    chance, guessing = 1 / run.num_classes, math.log(run.num_classes)
    if not run.is_stuck() or _gets_little(run):
        return None
    late = mean(losses[-(len(losses) // 3) :])
    if abs(late / guessing - 1) > 0.05 or max(accuracies, default=0) > 1.5 * chance:
        return None
    return (
        f"the loss stays at {late:.3g}, and that of guessing among {run.num_classes} "
        f"classes is {guessing:.3g}.",
        "Look whether the labels belong to the inputs.",
    )


def flat_plateau(run: History) -> Verdict:
    """The loss does not fall, because there is next to no gradient."""
    norms, losses = run.values(tags.GLOBAL_GRAD_NORM), run.values(tags.TRAIN_LOSS)
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


def steep_plateau(run: History) -> Verdict:
    """The loss does not fall, though there is a gradient to follow."""
    norms, losses = run.values(tags.GLOBAL_GRAD_NORM), run.values(tags.TRAIN_LOSS)
    if not run.is_stuck():
        return None
    return (
        f"the loss stays at {losses[-1]:.3g}, though |grad L| is {norms[-1]:.2g}.",
        "Try another --optimizer.lr, up or down by ten.",
    )


def _gets_little(run: History) -> bool:
    """Return whether more than half of the weights get a gradient of exactly 0."""
    shares = [values[-1] for values in run.layers(tags.ZERO_SHARE, "weight").values()]
    return bool(shares) and statistics.median(shares) > 0.5


def _highest(values: Sequence[float], width: int) -> float:
    """Return the highest mean of so many values in a row."""
    starts = range(len(values) - width + 1)
    return max(mean(values[start : start + width]) for start in starts)


def _power_of_two(value: float) -> int:
    return 2 ** max(0, round(math.log2(max(value, 1))))


RULES: dict[str, Callable[[History], Verdict]] = {
    "learning rate too large": learning_rate_too_large,
    "gradient clipped to almost nothing": clipped_to_almost_nothing,
    "learning rate too small": learning_rate_too_small,
    "exploding gradient": exploding_gradient,
    "dead units": dead_units,
    "vanishing gradient": vanishing_gradient,
    "labels without signal": labels_without_signal,
    "flat plateau": flat_plateau,
    "steep plateau": steep_plateau,
    "batch too small": batch_too_small,
    "batch too large": batch_too_large,
    "overfitting": overfitting,
}

NOT_NORMALIZED = "inputs not normalized"
NO_GRADIENT = "block without gradient"
WRONG_GRADIENT = "wrong gradient"
START = (NOT_NORMALIZED, NO_GRADIENT, WRONG_GRADIENT)
"""What is found without a rule, in the inputs and by the truth test."""

_STEPS = (
    "learning rate too large",
    "learning rate too small",
    "gradient clipped to almost nothing",
)
_UNITS = ("exploding gradient", "dead units", "vanishing gradient")

CAUSES: dict[str, Sequence[str]] = {
    "learning rate too large": (*START, "exploding gradient"),
    "learning rate too small": (NOT_NORMALIZED, "gradient clipped to almost nothing"),
    "exploding gradient": (*START, "learning rate too large"),
    "dead units": (*START, "learning rate too large", "exploding gradient"),
    "vanishing gradient": (*START, *_STEPS, "exploding gradient", "dead units"),
    "labels without signal": (*START, *_STEPS, *_UNITS, "flat plateau"),
    "flat plateau": (*START, *_STEPS, *_UNITS, "labels without signal"),
    "steep plateau": (
        *START, *_STEPS, *_UNITS, "labels without signal", "flat plateau",
        "batch too small",
    ),
    "batch too small": (*START, *_STEPS, *_UNITS, "labels without signal",
                        "flat plateau"),
    "batch too large": (*START, *_STEPS, *_UNITS, "flat plateau"),
    "overfitting": START,
}  # fmt: skip
"""What a finding may follow from: then it is not told."""
