"""The gradient of the gradient: how it changes along a direction."""

from collections.abc import Callable

import torch
from torch import Tensor

from minitrain.gradients import (
    ScalarFunction,
    check_same_shape,
    leaves_of,
    partials_of,
    scalar_of,
)


def hessian(f: ScalarFunction, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the Hessian of f at x as the linear map that it is, v -> H v.

    The graph of the gradient is made once and kept: a product is one backward pass
    through it, and the matrix H_ij = d^2f/dx_i dx_j is never there.

    >>> product = hessian(lambda p: (p**2).sum(), torch.tensor([3.0, 4.0]))
    >>> product(torch.tensor([1.0, 0.0])), product(torch.tensor([0.0, 1.0]))
    (tensor([2., 0.]), tensor([0., 2.]))

    Raises:
        ValueError: As `gradient` does or, when it is called, v has another shape.
    """
    (leaf,) = leaves_of([x])
    with torch.enable_grad():
        (grad,) = partials_of(scalar_of(f(leaf)), [leaf], create_graph=True)

    def product(v: Tensor) -> Tensor:
        check_same_shape(x, v)
        if not grad.requires_grad:  # f is linear: its gradient is the same everywhere
            return torch.zeros_like(x)
        (result,) = torch.autograd.grad(
            grad, leaf, v, retain_graph=True, materialize_grads=True
        )
        return result

    return product


def hessian_vector_product(f: ScalarFunction, x: Tensor, v: Tensor) -> Tensor:
    """Return how the gradient of f changes along v: H v, with H_ij = d^2f/dx_i dx_j.

    H v = grad (grad f . v), two backward passes and never the matrix H (Pearlmutter,
    Fast exact multiplication by the Hessian, 1994). It has the shape of x.

    >>> f = lambda p: (p**2).sum()
    >>> hessian_vector_product(f, torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
    tensor([2., 0.])

    Raises:
        ValueError: v has another shape than x, or as `gradient` does.
    """
    return hessian(f, x)(v)
