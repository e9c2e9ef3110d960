"""The numbers of one weight around a step, and those of a walk down a function."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minitrain.descent import descend
from minitrain.explain.worked import Held
from minitrain.functions import Example
from minitrain.rule import Rule
from minitrain.sgd import sgd_update
from minitrain.system.errors import DivergedError, SettingsError


def look(
    rule: Rule,
    theta: Tensor,
    grad: Tensor,
    buf: Tensor | None,
    new_buf: Tensor | None,
    new_theta: Tensor,
    weight: Callable[[Tensor], float],
) -> Held:
    """Take the numbers of one weight around a step from whole tensors.

    What the run does not keep is asked of the rule itself, on the whole tensors too:
    with no buffer yet, the new one is the gradient with weight decay; and from
    theta = 0, a step with lr = -1 leads to Nesterov's direction.

    Args:
        rule: The options of the step.
        theta: The parameters before the step.
        grad: The gradient that the step used.
        buf: The momentum buffer before the step, or None.
        new_buf: The momentum buffer after the step, or None.
        new_theta: The parameters after the step.
        weight: Takes the number of the weight from each of these.
    """
    with torch.no_grad():
        decayed = sgd_update(
            theta.clone(), grad, None, lr=0, momentum=1, weight_decay=rule.weight_decay
        )
        assert decayed is not None
        direction = decayed if new_buf is None else new_buf
        if rule.nesterov:
            direction = torch.zeros_like(theta)
            old = None if buf is None else buf.clone()
            momentum = rule.momentum
            sgd_update(direction, decayed, old, lr=-1, momentum=momentum, nesterov=True)
    return Held(
        theta=weight(theta),
        grad=weight(grad),
        clipped=weight(grad),
        decayed=weight(decayed),
        buf=None if buf is None else weight(buf),
        new_buf=None if new_buf is None else weight(new_buf),
        direction=weight(direction),
        new_theta=weight(new_theta),
    )


def walk(
    example: Example, rule: Rule, start: Sequence[float], step: int
) -> tuple[Held, ...]:
    """Take the numbers around one step of a walk down a function.

    Args:
        example: The function.
        rule: The options of the walk.
        start: Where it starts.
        step: The number of the step, from 1.

    Returns:
        The numbers of each coordinate.

    Raises:
        SettingsError: The function is not finite at the start.
        DivergedError: The walk diverges before the step is complete.
    """
    lr, momentum = rule.lr, rule.momentum
    try:
        seen = descend(example.function, start, lr=lr, steps=step, momentum=momentum)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if len(seen.points) <= step:
        raise DivergedError(
            f"the walk diverged at step {seen.diverged}, and was given up before step "
            f"{step} was complete. Try a smaller --lr"
        )
    old = new = None
    for grad in seen.gradients[:step]:  # a walk keeps no buffers: the rule gives them
        old = None if new is None else new.clone()
        new = sgd_update(torch.zeros_like(grad), grad, new, lr=lr, momentum=momentum)
    before, grad, after = (
        seen.points[step - 1],
        seen.gradients[step - 1],
        seen.points[step],
    )

    def coordinate(i: int) -> Held:
        return look(rule, before, grad, old, new, after, lambda point: point[i].item())

    return tuple(coordinate(i) for i in range(len(start)))
