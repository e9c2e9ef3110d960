"""What is logged of a step and of an epoch, under its tags."""

from collections.abc import Mapping

from minitrain.evaluation import Evaluation
from minitrain.tags import (
    AUDIT_LINE,
    AUDIT_MARGIN,
    AUDIT_RATIO,
    BATCH_SIZE,
    GLOBAL_GRAD_NORM,
    GRAD_NORM,
    LOSS,
    LR,
    NOISE_SCALE,
    TRAIN_LOSS,
    tag,
)
from minitrain.training import Step


def step_scalars(step: Step) -> Mapping[str, float]:
    """Return the tags and values of a step.

    A step that was not measured has the readings of a panel, or none.
    """
    if step.grad_norms is None:
        return step.readings
    return {
        TRAIN_LOSS: step.loss,
        LR: step.lr,
        GLOBAL_GRAD_NORM: step.grad_norm,
        **{tag(GRAD_NORM, name): norm for name, norm in step.grad_norms.items()},
        **step.readings,
    }


def guide_lines(values: Mapping[str, float], batch_size: int) -> dict[str, float]:
    """Return what some values are compared with, to be drawn beside them as lines.

    >>> guide_lines({"audit/ratio": 0.9, "noise/scale": 120.0}, batch_size=64)
    {'audit/line_at_1': 1.0, 'noise/batch_size': 64.0}

    Args:
        values: Tags and values of a step.
        batch_size: The samples of an update.
    """
    lines = {}
    if AUDIT_RATIO in values or AUDIT_MARGIN in values:
        lines[AUDIT_LINE] = 1.0
    if NOISE_SCALE in values:
        lines[BATCH_SIZE] = float(batch_size)
    return lines


def evaluation_scalars(found: Evaluation, part: str) -> dict[str, float]:
    """Return the tags and values of an evaluation.

    >>> evaluation_scalars(Evaluation(0.5, {"accuracy": 0.9}), "test")
    {'loss/test': 0.5, 'accuracy/test': 0.9}

    Args:
        found: The evaluation.
        part: What it was made on: `test` or `validation`.
    """
    values = {LOSS: found.loss, **found.metrics}
    return {tag(name, part): value for name, value in values.items()}
