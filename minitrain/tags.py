"""The tags of all that is logged, quantity first: what each number of a run means.

Whoever writes or asks for a number takes its tag from here, so that a typo is an error
and not a rule that never speaks. In the formulas g is the gradient before clipping, g'
the one that the update uses, after clipping and with weight decay, theta and theta' are
the parameters before and after the update, and u = theta' - theta is the update.
"""

WHOLE = "global"
"""Stands for the vector of all parameters, where a parameter's name could stand."""


def tag(quantity: str, name: str = WHOLE) -> str:
    """Return the tag of a quantity, of one parameter or of all together.

    >>> tag(UPDATE_NORM), tag(UPDATE_NORM, "layers.0.weight")
    ('update_norm/global', 'update_norm/layers.0.weight')
    """
    return f"{quantity}/{name}"


# Quantities of the whole and of each parameter.

GRAD_NORM = "grad_norm"
"""|g|"""
UPDATE_NORM = "update_norm"
"""|u|"""
UPDATE_RATIO = "update_ratio"
"""|u| / |theta|; of the whole without frozen parameters."""
ZERO_SHARE = "zero_share"
"""The share of the elements of g that are exactly 0; of each parameter alone."""

GLOBAL_GRAD_NORM = tag(GRAD_NORM)
GLOBAL_UPDATE_NORM = tag(UPDATE_NORM)
GLOBAL_UPDATE_RATIO = tag(UPDATE_RATIO)

# The look: where the step came from and where it went.

DESCENT_COSINE = "cosine/steepest_descent"
"""cos(u, -g): 1 is straight downhill."""
PREVIOUS_COSINE = "cosine/previous"
"""cos(g, the gradient of the step before)."""
MOMENTUM_SHARE = "momentum/share"
"""|d - g'| / |d|, where d = -u / lr is the direction taken."""
EFFECTIVE_LR = "momentum/effective_lr"
"""|u| / |g'|: tends to lr / (1 - momentum) where the gradient is constant."""
DECAY_SHARE = "weight_decay/share"
"""|weight_decay theta| / |g'|: the part of the gradient used that the loss has not."""
LEFT_OVER = "zero_grad/forgotten"
"""1 where the gradient of an earlier update was still there when that of the step came;
otherwise there is no reading."""
DISTANCE = "path/distance"
"""|theta' - theta_0|, from the start."""
EFFICIENCY = "path/efficiency"
"""That, over the length of the path from look to look: 1 is a straight line."""
CLIP_FRACTION = "clip/fraction"
"""The share of the steps since the last look that were clipped."""

# The other instruments.

AUDIT = "audit"
"""The tag of a `StepAudit`; each of its fields follows."""
AUDIT_LOSS = "audit/loss_after"
"""L(theta') of the batch of the step: what the step left of `loss/train`."""
AUDIT_DELIVERED = "audit/delivered"
"""By how much the step lowered it: `StepAudit.delivered`."""
AUDIT_RATIO = "audit/ratio"
"""The decrease of the loss that was delivered / the one that was promised."""
AUDIT_CURVATURE = "audit/curvature"
"""Of the loss, along the step."""
AUDIT_MARGIN = "audit/margin"
"""lr / the largest stable one."""
AUDIT_LINE = "audit/line_at_1"
"""The constant 1, for the eye: what ratio and margin are compared with."""
LARGEST_STABLE_LR = "audit/largest_stable_lr"
"""At which a step along this curvature starts to climb."""
TRUTH_ERROR = "truth/error"
"""`Slope.error` along the whole gradient."""
TRUTH_WORST_ERROR = "truth/worst_error"
"""The largest `Slope.error` along the part of any parameter."""
NOISE_SCALE = "noise/scale"
"""`NoiseScale.value`: samples in a batch whose gradient is as large as its noise."""
BATCH_SIZE = "noise/batch_size"
"""B, the samples of an update, for the eye: what the noise scale is compared with."""
SIGNAL_SHARE = "noise/signal_share"
"""|G|^2 / (|G|^2 + tr(Sigma) / B): the part of |g|^2 that is not noise."""

# What the loop and the tests measure.

LOSS = "loss"
"""Metrics of `train`, `validation` and `test`; `_average` is for averaged weights."""
TRAIN_LOSS = "loss/train"
VALIDATION_LOSS = "loss/validation"
TEST_LOSS = "loss/test"
TEST_ACCURACY = "accuracy/test"
VALIDATION_ACCURACY = "accuracy/validation"
LR = "lr"
THROUGHPUT = "throughput/samples_per_second"

# What is measured after every epoch.

WAITING = "cost/waiting"
"""What rank 0 spent on the numbers of other ranks, over the time of the steps."""
PANEL_COST = "cost/panel"
"""The panel's seconds, over those of the training."""
LARGEST_EIGENVALUE = "sharpness/largest_eigenvalue"
"""Of the Hessian: see `minitrain.instruments.sharpness`."""
STABLE_EIGENVALUE = "sharpness/2_over_lr"
"""The eigenvalue up to which gradient descent is stable."""
GRADIENT_SIZES = "grad_log2"
"""Histograms of log2 |g_i|."""

# Texts.

FINDINGS, SETTINGS = "run/findings", "run/settings"

# Pictures.

CONFUSION = "confusion/test"
"""How often each class was taken for each."""
GRAD_NORM_MAP, UPDATE_RATIO_MAP = "layers/grad_norm", "layers/update_ratio"
"""log10 |g| and |u| / |theta| of each parameter over the steps."""
