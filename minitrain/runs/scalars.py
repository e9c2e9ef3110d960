"""What is logged of a step and of an epoch, under its tags."""

from collections.abc import Mapping

from minitrain.evaluation import Evaluation
from minitrain.tags import (
    GLOBAL_GRAD_NORM,
    GRAD_NORM,
    LR,
    TEST_ACCURACY,
    TEST_LOSS,
    THROUGHPUT,
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


def epoch_scalars(test: Evaluation, samples_per_second: float) -> dict[str, float]:
    """Return the tags and values of an epoch."""
    return {
        TEST_LOSS: test.loss,
        TEST_ACCURACY: test.accuracy,
        THROUGHPUT: samples_per_second,
    }
