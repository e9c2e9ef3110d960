"""What the readings say of the learning: whether the loss falls, and what it costs."""

import math
import statistics

from minitrain import tags
from minitrain.instruments.evidence import Evidence, Verdict, mean


def batch_too_small(run: Evidence) -> Verdict:
    """Noise drowns the gradient of a batch for most of the run.

    At the end of a good run it always does: when little is left to learn.
    """
    shares = run.values(tags.SIGNAL_SHARE)
    if not run.is_past(0.8) or run.is_stuck() or len(shares) < 6:
        return None
    if run.guessing is not None and run.late_loss() < 0.03 * run.guessing:
        return None  # little is left to learn
    usual = sorted(shares)[2 * len(shares) // 3]
    # A noise scale of 9 batches. The first estimates are rough, the last one is the
    # mean of many, and must be clearly below.
    if usual > 1 / 10 or shares[-1] > 1 / 24:
        return None
    size = run.setting("batch_size", str(16 * run.batch_size))
    return (
        f"for two thirds of the run at most {usual:.1%} of the squared norm of a "
        f"batch's gradient was signal: {run.batch_size} samples are few.",
        f"Try {size}, or {run.setting('accumulate', '16')}.",
    )


def batch_too_large(run: Evidence) -> Verdict:
    """The gradient would be as sure with a tenth of the samples."""
    shares, scales = run.values(tags.SIGNAL_SHARE), run.values(tags.NOISE_SCALE)
    if not run.is_past(0.5) or len(shares) < 3 or min(shares) < 10 / 11:
        return None
    return (
        f"the gradient noise scale was never above {max(scales):.0f} samples, and a "
        f"batch has {run.batch_size}: most of the work is wasted.",
        f"Try {run.setting('batch_size', str(_power_of_two(2 * max(scales))))}.",
    )


def _power_of_two(value: float) -> int:
    return 2 ** max(0, round(math.log2(max(value, 1))))


def overfitting(run: Evidence) -> Verdict:
    """The loss on other data rises, and stays so, while that in training is low."""
    part = "validation" if run.values(tags.VALIDATION_LOSS) else "test"
    tests, losses = run.losses(part), run.losses()
    # A single one may be high in any run: the last three must be.
    if len(tests) < 3 or not losses or min(tests[-3:]) <= 1.1 * min(tests):
        return None
    train = mean(losses[-max(1, len(losses) // len(tests)) :])
    if train > 0.5 * tests[-1]:
        return None
    return (
        f"the {part} loss rose from {min(tests):.3g} to {tests[-1]:.3g}, while the "
        f"training loss is {train:.3g}.",
        f"Try more data, dropout in the model, or fewer {run.setting('epochs')}.",
    )


def labels_without_signal(run: Evidence) -> Verdict:
    """The loss stays at that of guessing, though every layer gets a gradient."""
    accuracies = run.values(tags.VALIDATION_ACCURACY) or run.values(tags.TEST_ACCURACY)
    if run.guessing is None or _gets_little(run):
        return None
    if not (run.is_stuck() or _has_come_to_rest(run)):
        return None
    late = run.late_loss()
    if abs(late / run.guessing - 1) > 0.05:
        return None
    if run.num_classes and max(accuracies, default=0) > 1.5 / run.num_classes:
        return None
    among = f" among {run.num_classes} classes" if run.num_classes else ""
    return (
        f"the loss stays at {late:.3g}, and that of guessing{among} is "
        f"{run.guessing:.3g}.",
        "Look whether the targets belong to the inputs.",
    )


def _has_come_to_rest(run: Evidence) -> bool:
    """Return whether the loss fell at first, and not in the last half of the run."""
    losses = run.losses()
    if not run.is_past(0.95) or len(losses) < 12:
        return False
    late = losses[len(losses) // 2 :]
    middle = len(late) // 2
    return mean(late[middle:]) > 0.97 * mean(late[:middle])


def flat_plateau(run: Evidence) -> Verdict:
    """The loss does not fall, because there is next to no gradient."""
    norms, losses = run.values(tags.GLOBAL_GRAD_NORM), run.losses()
    if not run.is_stuck() or not norms:
        return None
    norm = statistics.median(norms[-(len(norms) // 3) :])
    if norm > 0.05 * losses[-1] and not _gets_little(run):
        return None
    return (
        f"the loss stays at {losses[-1]:.3g}, and |grad L| is {norm:.2g}"
        + (", none of it in most weights." if _gets_little(run) else "."),
        "Look at the initial weights: all equal or saturated, they stay so.",
    )


def steep_plateau(run: Evidence) -> Verdict:
    """The loss does not fall, though there is a gradient to follow."""
    norms, losses = run.values(tags.GLOBAL_GRAD_NORM), run.losses()
    if not run.is_stuck() or not norms:
        return None
    return (
        f"the loss stays at {losses[-1]:.3g}, though |grad L| is {norms[-1]:.2g}.",
        "Unclear: steps that are too long or too short both look so. Try "
        f"{run.setting('lr')} up and down by ten.",
    )


def _gets_little(run: Evidence) -> bool:
    """Return whether more than half of the weights get a gradient of exactly 0."""
    shares = [values[-1] for values in run.layers(tags.ZERO_SHARE, "weight").values()]
    return bool(shares) and statistics.median(shares) > 0.5
