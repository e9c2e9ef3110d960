"""The gradient against closed forms, finite differences and torch's own Hessian."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian

from minitrain.gradients import (
    check_gradient,
    directional_derivative,
    finite_difference_gradient,
    gradient,
    steepest_ascent,
)
from minitrain.hessians import hessian_vector_product

# name: (f, its gradient by hand), all for tensors of any shape
CLOSED_FORMS = {
    "paraboloid": (lambda x: (x**2).sum(), lambda x: 2 * x),
    "cubic": (lambda x: (x**3).sum(), lambda x: 3 * x**2),
    "waves": (lambda x: x.sin().sum(), torch.cos),
    "norm": (lambda x: (x**2).sum().sqrt(), lambda x: x / (x**2).sum().sqrt()),
    "product": (torch.prod, lambda x: x.prod() / x),
    "mean": (torch.mean, lambda x: torch.full_like(x, 1 / x.numel())),
    "softmax loss": (
        lambda x: x.flatten().logsumexp(0),
        lambda x: x.flatten().softmax(0).view_as(x),
    ),
}

every_function = pytest.mark.parametrize(
    "f, grad_f", CLOSED_FORMS.values(), ids=CLOSED_FORMS
)
both_precisions = pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=str
)


def paraboloid(x: Tensor) -> Tensor:
    return (x**2).sum()


def point(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Coordinates between 0.5 and 2, of which no two are equal."""
    return torch.linspace(0.5, 2, math.prod(shape), dtype=dtype).view(shape)


# The gradient.


@every_function
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)], ids=str)
def test_gradient_equals_closed_form(f, grad_f, shape):
    x = point(*shape)
    torch.testing.assert_close(gradient(f)(x), grad_f(x), rtol=1e-14, atol=1e-14)


def test_gradient_of_several_inputs_is_a_tuple():
    """f = x . y + a |y|^2, one of the inputs with another shape than the others."""
    x, y, a = point(3), -point(3), point()
    grads = gradient(lambda x, y, a: x @ y + a * y @ y)(x, y, a)
    assert isinstance(grads, tuple)
    for grad, expected in zip(grads, (y, x + 2 * a * y, y @ y), strict=True):
        torch.testing.assert_close(grad, expected)


def test_value_with_one_element_is_a_scalar():
    x = point(3)
    grad = gradient(lambda x: x[:1].view(1, 1))(x)
    assert isinstance(grad, Tensor) and grad.tolist() == [1, 0, 0]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_inputs_and_parameters_stay_untouched(requires_grad):
    weight = nn.Parameter(point(3))
    x = point(3).requires_grad_(requires_grad)
    x.grad = torch.ones_like(x)
    before = x.detach().clone()

    def f(x: Tensor) -> Tensor:
        return (weight * x**2).sum()

    for result in (
        gradient(f)(x),
        directional_derivative(f, x, before),
        steepest_ascent(f, x).direction,
        finite_difference_gradient(f, x),
        hessian_vector_product(f, x, before),
    ):
        assert isinstance(result, Tensor) and not result.requires_grad
    assert check_gradient(f, x).relative_difference < 1e-7
    assert x.requires_grad is requires_grad and weight.grad is None
    assert torch.equal(x, before) and torch.equal(x.grad, torch.ones_like(x))


def test_works_where_gradients_are_switched_off():
    x = point(2)
    with torch.no_grad():
        grad = gradient(paraboloid)(x)
        assert isinstance(grad, Tensor) and torch.equal(grad, 2 * x)
        assert torch.equal(hessian_vector_product(paraboloid, x, x), 2 * x)
        assert not torch.is_grad_enabled()


# Direction and steepness.


def test_gradient_points_up_the_steepest_of_3600_directions():
    def f(p: Tensor) -> Tensor:
        return p[0].exp() * p[1].sin() + p[0] * p[1] ** 2

    x = point(2)
    direction, slope = steepest_ascent(f, x)
    angles = torch.arange(3600, dtype=torch.float64) * (2 * math.pi / 3600)
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    slopes = torch.stack([directional_derivative(f, x, v) for v in directions])
    assert slopes.max() <= slope
    torch.testing.assert_close(slopes.max(), slope, rtol=1e-6, atol=0)
    best = directions[slopes.argmax()]
    torch.testing.assert_close(best, direction, rtol=0, atol=math.pi / 3600)
    torch.testing.assert_close(directional_derivative(f, x, direction), slope)


def test_directional_derivative_is_the_slope_of_a_straight_walk():
    """d/dt f(x + t v) at t = 0; along the level set, across the gradient, it is 0."""
    x, v = point(3), torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    slope = directional_derivative(torch.prod, x, v)
    walk = finite_difference_gradient(
        lambda t: (x + t * v).prod(), torch.zeros((), dtype=torch.float64)
    )
    torch.testing.assert_close(slope, walk, rtol=1e-9, atol=1e-9)
    across = torch.tensor([-x[1], x[0], 0], dtype=torch.float64)
    assert directional_derivative(paraboloid, x, across) == 0


def test_no_direction_rises_from_a_stationary_point():
    direction, slope = steepest_ascent(paraboloid, torch.zeros(2))
    assert slope == 0 and torch.equal(direction, torch.zeros(2))


# Finite differences, and the check that they make possible.


@every_function
@both_precisions
def test_finite_differences_equal_closed_form(f, grad_f, dtype, tolerance):
    x = point(2, 3, dtype=dtype)
    approximate = finite_difference_gradient(f, x)
    assert approximate.dtype == dtype
    torch.testing.assert_close(approximate, grad_f(x), rtol=tolerance, atol=tolerance)


def test_finite_difference_with_a_given_step():
    """((x + h)^3 - (x - h)^3) / 2h = 3 x^2 + h^2, and neither h nor 2h is rounded."""
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    approximate = finite_difference_gradient(lambda x: (x**3).sum(), x, h=0.25)
    assert approximate.tolist() == [3.0625, 12.0625]


def test_finite_difference_divides_by_the_step_that_was_taken():
    """In float32, 0.1 +- 1e-7 lie 3% closer together than 2e-7."""
    approximate = finite_difference_gradient(torch.sum, torch.tensor([0.1]), h=1e-7)
    assert approximate.item() == 1


def test_finite_differences_of_a_view_with_other_strides():
    x = point(3, 2).t()
    torch.testing.assert_close(finite_difference_gradient(paraboloid, x), 2 * x)


@every_function
@both_precisions
def test_check_accepts_a_right_gradient(f, grad_f, dtype, tolerance):
    check = check_gradient(f, point(2, 3, dtype=dtype))
    assert check.relative_difference < tolerance


class Faulty(torch.autograd.Function):
    """|x|^2, whose backward has one component wrong by a factor."""

    @staticmethod
    def forward(ctx, x, component, factor):
        ctx.save_for_backward(x)
        ctx.component, ctx.factor = component, factor
        return (x**2).sum()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        wrong = 2 * x * grad
        wrong[ctx.component] *= ctx.factor
        return wrong, None, None


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.01, 1.00001, 100.0])
@pytest.mark.parametrize("component", [(0, 0), (1, 2)])
def test_check_finds_the_component_that_is_wrong(component, factor):
    check = check_gradient(lambda x: Faulty.apply(x, component, factor), point(2, 3))
    assert check.component == component
    expected = abs(factor - 1) / max(abs(factor), 1)
    assert check.relative_difference == pytest.approx(expected, rel=1e-2)


def test_check_reports_nan_as_the_largest_difference():
    check = check_gradient(lambda x: Faulty.apply(x, (1, 2), math.nan), point(2, 3))
    assert check.component == (1, 2) and math.isnan(check.relative_difference)


def test_check_of_no_components_finds_no_difference():
    assert check_gradient(paraboloid, torch.ones(0)) == (0.0, ())


# Second derivatives.


@every_function
@pytest.mark.parametrize("shape", [(3,), (2, 3)], ids=str)
def test_hessian_vector_product_equals_the_full_hessian(f, grad_f, shape):
    x, v = point(*shape), point(*shape).flip(0)
    full = hessian(f, x).view(x.numel(), x.numel())
    expected = (full @ v.flatten()).view(shape)
    torch.testing.assert_close(hessian_vector_product(f, x, v), expected)


@pytest.mark.parametrize(
    "f", [torch.sum, lambda x: 0 * x[1], lambda x: nn.Parameter(point(3)) @ x]
)
def test_linear_functions_have_no_curvature(f):
    x = point(3)
    assert torch.equal(hessian_vector_product(f, x, x), torch.zeros_like(x))


# Errors.


@pytest.mark.parametrize(
    "f, inputs, error, message",
    [
        (lambda x: x * 2, [point(3)], ValueError, r"f returned shape \(3,\)"),
        (lambda x: x[:0], [point(3)], ValueError, r"f returned shape \(0,\)"),
        (lambda x: 1.0, [point(3)], TypeError, "f returned float"),
        (paraboloid, [torch.arange(3)], TypeError, "input 0 is torch.int64"),
        (paraboloid, [torch.ones(2) * 1j], TypeError, "input 0 is torch.complex64"),
        (paraboloid, [[1.0, 2.0]], TypeError, "input 0 is list"),
        (lambda x, y: x.sum(), [point(3), point(2)], ValueError, r"input 1 .* \(2,\)"),
        (lambda x: torch.ones(()), [point(3)], ValueError, "not depend on input 0"),
        (lambda x: x.detach().sum(), [point(3)], ValueError, "not depend on input 0"),
    ],
)
def test_what_has_no_gradient_is_refused(f, inputs, error, message):
    with pytest.raises(error, match=message):
        gradient(f)(*inputs)


@pytest.mark.parametrize("along", [directional_derivative, hessian_vector_product])
def test_direction_of_another_shape_is_refused(along):
    """(1, 3) would broadcast against (3,), silently."""
    with pytest.raises(ValueError, match=r"v has shape \(1, 3\).* x's, \(3,\)"):
        along(paraboloid, point(3), torch.ones(1, 3))


@pytest.mark.parametrize("h", [0.0, -1.0, math.nan])
def test_step_that_is_not_positive_is_refused(h):
    with pytest.raises(ValueError, match=f"h = {h}"):
        finite_difference_gradient(paraboloid, point(3), h=h)


def test_step_that_does_not_move_x_is_refused():
    x = torch.tensor([0.0, 1.25], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"does not move x\[1\] = 1.25: too small"):
        finite_difference_gradient(paraboloid, x, h=1e-16)
