"""The tags under which TensorBoard shows what is logged.

Quantity first, so that the curves of one quantity stand together.
"""

from collections.abc import Mapping

from tensorboard.plugins.hparams import metadata

from minitrain.evaluation import Evaluation
from minitrain.training import Step

TRAIN_LOSS, TEST_LOSS = "loss/train", "loss/test"
TEST_ACCURACY = "accuracy/test"
THROUGHPUT = "throughput/samples_per_second"
WORST_ERROR = "truth/worst_error"
PANEL_COST = "cost/panel"
LARGEST_EIGENVALUE = "sharpness/largest_eigenvalue"
STABLE_EIGENVALUE = "sharpness/2_over_lr"
GRADIENT_SIZES = "grad_log2"
DATA, SETTINGS, EQUATION = "run/data", "run/settings", "run/equation"
FINDINGS = "run/findings"

AT_THE_END = (metadata.SESSION_END_INFO_TAG, f"{FINDINGS}/text_summary")
"""Tags of what is written when a run ends, and anew when it is continued."""

CHARTS = {
    "Loss": ["loss/.*"],
    "Gradient": ["grad_norm/.*"],
    "Step audit": ["audit/ratio", "audit/margin", "truth/.*"],
    "Noise": ["noise/.*"],
    "Cost": ["cost/.*"],
}
"""What the dashboard opens on: a chart each, with the tags on it."""


def step_scalars(step: Step) -> Mapping[str, float]:
    """Return the tags and values of a step.

    A step that was not measured has the readings of a panel, or none.
    """
    if step.grad_norms is None:
        return step.readings
    return {
        TRAIN_LOSS: step.loss,
        "lr": step.lr,
        "grad_norm/global": step.grad_norm,
        **{f"grad_norm/{name}": norm for name, norm in step.grad_norms.items()},
        **step.readings,
    }


def epoch_scalars(test: Evaluation, samples_per_second: float) -> dict[str, float]:
    """Return the tags and values of an epoch."""
    return {
        TEST_LOSS: test.loss,
        TEST_ACCURACY: test.accuracy,
        THROUGHPUT: samples_per_second,
    }
