"""The tags under which TensorBoard shows what is logged."""

from collections.abc import Mapping

from tensorboard.plugins.hparams import metadata

from minitrain.training import Step

FINDINGS = "run/findings"


AT_THE_END = (metadata.SESSION_END_INFO_TAG, f"{FINDINGS}/text_summary")
"""Tags of what is written when a run ends, and anew when it is continued."""


def step_scalars(step: Step) -> Mapping[str, float]:
    """The tags and values of a step.

    Quantity first, so that the curves of one quantity stand together. A step that was
    not measured has the readings of a panel, or none.
    """
    if step.grad_norms is None:
        return step.readings
    return {
        "loss/train": step.loss,
        "lr": step.lr,
        "grad_norm/global": step.grad_norm,
        **{f"grad_norm/{name}": norm for name, norm in step.grad_norms.items()},
        **step.readings,
    }
