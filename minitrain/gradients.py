"""The gradient of a function f(x1, ..., xn): computed, used, and checked.

The gradient is the vector of the partial derivatives, (df/dx1, ..., df/dxn). It points
in the direction of steepest ascent, and its length is the steepness there. Of
f(x, y) = x^2 + y^2 it is (2x, 2y):

>>> def paraboloid(point):
...     return (point**2).sum()
>>> gradient(paraboloid)(torch.tensor([3.0, 4.0]))
tensor([6., 8.])
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ScalarFunction = Callable[..., Tensor]


def gradient(f: ScalarFunction) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """Return the function that maps x to grad f(x) = (df/dx1, ..., df/dxn).

    >>> gradient(lambda p: (p**2).sum())(torch.tensor([3.0, 4.0]))
    tensor([6., 8.])
    >>> gradient(lambda x, y: x * y)(torch.tensor(3.0), torch.tensor(4.0))
    (tensor(4.), tensor(3.))

    Args:
        f: Takes one tensor or several, and returns a tensor with one element.

    Returns:
        A function of the same inputs: the gradient, in the shape of the input, or of
        several inputs a tuple with one tensor each.

    Raises:
        TypeError: When it is called: an input is not a real floating point tensor, or f
            returns no tensor.
        ValueError: When it is called: f(x) is not a scalar, or does not depend on x.
    """

    def grad_f(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        leaves = leaves_of(inputs)
        with torch.enable_grad():
            value = scalar_of(f(*leaves))
            grads = partials_of(value, leaves)
        return grads[0] if len(grads) == 1 else grads

    return grad_f


def directional_derivative(f: ScalarFunction, x: Tensor, v: Tensor) -> Tensor:
    """Return the rate at which f changes at x along v, a 0-d tensor.

    D_v f(x) = grad f(x) . v; for |v| = 1 it is the slope of f in the direction v.

    >>> f = lambda p: (p**2).sum()
    >>> directional_derivative(f, torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
    tensor(6.)

    Raises:
        ValueError: v has another shape than x, or as `gradient` does.
    """
    check_same_shape(x, v)
    return (_gradient_of_one(f, x) * v).sum()


class SteepestAscent(NamedTuple):
    """The way up: a unit vector of x's shape, and the slope along it (0-d)."""

    direction: Tensor
    slope: Tensor


def steepest_ascent(f: ScalarFunction, x: Tensor) -> SteepestAscent:
    """Return the unit direction in which f rises fastest, and its slope.

    direction = grad f / |grad f|,  slope = |grad f|. At a stationary point no direction
    rises: the slope is 0 and the direction the zero vector.

    >>> steepest_ascent(lambda p: (p**2).sum(), torch.tensor([3.0, 4.0]))
    SteepestAscent(direction=tensor([0.6000, 0.8000]), slope=tensor(10.))
    """
    grad = _gradient_of_one(f, x)
    slope = torch.linalg.vector_norm(grad)
    return SteepestAscent(grad / slope if slope > 0 else torch.zeros_like(grad), slope)


def finite_difference_gradient(
    f: ScalarFunction, x: Tensor, *, h: float | None = None
) -> Tensor:
    """Return the gradient by the definition of the partial derivative, one at a time.

    df/dx_i = lim_{h -> 0} (f(x + h e_i) - f(x - h e_i)) / (2 h), at a small finite h.
    The default h is cbrt(eps) max(1, |x_i|), where the error of the central difference,
    O(h^2), and that of rounding, O(eps / h), balance (Numerical Recipes, section 5.7).

    >>> f = lambda p: (p**2).sum()
    >>> finite_difference_gradient(f, torch.tensor([3.0, 4.0], dtype=torch.float64))
    tensor([6.0000, 8.0000], dtype=torch.float64)

    Raises:
        ValueError: h is not positive, or too small to move x; or as `gradient` does.
    """
    if h is not None and not h > 0:
        raise ValueError(f"h = {h}: the step of a finite difference must be positive")
    (leaf,) = leaves_of([x])
    point = leaf.detach().clone(memory_format=torch.contiguous_format)
    components, partials = point.view(-1), torch.empty_like(point)
    with torch.no_grad():
        for i, x_i in enumerate(components.tolist()):
            step = h or torch.finfo(x.dtype).eps ** (1 / 3) * max(1.0, abs(x_i))
            components[i] = x_i + step
            right, f_right = components[i].item(), scalar_of(f(point.clone()))
            components[i] = x_i - step
            left, f_left = components[i].item(), scalar_of(f(point.clone()))
            components[i] = x_i
            if right == left:
                raise ValueError(f"h = {step} does not move x[{i}] = {x_i}: too small")
            # right - left is the step actually taken, after x_i +- h was rounded.
            partials.view(-1)[i] = (f_right - f_left) / (right - left)
    return partials


class GradientCheck(NamedTuple):
    """The largest relative difference, and the index of the component where it is."""

    relative_difference: float
    component: tuple[int, ...]


def check_gradient(
    f: ScalarFunction, x: Tensor, *, h: float | None = None
) -> GradientCheck:
    """Measure how far the gradient g of autograd is from that of finite differences, d.

    max_i |g_i - d_i| / max(|g_i|, |d_i|, s), where s = cbrt(eps) max(1, |f(x)|) is the
    size below which a finite difference has no relative accuracy of its own. In float64
    a correct gradient of a smooth function gives about 1e-8; a wrong one, about 1.

    >>> check = check_gradient(lambda p: (p**3).sum(), torch.ones(2).double())
    >>> check.relative_difference < 1e-8
    True
    """
    exact = _gradient_of_one(f, x)
    approximate = finite_difference_gradient(f, x, h=h)
    with torch.no_grad():
        value = abs(float(f(x)))
    resolution = torch.finfo(x.dtype).eps ** (1 / 3) * max(1.0, value)
    scale = torch.maximum(exact.abs(), approximate.abs()).clamp_min(resolution)
    difference = (exact - approximate).abs() / scale
    if difference.numel() == 0:
        return GradientCheck(0.0, ())
    # A NaN is the largest difference of all: argmax finds it first.
    worst = torch.unravel_index(difference.argmax(), difference.shape)
    return GradientCheck(difference[worst].item(), tuple(int(i) for i in worst))


def _gradient_of_one(f: ScalarFunction, x: Tensor) -> Tensor:
    grad = gradient(f)(x)
    assert isinstance(grad, Tensor)
    return grad


def leaves_of(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs as leaves of a new graph; the caller's own tensors stay untouched."""
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"input {i} is {kind}: a gradient needs a float tensor")
    return [x.detach().requires_grad_() for x in inputs]


def scalar_of(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"f returned {type(value).__name__}: it must return a tensor")
    if value.numel() != 1:
        raise ValueError(
            f"f returned shape {tuple(value.shape)}: a gradient needs a scalar function"
        )
    return value.squeeze()


def partials_of(
    value: Tensor, leaves: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    grads: Sequence[Tensor | None] = [None] * len(leaves)
    if value.requires_grad:
        grads = torch.autograd.grad(
            value, leaves, allow_unused=True, create_graph=create_graph
        )
    for i, (leaf, grad) in enumerate(zip(leaves, grads, strict=True)):
        if grad is None:
            raise ValueError(
                f"f does not depend on input {i} of shape {tuple(leaf.shape)}"
            )
    return tuple(grad for grad in grads if grad is not None)


def check_same_shape(x: Tensor, v: Tensor) -> None:
    if x.shape != v.shape:
        raise ValueError(
            f"v has shape {tuple(v.shape)}: a direction needs x's, {tuple(x.shape)}"
        )
