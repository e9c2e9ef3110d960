"""The audits against closed forms, Hessians, and losses computed on the spot."""

import math
import random

import pytest
import torch
from harness.networks import Centered
from torch import Tensor, nn

from minitrain.instruments.audit import audit_step, largest_stable_lr
from minitrain.instruments.observation import Vector
from minitrain.instruments.recompute import BatchLoss
from minitrain.instruments.truth import check_slope
from minitrain.sgd import SGD


@pytest.mark.parametrize("lr", [0.1, 0.5, 0.9, 1.0])
def test_on_a_paraboloid_everything_is_known(lr: float) -> None:
    """f = x^2 + y^2: ratio 1 - lr, curvature 2, largest stable learning rate 1."""
    theta = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    before, grad = theta.detach().clone(), 2 * theta.detach()
    theta.grad = grad.clone()
    SGD([theta], lr=lr).step()
    update = theta.detach() - before
    audit = audit_step(
        before.square().sum().item(),
        theta.detach().square().sum().item(),
        (grad @ update).item(),
        update.norm().item(),
        lr=lr,
    )
    assert audit.promised == pytest.approx(lr * 100, rel=1e-12)
    assert audit.ratio == pytest.approx(1 - lr, abs=1e-12)
    assert audit.curvature == pytest.approx(2, rel=1e-12)
    assert audit.largest_stable_lr == pytest.approx(1, rel=1e-12)
    assert audit.margin == pytest.approx(lr, rel=1e-12)


def test_what_is_below_rounding_is_unresolved() -> None:
    audit = audit_step(1.0, 1.0 - 1e-7, -1e-7, 1e-3, lr=0.1, resolution=1e-6)
    assert math.isnan(audit.ratio) and math.isnan(audit.curvature)
    assert math.isnan(audit.largest_stable_lr) and math.isnan(audit.margin)
    assert audit_step(1.0, 0.9, -0.1, 1.0, lr=0.1, resolution=1e-6).ratio == (
        pytest.approx(1)
    )


OPTIONS = [
    {},
    {"momentum": 0.5},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.5, "nesterov": True},
    {"momentum": 0.9, "nesterov": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("curvature", [0.3, 2.0, 50.0])
def test_the_largest_stable_lr_is_where_sgd_begins_to_diverge(
    curvature: float, options: dict
) -> None:
    """Walked by SGD itself on a parabola, a little below the limit and above it."""
    limit = largest_stable_lr(curvature, **options)
    ends = []
    for lr in (0.99 * limit, 1.01 * limit):
        theta = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        optimizer = SGD([theta], lr=lr, **options)
        for _ in range(3000):
            theta.grad = curvature * theta.detach()
            optimizer.step()
        ends.append(abs(theta.item()))
    assert ends[0] < 1e-3 and ends[1] > 1e3


def test_where_it_curves_down_no_learning_rate_is_too_large() -> None:
    assert largest_stable_lr(-1.0) == largest_stable_lr(0.0) == math.inf
    assert audit_step(1.0, -1.0, -1.0, 1.0, lr=0.1).margin == 0


def test_a_loss_that_overflows_ends_no_audit() -> None:
    audit = audit_step(1.0, math.inf, -1.0, 1.0, lr=0.1, resolution=1e-6)
    assert audit.margin == math.inf and audit.largest_stable_lr == 0


def small_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def test_the_loss_of_a_batch_is_that_of_the_same_pass_and_leaves_no_trace() -> None:
    """The same dropout mask; random state and running statistics as before."""
    torch.manual_seed(0)
    model, x = small_model(), torch.randn(16, 6)
    batch_loss = BatchLoss(model, lambda: model(x).square().mean())
    loss = model(x).square().mean().item()
    random_state = torch.get_rng_state()
    buffers = [b.clone() for b in model.buffers()]
    assert [batch_loss() for _ in range(3)] == [loss] * 3
    assert torch.equal(torch.get_rng_state(), random_state)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        assert torch.equal(buffer, before)
    assert model(x).square().mean().item() != loss, "without it the mask is another"


def test_buffers_that_a_pass_binds_anew_are_as_before() -> None:
    model, x = Centered(), torch.randn(16, 5)
    model(x)
    batch_loss = BatchLoss(model, lambda: model(x).square().mean())
    loss = model(x).square().mean().item()  # which the mean before is a part of
    before = model.mean, model.mean.clone(), model.num_passes
    assert [batch_loss(), batch_loss()] == [loss, loss]
    assert model.mean is before[0] and torch.equal(*before[:2])
    assert model.num_passes is before[2]


def test_a_loss_that_fails_leaves_no_trace_either() -> None:
    model, x = small_model(), torch.randn(16, 6)

    def failing() -> Tensor:
        model(x)
        raise KeyError

    state, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
    with pytest.raises(KeyError):
        BatchLoss(model, failing)()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, model.buffers(), buffers))


def slope_of(f, x: Tensor, direction: Tensor, claimed: float, **options):
    """check_slope of a function of one tensor, which has to be as before afterwards."""
    before = x.clone()
    checked = check_slope(
        lambda: f(x).item(),
        Vector([x]),
        Vector([direction]),
        claimed,
        f(x).item(),
        **options,
    )
    assert torch.equal(x, before)
    return checked


@pytest.mark.parametrize("seed", range(5))
def test_true_slopes_are_true_and_false_ones_false(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, generator=generator, dtype=torch.float64)
    a = torch.randn(20, generator=generator, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return (x @ a).sin() + x.pow(4).sum() / 4

    grad = (x @ a).cos() * a + x**3
    direction = grad / grad.norm()
    slope = slope_of(f, x, direction, grad.norm().item(), resolution=1e-14)
    assert not slope.is_wrong and slope.error < 1e-3
    for factor in (0.0, 0.5, 0.9, 1.1, 2.0, -1.0, 65536.0):
        claimed = factor * grad.norm().item()
        slope = slope_of(f, x, direction, claimed, resolution=1e-14)
        assert slope.is_wrong, factor
        assert slope.measured == pytest.approx(grad.norm().item(), rel=1e-3)


def test_a_kink_beside_is_no_lie() -> None:
    """|x| at 1e-4: a step of 1e-2 sees both sides, a shorter one the truth."""
    x = torch.tensor([1e-4], dtype=torch.float64)
    slope = slope_of(lambda x: x.abs().sum() + x.sum(), x, torch.ones(1).double(), 2.0)
    assert not slope.is_wrong


def test_a_flat_loss_says_nothing() -> None:
    x = torch.ones(3)
    slope = slope_of(
        lambda x: 1 + 0 * x.sum(), x, torch.eye(3)[0], 0.0, resolution=1e-6
    )
    assert not slope.is_wrong and math.isnan(slope.error)


def test_rounding_is_never_taken_for_a_lie() -> None:
    """A loss with noise as large as its stated resolution, at every steepness."""
    noise = random.Random(0)

    def f(x: Tensor) -> Tensor:
        return (1 + 10**-exponent * x.sum()) * (1 + noise.uniform(-1e-6, 1e-6))

    for exponent in [e / 4 for e in range(33)]:
        x = torch.zeros(1, dtype=torch.float64)
        one = torch.ones(1, dtype=torch.float64)
        slope = slope_of(f, x, one, 10**-exponent, resolution=2e-6)
        assert not slope.is_wrong, exponent
