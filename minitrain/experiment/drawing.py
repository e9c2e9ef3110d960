"""The pictures of a run: what a classifier confuses, and what its experiment draws."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minitrain import tags
from minitrain.batches import Batches
from minitrain.evaluation import predict
from minitrain.experiment.data import Data
from minitrain.experiment.definition import Definition
from minitrain.experiment.parts import Run
from minitrain.metrics import accuracy, confusion_matrix, losses_by_class
from minitrain.runs.layers import LayerMap, LayerMaps
from minitrain.samples import move

PICTURES = "pictures"
"""Stands before the names that an experiment gives its pictures."""

MAX_CLASSES = 50
"""More do not fit into one picture."""


def draw_all(run: Run, counts: Tensor | None) -> dict[str, Any]:
    """Return the pictures of the model as it is now, and texts, by their tags.

    Args:
        run: The run.
        counts: What it confuses, if that is known and to be drawn.

    Raises:
        ValueError: `draw` returns no dictionary.
    """
    pictures: dict[str, Any] = {}
    if counts is not None:
        from minitrain.pictures.classes import draw_confusion  # with matplotlib

        names = run.data.classes or [str(i) for i in range(len(counts))]
        pictures[tags.CONFUSION] = draw_confusion(counts, names)
    if run.definition.draw is None:
        return pictures
    return pictures | drawn_by(run.definition, run.model, run.data.on(run.device))


def draw_layers(maps: LayerMaps, model: nn.Module) -> dict[str, Any]:
    """Return the maps of all layers over the steps, by their tags.

    Args:
        maps: What was logged of each parameter.
        model: Its parameters are in the order of the network.
    """
    from minitrain.pictures import layers  # with matplotlib

    def ordered(found: LayerMap) -> tuple[list[str], list[int], Tensor]:
        known = [name for name, _ in model.named_parameters() if name in found.names]
        rows = [found.names.index(name) for name in known]
        return known, found.steps, found.values[rows]

    pictures = {}
    if len(maps.grad_norms.steps) > 1:
        drawn = layers.draw_grad_norms(*ordered(maps.grad_norms))
        pictures[tags.GRAD_NORM_MAP] = drawn
    if len(maps.update_ratios.steps) > 1:
        drawn = layers.draw_update_ratios(*ordered(maps.update_ratios))
        pictures[tags.UPDATE_RATIO_MAP] = drawn
    return pictures


def drawn_by(definition: Definition, model: nn.Module, data: Data) -> dict[str, Any]:
    """Return what an experiment draws, by tags.

    Raises:
        ValueError: It returns no dictionary.
    """
    assert definition.draw is not None
    drawn = definition.draw(model, data)
    if not isinstance(drawn, Mapping):
        raise ValueError(
            f"draw(...) returned {type(drawn).__name__}: it must return pictures "
            "by their names, in a dictionary"
        )
    return {k if "/" in k else f"{PICTURES}/{k}": x for k, x in drawn.items()}


@torch.no_grad()
def results_by_class(run: Run) -> tuple[Tensor, Tensor] | None:
    """Return what each class was taken for in the test, and its loss, if they are few.

    Returns:
        The confusion matrix, and the mean loss of each class.
    """
    batches = run.test_batches
    if not isinstance(batches, Batches) or not _has_classes(batches.targets):
        return None
    logits = predict(run.model, batches.inputs)
    targets = move(batches.targets, run.device)
    if not accuracy(logits, targets) or logits.shape[1] > MAX_CLASSES:
        return None
    losses = losses_by_class(run.loss_fn, logits, targets)
    return confusion_matrix(logits, targets), losses


def _has_classes(targets: Any) -> bool:
    is_vector = isinstance(targets, Tensor) and targets.dim() == 1
    return is_vector and not targets.is_floating_point()
