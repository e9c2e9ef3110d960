"""What a run minimizes where its experiment does not say."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Loss = Callable[[Any, Any], Tensor]


def usual_loss(outputs: Any, targets: Any) -> Tensor:
    """Return the loss that an experiment has which defines none.

    It is the cross-entropy for class numbers, targets (N, ...) for outputs
    (N, C, ...), and the mean squared error for real targets of the outputs' shape.

    Raises:
        ValueError: Outputs and targets are others.
    """
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
        is_real = targets.is_floating_point()
        if is_real and targets.shape == outputs.shape:
            return nn.functional.mse_loss(outputs, targets)
        of_classes = (*outputs.shape[:1], *outputs.shape[2:])
        if not is_real and outputs.dim() >= 2 and targets.shape == of_classes:
            return nn.functional.cross_entropy(outputs, targets)
    raise ValueError(
        f"outputs are {_form(outputs)}, targets {_form(targets)}: without a loss "
        "of its own an experiment needs outputs (N, C, ...) with integer targets "
        "(N, ...), or real targets of the outputs' shape; define loss(outputs, targets)"
    )


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind} {tuple(value.shape)}"
    return type(value).__name__
