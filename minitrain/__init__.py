"""minitrain: from the gradient to MNIST, a training framework to read in one sitting.

The names below are imported when they are first used: `import minitrain` alone does not
import torch, so that a command line can answer at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitrain.batches import Batches as Batches
    from minitrain.descent import descend as descend
    from minitrain.evaluation import evaluate as evaluate
    from minitrain.experiment import load as load
    from minitrain.gradients import check_gradient as check_gradient
    from minitrain.gradients import directional_derivative as directional_derivative
    from minitrain.gradients import (
        finite_difference_gradient as finite_difference_gradient,
    )
    from minitrain.gradients import gradient as gradient
    from minitrain.gradients import hessian_vector_product as hessian_vector_product
    from minitrain.gradients import steepest_ascent as steepest_ascent
    from minitrain.sgd import SGD as SGD
    from minitrain.sgd import sgd_update as sgd_update
    from minitrain.tensorboard import Board as Board
    from minitrain.training import Step as Step
    from minitrain.training import train as train
    from minitrain.vector import ParameterVector as ParameterVector

_HOME = {
    "Batches": "batches",
    "Board": "tensorboard",
    "ParameterVector": "vector",
    "SGD": "sgd",
    "Step": "training",
    "check_gradient": "gradients",
    "descend": "descent",
    "directional_derivative": "gradients",
    "evaluate": "evaluation",
    "finite_difference_gradient": "gradients",
    "gradient": "gradients",
    "hessian_vector_product": "gradients",
    "load": "experiment",
    "sgd_update": "sgd",
    "steepest_ascent": "gradients",
    "train": "training",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
