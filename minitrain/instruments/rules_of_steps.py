"""What the readings say of the steps: too long, too short, or turned by something."""

import itertools
import math
import statistics
from collections.abc import Sequence

from minitrain import tags
from minitrain.instruments.evidence import Evidence, Verdict, mean

LONG_MEMORY = 99
"""Steps that a momentum of 0.99 sums up; more are seldom of use."""


def gradient_not_reset(run: Evidence) -> Verdict:
    """The gradient of an earlier update was still there when a new one came."""
    if not run.values(tags.LEFT_OVER):
        return None
    return (
        "when the first gradient of the step came, that of the last update was still "
        "there, so that both add up.",
        "Call optimizer.zero_grad() before the backward passes of every step.",
    )


def samples_in_order(run: Evidence) -> Verdict:
    """The loss rises from batch to batch, though no step raises that of its own.

    Steps that are too long raise both. Where the samples come sorted, a step leaves its
    batch with a low loss, and the next ones come with a high one.
    """
    losses, gains = run.losses(), run.values(tags.AUDIT_DELIVERED)
    left = run.values(tags.AUDIT_LOSS)
    if run.batch_size < 16 or not losses or _excess(run) is None:
        return None  # losses of single samples differ in any order
    usual = losses[0] if run.guessing is None else min(losses[0], run.guessing)
    peak = max(range(len(losses)), key=losses.__getitem__)
    low, high, after = min(losses[: peak + 1]), losses[peak], min(losses[peak:])
    if low > 0.1 * usual or high < 2.5 * usual or min(gains, default=0) < -0.03 * usual:
        return None
    # Few audits see little: then the loss must have come down from a peak and risen
    # again, several times.
    has_seen = len(left) >= 2 and (after < usual or max(left[1:]) > usual)
    if not has_seen and _count_swings(losses, 0.1 * usual, usual) < 3:
        return None
    return (
        f"the loss of a batch was down to {low:.3g}, and that of a later one up to "
        f"{high:.3g}, but no audited step raised that of its own: the samples seem to "
        "come in an order.",
        f"Shuffle them; if they are shuffled, try a tenth of {run.setting('lr')}.",
    )


def _count_swings(losses: Sequence[float], low: float, high: float) -> int:
    """Return how often the losses went from below `low` to above `high`.

    >>> _count_swings([2.3, 0.1, 0.2, 3.0, 2.0, 0.1, 4.0], low=0.2, high=2.3)
    2
    """
    ends = [x > high for x in losses if x > high or x < low]
    return sum(after and not before for before, after in itertools.pairwise(ends))


def learning_rate_too_large(run: Evidence) -> Verdict:
    """Steps go beyond the stable limit, or the loss rises above that of the start."""
    evidence = _excess(run)
    if evidence is None or _memory(run) >= LONG_MEMORY:
        return None
    lr, warmup = run.setting("lr"), run.setting("warmup_steps", "500")
    return evidence, f"Try a tenth of {lr}, or {warmup}."


def momentum_too_large(run: Evidence) -> Verdict:
    """Steps are a sum over the whole run, or over many steps that do not descend."""
    memory, evidence = _memory(run), _excess(run)
    if memory > run.num_steps / 2 and memory >= LONG_MEMORY:
        evidence = evidence or f"the run has {run.num_steps}."
    elif memory < LONG_MEMORY or evidence is None:
        return None
    if not run.is_past(0.3):
        return None
    return (
        f"a step is a sum over the gradients of about {memory:.0f} steps, and "
        + evidence,
        f"Try {run.setting('momentum', '0.9')}, or a tenth of {run.setting('lr')}.",
    )


def _memory(run: Evidence) -> float:
    """Return over how many steps the momentum sums up: 1 / (1 - momentum)."""
    momentum = run.momentum or 0.0
    return 1 / (1 - momentum) if momentum < 1 else math.inf


def _excess(run: Evidence) -> str | None:
    """Say what shows that the steps are too long, if anything does."""
    margins, losses = run.values(tags.AUDIT_MARGIN), run.losses()
    # A little above the limit many a training stays, and learns.
    above = [margin for margin in margins if margin > 1.3]
    if len(above) >= 2:
        text = f"{len(above)} of {len(margins)} audited steps went beyond the stable "
        return text + f"limit, by up to {max(above):.3g} times."
    if len(losses) > 5 and (late := _highest(losses[1:], 5)) > 1.5 * losses[0]:
        return f"the loss rose from {losses[0]:.3g} to {late:.3g}."
    dead = [name for name, zeros in run.hidden_layers().items() if _have_died(zeros)]
    if dead:
        return f"most units of {', '.join(dead)} have died since the start."
    return None


def _have_died(shares: Sequence[float]) -> bool:
    return len(shares) >= 3 and shares[0] < 0.2 and min(shares[-2:]) > 0.5


def _highest(values: Sequence[float], width: int) -> float:
    """Return the highest mean of so many values in a row."""
    starts = range(len(values) - width + 1)
    return max(mean(values[start : start + width]) for start in starts)


def weight_decay_too_large(run: Evidence) -> Verdict:
    """Most of the gradient that the first updates use pulls to zero.

    Where a run has converged, the two parts balance each other: that is no fault.
    """
    shares = run.values(tags.DECAY_SHARE)
    if not run.is_past(0.25) or len(shares) < 3 or run.has_learned(0.1):
        return None
    early = shares[: max(3, len(shares) // 3)]
    if (usual := statistics.median(early)) < 0.5:
        return None
    return (
        f"the part of weight decay in the gradient that the first updates use is "
        f"{usual:.0%} at the median, and the loss is {run.late_loss():.3g}.",
        f"Try a hundredth of {run.setting('weight_decay')}.",
    )


def clipped_to_almost_nothing(run: Evidence) -> Verdict:
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
        f"Try {run.setting('clip_norm', f'{statistics.median(norms):.2g}')}.",
    )


def learning_rate_too_small(run: Evidence) -> Verdict:
    """Updates are next to nothing against the parameters, most of the time."""
    ratios, lrs = run.values(tags.GLOBAL_UPDATE_RATIO), run.values(tags.LR)
    if not run.is_past(0.5) or len(ratios) < 3 or run.has_learned(0.5):
        return None  # or it gets there all the same
    gone = sum(lr < 1e-3 * max(lrs) or lr == 0 for lr in lrs)
    if len(lrs) >= 3 and gone > 0.5 * len(lrs):
        return (
            f"the learning rate was next to 0 at {gone} of {len(lrs)} steps, and the "
            f"loss is {run.values(tags.TRAIN_LOSS)[-1]:.3g}.",
            "Look at the schedule: whether it counts the steps of the whole run.",
        )
    # With a useful learning rate the largest is about 1e-3.
    if max(ratios) > 2e-4:
        return None
    times = 1e-3 / max(max(ratios), 1e-9)
    return (
        f"no update was more than {max(ratios):.2g} of the parameters in norm.",
        f"Try {run.setting('lr')} {times:.1g} times as large.",
    )
