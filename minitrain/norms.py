"""Lengths of gradients and other vectors: pure functions that change nothing.

A vector may come in parts, as the gradient of a network does, one tensor for each
parameter: its norm is that of all components together.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from minitrain.sharded import are_sharded, norms_of_whole

ROW = 512


def norm(parts: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the norm |x| = sqrt(sum_i |x_i|^2) of a vector, a 0-d tensor.

    Of a gradient it is the steepness of the loss along the steepest direction.

    On the CPU torch's norm adds up the squares of a whole float32 tensor one after the
    other: of a million elements it is off by 1e-5, of 25 million by 1e-3. Long tensors
    are cut into rows here, and the norm of the rows' norms is right to 2e-6.

    >>> norm(torch.tensor([3.0, 4.0]))
    tensor(5.)
    >>> norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
    tensor(5.)

    Args:
        parts: A tensor of any shape, or the parts of a vector.
    """
    if isinstance(parts, Tensor):
        parts = [parts]
    is_one = len(parts) == 1 and not are_sharded(parts)
    return _norm_of_one(parts[0] if is_one else norms(parts))


def norms(parts: Iterable[Tensor]) -> Tensor:
    """Return the norm of each part, shape (number of parts,).

    Their squares add up to the square of the norm of the whole. That of a DTensor is
    the norm of the full tensor.

    >>> norms([torch.tensor([3.0, 4.0]), torch.tensor([2.0])])
    tensor([5., 2.])
    """
    parts = [*parts]
    if are_sharded(parts):
        return norms_of_whole(_norm_of_one, parts)
    return torch.stack([_norm_of_one(part) for part in parts])


def grad_norms(parameters: Iterable[Tensor]) -> Tensor:
    """Return the norm of each parameter's gradient, shape (number of parameters,).

    No gradient counts as 0.

    >>> p, q = torch.zeros(2), torch.zeros(2)
    >>> p.grad = torch.tensor([3.0, 4.0])
    >>> grad_norms([p, q])
    tensor([5., 0.])
    """
    return norms(p.new_zeros(()) if p.grad is None else p.grad for p in parameters)


def clip_factor(grad_norm: Tensor, clip_norm: float) -> Tensor:
    """Return what clipping multiplies the gradient by, a 0-d tensor.

    factor = min(1, clip_norm / (|g| + 1e-6)): longer gradients are scaled down to the
    norm clip_norm, and all others are left as they are. The 1e-6 is torch's, which
    keeps a gradient of zero from dividing by it.

    >>> clip_factor(torch.tensor(5.0), clip_norm=2.5), clip_factor(torch.tensor(5.0), 9)
    (tensor(0.5000), tensor(1.))

    Source: torch.nn.utils.clip_grads_with_norm_, with the same bits; Pascanu et al., On
    the difficulty of training recurrent neural networks, 2013.
    """
    return (clip_norm / (grad_norm + 1e-6)).clamp(max=1.0)


def dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """Return the dot product x . y = sum_i x_i y_i of two vectors in the same parts.

    >>> dot([torch.tensor([1.0]), torch.tensor([2.0])], [torch.ones(1), torch.ones(1)])
    tensor(3.)
    """
    pairs = zip(xs, ys, strict=True)
    products = [torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in pairs]
    return products[0] if len(products) == 1 else torch.stack(products).sum()


def _norm_of_one(tensor: Tensor) -> Tensor:
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
    return _norm_of_one(rows)
