"""Measurements of a step: pure functions that change nothing they look at."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROW = 512


def length(tensor: Tensor) -> Tensor:
    """The Euclidean length |x| = sqrt(sum_i |x_i|^2) of all elements, a 0-d tensor.

    On the CPU torch's norm adds up the squares of a whole float32 tensor one after the
    other: of a million elements it is off by 1e-5, of 25 million by 1e-3. Long tensors
    are cut into rows here, and the length of the rows' lengths is right to 2e-6.

    >>> length(torch.tensor([3.0, 4.0]))
    tensor(5.)
    """
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if not tensor.is_cpu or tensor.numel() < 4 * ROW:
        return torch.linalg.vector_norm(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    flat = tensor.reshape(-1)
    whole = len(flat) // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1)
    if whole < len(flat):
        rest = torch.linalg.vector_norm(flat[whole:])
        rows = torch.cat([rows, rest.reshape(1)])
    return length(rows)


def norm(parts: Sequence[Tensor]) -> Tensor:
    """The length of a vector that is given in parts: sqrt(sum_i |x_i|^2).

    >>> norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
    tensor(5.)
    """
    return length(parts[0]) if len(parts) == 1 else length(norms(parts))


def norms(parts: Iterable[Tensor]) -> Tensor:
    """The length of each part, shape (number of parts,)."""
    return torch.stack([length(part) for part in parts])


def grad_norm(grads: Sequence[Tensor]) -> Tensor:
    """The length of the gradient, |g| = sqrt(sum_i g_i^2), over all its parts together.

    It is the steepness of the loss along the steepest direction: a 0-d tensor.

    >>> grad_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
    tensor(5.)
    """
    return norm(grads)


def grad_norms(parameters: Iterable[Tensor]) -> Tensor:
    """The length of each parameter's gradient, shape (number of parameters,).

    The squares add up to the square of `grad_norm`; no gradient counts as 0.

    >>> p, q = torch.zeros(2), torch.zeros(2)
    >>> p.grad = torch.tensor([3.0, 4.0])
    >>> grad_norms([p, q])
    tensor([5., 0.])
    """
    return norms(p.new_zeros(()) if p.grad is None else p.grad for p in parameters)


def dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """The dot product x . y = sum_i x_i y_i of two vectors given in the same parts.

    >>> dot([torch.tensor([1.0]), torch.tensor([2.0])], [torch.ones(1), torch.ones(1)])
    tensor(3.)
    """
    pairs = zip(xs, ys, strict=True)
    products = [torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in pairs]
    return products[0] if len(products) == 1 else torch.stack(products).sum()


def zero_shares(parts: Iterable[Tensor]) -> Tensor:
    """The share of elements that are exactly 0, of each part.

    >>> zero_shares([torch.tensor([0.0, 1.0]), torch.zeros(3)])
    tensor([0.5000, 1.0000])
    """
    parts = [*parts]
    counts = torch.stack([part.count_nonzero() for part in parts])
    return 1 - counts / counts.new_tensor([part.numel() for part in parts])


def log2_counts(tensor: Tensor) -> Tensor:
    """How many elements are how large: counts by log2 |x|, computed on its device.

    Shape (64,): element k counts 2^(k - 48) <= |x| < 2^(k - 47). The first takes in
    what is smaller, zeros too, and the last what is larger.

    >>> counts = log2_counts(torch.tensor([1.0, -1.5, 0.25, 0.0]))
    >>> [(k - 48, int(n)) for k, n in enumerate(counts) if n]
    [(-48, 1), (-2, 1), (0, 2)]
    """
    exponents = tensor.detach().abs().log2().floor().clamp(-48, 15)
    return torch.bincount(exponents.flatten().long() + 48, minlength=64)


def confusion_matrix(logits: Tensor, targets: Tensor) -> Tensor:
    """How often each class was taken for each: counts [target, predicted].

    logits (N, classes), targets (N,) class numbers; shape (classes, classes).

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> confusion_matrix(logits, torch.tensor([0, 1, 1])).tolist()
    [[1, 0], [1, 1]]
    """
    num_classes = logits.shape[1]
    pairs = targets * num_classes + logits.argmax(dim=1)
    counts = torch.bincount(pairs, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


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
