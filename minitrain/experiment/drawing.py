"""The pictures of a run: what a classifier confuses, and what its experiment draws."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from minitrain.batches import Batches
from minitrain.evaluation import accuracy, predict
from minitrain.experiment.parts import Run
from minitrain.samples import move

CONFUSION = "confusion/test"

PICTURES = "pictures"
"""Stands before the names that an experiment gives its pictures."""

MAX_CLASSES = 50
"""More do not fit into one picture."""


def draw_all(run: Run) -> dict[str, Any]:
    """Return the pictures of the model as it is now, and texts, by their tags.

    Raises:
        ValueError: `draw` returns no dictionary.
    """
    confusion = _confusion(run)
    drawn: Any = {}
    if run.definition.draw is not None:
        drawn = run.definition.draw(run.model, run.data.on(run.device))
    if not isinstance(drawn, Mapping):
        raise ValueError(
            f"draw(...) returned {type(drawn).__name__}: it must return pictures "
            "by their names, in a dictionary"
        )
    tagged = {k if "/" in k else f"{PICTURES}/{k}": x for k, x in drawn.items()}
    return confusion | tagged


def _confusion(run: Run) -> dict[str, Any]:
    """Return the table of what is taken for what, where there are classes."""
    batches = run.test_batches
    if not isinstance(batches, Batches) or not _has_classes(batches.targets):
        return {}
    inputs, targets = move((batches.inputs, batches.targets), run.device)
    logits = predict(run.model, inputs)
    if not accuracy(logits, targets) or logits.shape[1] > MAX_CLASSES:
        return {}
    from minitrain.pictures import classes  # with matplotlib: no run needs it earlier

    names = run.data.classes or [str(i) for i in range(logits.shape[1])]
    counts = classes.confusion_matrix(logits, targets)
    return {CONFUSION: classes.draw_confusion(counts, names)}


def _has_classes(targets: Any) -> bool:
    is_vector = isinstance(targets, Tensor) and targets.dim() == 1
    return is_vector and not targets.is_floating_point()
