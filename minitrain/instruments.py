"""Measurements of a step: pure functions that change nothing they look at."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROW = 2048


def length(tensor: Tensor) -> Tensor:
    """The Euclidean length |x| = sqrt(sum_i |x_i|^2) of all elements, a 0-d tensor.

    On the CPU torch adds up the squares of a whole float32 tensor one after the other:
    of a million elements its norm is off by 1e-5, of 25 million by 1e-3. Summing in
    rows of 2048 first keeps it right to 1e-7, at the same speed.

    >>> length(torch.tensor([3.0, 4.0]))
    tensor(5.)
    """
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if not tensor.is_cpu or tensor.numel() <= ROW:
        return torch.linalg.vector_norm(tensor)
    flat = tensor.reshape(-1)
    whole = len(flat) // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1)
    if whole < len(flat):
        rest = torch.linalg.vector_norm(flat[whole:])
        rows = torch.cat([rows, rest.unsqueeze(0)])
    return torch.linalg.vector_norm(rows, dtype=torch.float64).to(rows.dtype)


def grad_norm(grads: Sequence[Tensor]) -> Tensor:
    """The length of the gradient, |g| = sqrt(sum_i g_i^2), over all its parts together.

    It is the steepness of the loss along the steepest direction: a 0-d tensor.

    >>> grad_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
    tensor(5.)
    """
    if len(grads) == 1:
        return length(grads[0])
    return length(torch.stack([length(grad) for grad in grads]))


def grad_norms(parameters: Iterable[Tensor]) -> Tensor:
    """The length of each parameter's gradient, shape (number of parameters,).

    The squares add up to the square of `grad_norm`; no gradient counts as 0.

    >>> p, q = torch.zeros(2), torch.zeros(2)
    >>> p.grad = torch.tensor([3.0, 4.0])
    >>> grad_norms([p, q])
    tensor([5., 0.])
    """
    return torch.stack(
        [length(p.new_zeros(()) if p.grad is None else p.grad) for p in parameters]
    )


class Mistake(NamedTuple):
    """An example that the model got wrong, and how sure it was of that."""

    example: int
    target: int
    predicted: int
    probability: float


def worst_mistakes(logits: Tensor, targets: Tensor, num: int) -> list[Mistake]:
    """The wrong predictions with the highest probability, softmax(logits), first.

    logits (N, classes), targets (N,) class numbers; at most `num` of them.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> [m.example for m in worst_mistakes(logits, torch.tensor([1, 1, 1]), num=5)]
    [2, 0]
    """
    probabilities, predicted = logits.float().softmax(dim=1).max(dim=1)
    wrong = (predicted != targets).nonzero().flatten()
    order = probabilities[wrong].argsort(descending=True, stable=True)[:num]
    return [
        Mistake(i, int(targets[i]), int(predicted[i]), float(probabilities[i]))
        for i in wrong[order].tolist()
    ]


def fingerprint(*states: Mapping[str, Any]) -> str:
    """SHA-256 over nested state dicts: equal if and only if every bit is.

    >>> a = fingerprint({"weight": torch.zeros(2)})
    >>> a == fingerprint({"weight": torch.zeros(2)})
    True
    >>> a == fingerprint({"weight": torch.tensor([0.0, 1e-45])})
    False
    """
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for key, item in value.items():
                digest.update(f"{key!r}:".encode())
                add(item)
        elif isinstance(value, list | tuple):
            digest.update(f"{len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{value!r};".encode())

    for state in states:
        add(state)
    return digest.hexdigest()
