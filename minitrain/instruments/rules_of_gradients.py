"""What the readings say of the gradient on its way back through the layers."""

import math
from collections.abc import Callable

from minitrain import tags
from minitrain.instruments.evidence import Evidence, Verdict, mean


def dead_units(run: Evidence) -> Verdict:
    """Units get no gradient from any sample of a batch."""
    for layer, values in run.hidden_layers().items():
        if len(values) >= 2 and min(values[-2:]) > 0.5:
            return (
                f"{min(values[-2:]):.0%} of the units of {layer} get no gradient from "
                "a whole batch.",
                f"Look at the initial weights, and try a smaller {run.setting('lr')}.",
            )
    return None


def vanishing_gradient(run: Evidence) -> Verdict:
    """The gradient is lost on the way back to the first layer."""
    return _ratio_of_ends(run, lambda ratio: 0 < ratio < 1e-3, "of what reaches")


def exploding_gradient(run: Evidence) -> Verdict:
    """The gradient grows on the way back, or is large from the start."""
    clipping = run.setting("clip_norm", "1")
    advice = f"Look at the scale of the initial weights, and try {clipping}."
    norms, losses = run.values(tags.GLOBAL_GRAD_NORM), run.losses()
    if max(run.values(tags.TRUTH_ERROR)[:1], default=0) > 0.5:
        return None  # it is not that of the loss: its size says nothing
    if norms and losses and _is_above_guessing(run):
        text = f"at the start the loss is {losses[0]:.3g}, and |grad L| {norms[0]:.3g}"
        return f"{text}; the loss of guessing is {run.guessing:.3g}.", advice
    # At a usual start the gradient of a cross-entropy is about as large as the loss.
    is_usual = run.num_classes is None
    if norms and losses and not is_usual and norms[0] > 20 * losses[0]:
        text = (
            f"at the start |grad L| is {norms[0]:.3g}, with a loss of {losses[0]:.3g}."
        )
        return text, advice
    return _ratio_of_ends(run, lambda ratio: ratio > 100, "times what reaches")


def _is_above_guessing(run: Evidence) -> bool:
    """Return whether the loss was far above that of guessing.

    Real targets have a scale of their own, which a model finds within some steps: there
    the loss must be above that of guessing still, when a tenth of the run is over.
    """
    losses = run.losses()
    if run.guessing is None or not losses:
        return False
    # Where most samples are of one class, a usual start is far above guessing.
    usual = max(run.guessing, math.log(run.num_classes or 1))
    if not losses[0] > 5 * usual:
        return False
    if run.num_classes is not None:
        return True
    return run.is_past(0.1) and len(losses) >= 3 and min(losses[-3:]) > run.guessing


def _ratio_of_ends(run: Evidence, is_odd: Callable[[float], bool], how: str) -> Verdict:
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
