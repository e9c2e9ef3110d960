"""The rules, in the order of causes: what the readings of a run may mean.

A rule is a function of the readings so far. It gives a sentence and what to try, or
nothing. A finding may follow from another one: the rules stand in the order of causes,
and what follows from a finding is not looked for.
"""

from collections.abc import Callable, Sequence

from minitrain.instruments.evidence import Evidence, Verdict
from minitrain.instruments.rules_of_gradients import (
    dead_units,
    exploding_gradient,
    vanishing_gradient,
)
from minitrain.instruments.rules_of_learning import (
    batch_too_large,
    batch_too_small,
    flat_plateau,
    labels_without_signal,
    overfitting,
    steep_plateau,
)
from minitrain.instruments.rules_of_steps import (
    clipped_to_almost_nothing,
    gradient_not_reset,
    learning_rate_too_large,
    learning_rate_too_small,
    momentum_too_large,
    samples_in_order,
    weight_decay_too_large,
)

RULES: dict[str, Callable[[Evidence], Verdict]] = {
    "gradient not reset": gradient_not_reset,
    "samples in order": samples_in_order,
    "gradient clipped to almost nothing": clipped_to_almost_nothing,
    "weight decay too large": weight_decay_too_large,
    "momentum too large": momentum_too_large,
    "learning rate too large": learning_rate_too_large,
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

NOT_FINITE = "samples not finite"
NOT_NORMALIZED = "inputs not normalized"
TARGETS_OFF = "targets not normalized"
CONSTANT = "constant samples"
IN_ORDER = "samples in order"
SHIFTED = "labels shifted"
NO_LOGITS = "probabilities instead of logits"
SUMMED = "loss is a sum"
MIXED = "samples depend on each other"
NO_GRADIENT = "block without gradient"
WRONG_GRADIENT = "wrong gradient"
START = (
    NOT_FINITE, NOT_NORMALIZED, TARGETS_OFF, CONSTANT, IN_ORDER, SHIFTED, NO_LOGITS,
    SUMMED, MIXED, NO_GRADIENT, WRONG_GRADIENT, "gradient not reset",
)  # fmt: skip
"""What is found without a rule, in the samples, in the first passes and by the truth
test, or at the second step: much can follow from it."""

IMBALANCED = "classes out of balance"
REPEATED = "repeated samples"
CONTRADICTED = "labels of a class contradicted"
NOT_LEARNED = "class not learned"
UNLEARNABLE = "one batch cannot be learned"
ASIDE = (IMBALANCED, REPEATED, CONTRADICTED, NOT_LEARNED, UNLEARNABLE)
"""What is found without a rule, and explains nothing else."""

_STEPS = (
    "weight decay too large",
    "momentum too large",
    "learning rate too large",
    "learning rate too small",
    "gradient clipped to almost nothing",
)
_UNITS = ("exploding gradient", "dead units", "vanishing gradient")

CAUSES: dict[str, Sequence[str]] = {
    WRONG_GRADIENT: ("gradient not reset",),
    CONTRADICTED: (SHIFTED, CONSTANT, NOT_FINITE),
    NOT_LEARNED: (*START, *_STEPS, *_UNITS, CONTRADICTED, IMBALANCED,
                  "labels without signal", "flat plateau", "steep plateau"),
    "weight decay too large": (
        *START, "gradient clipped to almost nothing", "momentum too large",
        "learning rate too large", "exploding gradient", "dead units",
    ),
    "momentum too large": (*START, "weight decay too large"),
    "learning rate too large": (
        *START, "weight decay too large", "momentum too large", "exploding gradient",
    ),
    "learning rate too small": (
        NOT_FINITE, NOT_NORMALIZED, TARGETS_OFF, SUMMED, "weight decay too large",
        "gradient clipped to almost nothing",
    ),
    "exploding gradient": (
        *START, "momentum too large", "learning rate too large",
    ),
    "dead units": (
        *START, "weight decay too large", "momentum too large",
        "learning rate too large", "exploding gradient",
    ),
    "vanishing gradient": (*START, *_STEPS, "exploding gradient", "dead units"),
    "labels without signal": (*START, *_STEPS, *_UNITS, "flat plateau"),
    "flat plateau": (*START, *_STEPS, *_UNITS, "labels without signal"),
    "steep plateau": (
        *START, *_STEPS, *_UNITS, "labels without signal", "flat plateau",
        "batch too small",
    ),
    "batch too small": (
        *START, *_STEPS, *_UNITS, "labels without signal", "flat plateau",
    ),
    "batch too large": (*START, *_STEPS, *_UNITS, "flat plateau"),
    "overfitting": START,
}  # fmt: skip
"""What a finding may follow from: then it is not told."""
