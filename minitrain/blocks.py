"""Faster ways of applying an update rule: to many tensors together, or in blocks.

The rule stays the one that is written in `minitrain.sgd`: it is called with several
small tensors as if they were one, or with one part of a large tensor after the other,
and gives the same bits. Only torch's fused kernel is another one.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from minitrain import _torch

Update: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""What the rule is applied to: parameter, gradient, momentum buffer."""

UpdateRule: TypeAlias = Callable[..., Any]
"""rule(param, grad, buf, **options), in place: see `minitrain.sgd.sgd_update`."""

BLOCK = 2**20
"""Elements that the rule passes over several times before it goes on: parameters,
gradients and buffers, 12 MB of float32, are then read from memory once."""

SMALL = 2**12
"""Elements below which torch's fused kernel takes longer to start than to update."""

EXACT = ({torch.float32}, {torch.float64})
"""Dtypes whose elements round alike wherever they stand in a tensor."""


class Tensors:
    """Several tensors as one, with the methods that `sgd_update` calls.

    One call then updates them all: a thousand small ones in a quarter of the time.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors

    def __neg__(self) -> "Tensors":
        return Tensors(_torch.foreach_neg(self.tensors))

    def add(self, other: "Tensors", *, alpha: float) -> "Tensors":
        return Tensors(_torch.foreach_add(self.tensors, other.tensors, alpha=alpha))

    def add_(self, other: "Tensors", *, alpha: float) -> "Tensors":
        _torch.foreach_add_(self.tensors, other.tensors, alpha=alpha)
        return self

    def mul_(self, factor: float) -> "Tensors":
        # A tensor of their dtype rounds as a number does, and is four times as fast.
        scalar = torch.tensor(factor, dtype=self.tensors[0].dtype)
        _torch.foreach_mul_(self.tensors, scalar)
        return self


def apply_grouped(
    rule: UpdateRule,
    updates: list[Update],
    options: dict[str, Any],
    group: dict[str, Any],
) -> list[Update]:
    """Apply a rule where grouping pays, as the group's flags ask.

    Args:
        rule: The update rule.
        updates: What it is applied to.
        options: The rule's keyword arguments.
        group: The optimizer's group, with its flags foreach, fused, differentiable.

    Returns:
        The updates that are left, to be made one by one.
    """
    if not _are_independent(updates, options, group):
        return updates
    may_be_fused = group["fused"] and not _is_one_pass(options)
    if may_be_fused and _num_elements(updates) >= SMALL * len(updates):
        updates = _apply_fused(updates, options)
    if group["foreach"] is False:
        return updates
    _apply_in_blocks(rule, updates, options)
    return []


def _are_independent(
    updates: list[Update], options: dict[str, Any], group: dict[str, Any]
) -> bool:
    """Whether these updates may be grouped at will, for the same bits.

    Not so where weight decay reads memory that another update writes, where buffers are
    still to be made or used twice, where gradients flow through the update, or away
    from the CPU, where it has not been tested.
    """
    if not updates or group["differentiable"] or torch.compiler.is_compiling():
        return False
    is_small = len(updates) == 1 and updates[0][0].numel() <= BLOCK
    if is_small and (not group["fused"] or _is_one_pass(options)):
        return False  # nothing to gain
    params, grads, bufs = zip(*updates, strict=True)
    if options["momentum"] and any([buf is None for buf in bufs]):
        return False
    tensors = grads + bufs if options["momentum"] else grads
    # A set for each question is twice as fast as one of all answers together.
    kinds = [{*map(type, tensors)}, {t.is_cpu for t in tensors}]
    kinds.append({t.layout for t in tensors})
    if kinds != [{Tensor}, {True}, {torch.strided}]:
        return False
    if {t.dtype for t in tensors} not in EXACT:
        return False
    numbers = (options["lr"], options["weight_decay"])
    if any(isinstance(x, Tensor) and x.requires_grad for x in numbers):
        return False
    if options["weight_decay"] == 0:
        # Additions to shared memory come one after the other, as without grouping.
        return not options["momentum"] or len({*map(id, bufs)}) == len(bufs)
    storages = {param.untyped_storage().data_ptr() for param in params}
    return len(storages) == len(params)


def _num_elements(updates: list[Update]) -> int:
    return sum([param.numel() for param, _, _ in updates])


def _is_one_pass(options: dict[str, Any]) -> bool:
    """Whether the rule is theta <- theta - lr * g alone, which reads memory once."""
    return not any(options[name] for name in ("momentum", "weight_decay", "maximize"))


def _apply_in_blocks(
    rule: UpdateRule, updates: list[Update], options: dict[str, Any]
) -> None:
    """Apply the rule to small tensors together, and to large ones part by part."""
    if _num_elements(updates) <= BLOCK:
        return _apply_together(rule, updates, options)
    block: list[Update] = []
    room = BLOCK
    for update in _cut(updates, options):
        room -= update[0].numel()
        if block and room < 0:
            _apply_together(rule, block, options)
            block, room = [], BLOCK - update[0].numel()
        block.append(update)
    return _apply_together(rule, block, options)


def _cut(updates: list[Update], options: dict[str, Any]) -> Iterator[Update]:
    """The updates, or parts of those that the rule would pass over more than once."""
    is_one_pass = _is_one_pass(options)
    for update in updates:
        if is_one_pass or update[0].numel() <= BLOCK or not _is_one_run(update):
            yield update
        else:
            yield from zip(
                *(
                    itertools.repeat(None) if t is None else t.view(-1).split(BLOCK)
                    for t in update
                ),
                strict=False,
            )


def _apply_together(
    rule: UpdateRule, block: list[Update], options: dict[str, Any]
) -> None:
    if len(block) == 1:
        rule(*block[0], **options)
    elif block:
        params, grads, bufs = (
            cast(Any, Tensors(ts)) for ts in zip(*block, strict=True)
        )
        rule(params, grads, bufs if options["momentum"] else None, **options)


def _apply_fused(updates: list[Update], options: dict[str, Any]) -> list[Update]:
    """Apply the rule by torch's fused kernel where it can; the updates left over."""
    runs, rest = [], []
    for update in updates:
        (runs if _is_one_run(update) else rest).append(update)
    if runs:
        params, grads, bufs = map(list, zip(*runs, strict=True))
        _torch.fused_sgd_(
            params,
            grads,
            bufs if options["momentum"] else [],
            lr=float(options["lr"]),
            weight_decay=float(options["weight_decay"]),
            momentum=options["momentum"],
            dampening=options["dampening"],
            nesterov=options["nesterov"],
            maximize=options["maximize"],
            is_first_step=False,
        )
    return rest


def _is_one_run(update: Update) -> bool:
    """Whether each of its tensors lies in memory without gaps, in the usual order."""
    param, grad, buf = update
    contiguous = param.is_contiguous() and grad.is_contiguous()
    return contiguous and (buf is None or buf.is_contiguous())
