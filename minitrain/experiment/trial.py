"""Two samples on trial: do an experiment's functions fit its data, and each other?"""

import warnings
from typing import Any

import torch
from torch import nn

from minitrain import evaluation
from minitrain.batches import Batches
from minitrain.epochs import size_of
from minitrain.experiment import source
from minitrain.experiment.data import Data
from minitrain.experiment.definition import Definition
from minitrain.experiment.drawing import drawn_by
from minitrain.experiment.machine import Multiplications
from minitrain.experiment.objective import Loss, usual_loss
from minitrain.experiment.settings import Config
from minitrain.loading import DatasetBatches
from minitrain.metrics import Metrics
from minitrain.randomness import undisturbed
from minitrain.runs.images import as_png
from minitrain.system.errors import DataError, MinitrainError, SettingsError

IGNORED = -100
"""The target that cross-entropy leaves out."""


def try_out(
    definition: Definition,
    model: nn.Module,
    batches: Batches | DatasetBatches,
    loss_fn: Loss,
    metrics: Metrics,
) -> tuple[Any, float, list[str]]:
    """Evaluate two samples: outputs, multiplications of one, names of the metrics.

    Nothing of it stays but the shapes of a lazy model.

    Raises:
        SettingsError: The experiment's functions do not fit the data, or each other.
        DataError: A target is the number of no class.
    """
    if not any(True for _ in model.parameters()):
        raise SettingsError("the model has no parameters: there is nothing to train")
    try:
        batch = batches.first(2)
        device = next(model.parameters()).device
        with undisturbed(model, device), Multiplications(model) as counted:
            outputs = evaluation.predict(model, batch[0])
            multiplications = counted.number / size_of(batch)
            if loss_fn is usual_loss:
                _check_classes(outputs, batches)
            with warnings.catch_warnings():  # of shapes that are made equal by torch
                warnings.filterwarnings("error", message="Using a target size")
                found = evaluation.evaluate(model, [batch], loss_fn, metrics)
    except (MinitrainError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if definition.path is None:
            raise
        raise SettingsError(
            f"the first two samples cannot go through model, loss and metrics: "
            f"{source.what_failed(error, definition.path)}"
        ) from error
    return outputs, multiplications, [*found.metrics]


def try_drawing(definition: Definition, model: nn.Module, data: Data) -> None:
    """Have an experiment draw once, so that its mistakes show before the training.

    Raises:
        SettingsError: It fails, or gives something else than pictures and texts.
    """
    if definition.draw is None or definition.path is None:
        return
    device = next(model.parameters()).device
    try:
        with undisturbed(model, device), torch.no_grad():
            model.eval()
            for picture in drawn_by(definition, model, data.on(device)).values():
                if not isinstance(picture, str):
                    as_png(picture)
    except (MinitrainError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = source.what_failed(error, definition.path)
        raise SettingsError(f"draw(...) failed: {what}") from error


def _check_classes(outputs: Any, batches: Batches | DatasetBatches) -> None:
    """Make sure that targets in memory are numbers of the model's classes.

    Raises:
        DataError: One is not.
    """
    targets = batches.targets if isinstance(batches, Batches) else None
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point():
        return
    num_classes = outputs.shape[1]
    is_wrong = ((targets < 0) & (targets != IGNORED)) | (targets >= num_classes)
    if is_wrong.any():
        place = is_wrong.flatten(1).any(1) if targets.dim() > 1 else is_wrong
        sample = int(place.nonzero()[0])
        raise DataError(
            f"the target of training sample {sample} is {targets[sample].tolist()}: "
            f"the model tells the classes 0 to {num_classes - 1} apart"
        )


def check_normalization(config: Config, model: nn.Module, num_samples: int) -> None:
    """Make sure that a model that normalizes over a batch sees two samples at least."""
    size = config.data.batch_size
    kinds = [type(m).__name__ for m in model.modules() if "BatchNorm" in str(type(m))]
    if kinds and 1 in (size, num_samples % size):
        raise SettingsError(
            f"data.batch-size = {size}: the last batch of {num_samples} samples has a "
            f"single one, and {kinds[0]} normalizes over a batch: it needs two"
        )
