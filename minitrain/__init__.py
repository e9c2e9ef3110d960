"""minitrain: from the gradient to MNIST, a training framework to read in one sitting.

The book, in the order in which it is read:

    gradients   the gradient of any function, computed, used and checked
    functions   functions of the plane to walk down on
    descent     the walk: theta <- theta - lr * grad f(theta)
    sgd         the update rule, and the optimizer around it
    vector      theta and grad L as two vectors
    norms       lengths of gradients, and clipping
    batches     samples in batches, in the order of an epoch
    schedules   the learning rate as a function of the step
    models      the networks that the experiments train
    training    the loop
    evaluation  how good the model is

Second reading: variables and expressions (what can be walked on), rule, sgd_state and
blocks (around the update), placing and flat (around the vector), hessians, lr_groups,
samples, epochs, loading and windows (data on the way to a step), shards, means,
data_parallel and sharded (steps that processes share), checks, metrics, averaging,
watcher and tags (how instruments reach the loop and what their numbers mean),
randomness, fingerprint. Behind them stand rooms, each with a sign in its `__init__`:
instruments, runs, datasets, pictures, distributed, experiment, explain, cli and system.
The core imports nothing of them; `Trajectory.plot` alone calls the pictures.
"""

from typing import TYPE_CHECKING

from minitrain._lazy import lazily

if TYPE_CHECKING:
    from minitrain.batches import Batches as Batches
    from minitrain.descent import descend as descend
    from minitrain.evaluation import evaluate as evaluate
    from minitrain.evaluation import predict as predict
    from minitrain.experiment.data import Data as Data
    from minitrain.experiment.landscape import plot_landscape as plot_landscape
    from minitrain.experiment.plotting import plot as plot
    from minitrain.experiment.recorder import Recorder as Recorder
    from minitrain.experiment.trained import load as load
    from minitrain.gradients import check_gradient as check_gradient
    from minitrain.gradients import directional_derivative as directional_derivative
    from minitrain.gradients import (
        finite_difference_gradient as finite_difference_gradient,
    )
    from minitrain.gradients import gradient as gradient
    from minitrain.gradients import steepest_ascent as steepest_ascent
    from minitrain.hessians import hessian_vector_product as hessian_vector_product
    from minitrain.loading import DatasetBatches as DatasetBatches
    from minitrain.runs.board import Board as Board
    from minitrain.runs.history import History as History
    from minitrain.sgd import SGD as SGD
    from minitrain.sgd import sgd_update as sgd_update
    from minitrain.training import Step as Step
    from minitrain.training import train as train
    from minitrain.vector import ParameterVector as ParameterVector

_HOMES = {
    "Batches": "batches",
    "Board": "runs.board",
    "Data": "experiment.data",
    "DatasetBatches": "loading",
    "History": "runs.history",
    "ParameterVector": "vector",
    "Recorder": "experiment.recorder",
    "SGD": "sgd",
    "Step": "training",
    "check_gradient": "gradients",
    "descend": "descent",
    "directional_derivative": "gradients",
    "evaluate": "evaluation",
    "finite_difference_gradient": "gradients",
    "gradient": "gradients",
    "hessian_vector_product": "hessians",
    "load": "experiment.trained",
    "plot": "experiment.plotting",
    "plot_landscape": "experiment.landscape",
    "predict": "evaluation",
    "sgd_update": "sgd",
    "steepest_ascent": "gradients",
    "train": "training",
}

if not TYPE_CHECKING:  # whose readers know the names above, and no others
    __all__ = sorted(_HOMES)
    __getattr__, __dir__ = lazily(__name__, _HOMES)

__version__ = "0.3.0"
