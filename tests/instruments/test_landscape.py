"""The loss around weights against closed forms, and against models that have them."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitrain.batches import Batches
from minitrain.evaluation import evaluate
from minitrain.instruments.landscape import (
    line,
    losses_at,
    nearest_alpha,
    plane,
    random_direction,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


class Norms(nn.Sequential):
    """Convolution, normalizations, dropout, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(36, 5),
            nn.LayerNorm(5),
            nn.Linear(5, 3).requires_grad_(False),
        )


def images() -> Batches:
    return Batches(torch.randn(60, 1, 5, 5), torch.randint(3, (60,)), 25)


def trained_a_little(model: nn.Module, batches: Batches) -> nn.Module:
    """The model with running statistics and weights that are not the initial ones."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in batches.epoch(1):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model


def test_of_a_linear_model_it_is_the_exact_quadratic() -> None:
    """|r + a X D + b X E|^2 / N, with the residuals r: a polynomial of a and b."""
    model = nn.Linear(4, 2).double()
    x, y = torch.randn(30, 4).double(), torch.randn(30, 2).double()
    found = plane(model, [(x, y)], F.mse_loss, radius=2.0, num_points=5, seed=7)
    assert found.coordinates.tolist() == [-2, -1, 0, 1, 2]
    draw = torch.Generator().manual_seed(7)
    d, e = (random_direction(model, draw)["weight"] for _ in range(2))
    r, p, q = (model(x) - y).detach(), x @ d.T, x @ e.T
    a, b = torch.meshgrid(found.coordinates, found.coordinates, indexing="xy")
    products = [(u * v).mean() for u, v in ((r, r), (r, p), (r, q), (p, p), (p, q))]
    rr, rp, rq, pp, pq = products
    expected = rr + 2 * a * rp + 2 * b * rq
    expected += a**2 * pp + 2 * a * b * pq + b**2 * (q * q).mean()
    torch.testing.assert_close(found.losses, expected, rtol=1e-13, atol=0)
    assert found.losses[2, 2] == F.mse_loss(model(x), y)


def test_every_value_is_the_evaluated_loss_of_a_model_with_these_weights() -> None:
    batches = images()
    model = trained_a_little(Norms(), batches)
    found = plane(model, batches, F.cross_entropy, num_points=3)
    draw = torch.Generator().manual_seed(0)
    d, e = (random_direction(model, draw) for _ in range(2))
    for i, b in enumerate((-1, 0, 1)):
        for j, a in enumerate((-1, 0, 1)):
            other = copy.deepcopy(model)
            with torch.no_grad():
                for name, parameter in other.named_parameters():
                    if name in d:
                        parameter += a * d[name]
                        parameter += b * e[name]
            expected = evaluate(other, batches, F.cross_entropy).loss
            assert found.losses[i, j] == pytest.approx(expected, rel=2e-6)
    assert found.losses[1, 1] == evaluate(model, batches, F.cross_entropy).loss


def test_a_direction_has_the_norm_of_every_filter_and_moves_nothing_else() -> None:
    model = Norms()
    direction = random_direction(model, generator())
    assert list(direction) == ["0.weight", "5.weight"]
    for name, part in direction.items():
        weight = model.state_dict()[name]
        for filter_, own in zip(part, weight, strict=True):
            assert filter_.norm().item() == pytest.approx(own.norm().item(), rel=1e-6)
    # Noise, and the same again: no filter is a multiple of its weights or of another.
    again = random_direction(model, generator())
    assert all(torch.equal(direction[name], again[name]) for name in direction)
    rows = torch.cat([direction["5.weight"], model.state_dict()["5.weight"]])
    assert F.normalize(rows).mm(F.normalize(rows).T).triu(1).abs().max() < 0.7


def test_scaled_layers_that_compute_the_same_have_the_same_landscape() -> None:
    """ReLU lets a factor pass from layer to layer: what filters are normalized for."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(40, 6).double(), torch.randint(3, (40,))
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, factor in zip(
            scaled.parameters(), (8, 8, 1 / 8, 1), strict=True
        ):
            parameter *= factor
    first, second = (plane(m, [(x, y)], F.cross_entropy) for m in (model, scaled))
    torch.testing.assert_close(first.losses, second.losses)


def test_the_line_ends_at_the_two_models_with_their_statistics() -> None:
    batches = images()
    start = Norms()
    end = trained_a_little(copy.deepcopy(start), batches)
    alphas = torch.tensor([0.0, 0.25, 1.0])
    states = start.state_dict(), end.state_dict()
    losses = line(*states, alphas, end, batches, F.cross_entropy)
    ends = [evaluate(each, batches, F.cross_entropy).loss for each in (start, end)]
    assert losses[[0, 2]].tolist() == ends
    between = copy.deepcopy(end)
    parts = (state.values() for state in (between.state_dict(), *states))
    for x, a, b in zip(*parts, strict=True):
        x.copy_(0.75 * a + 0.25 * b if x.is_floating_point() else b)
    assert losses[1].item() == evaluate(between, batches, F.cross_entropy).loss


def test_on_the_line_of_a_linear_model_the_loss_is_a_parabola() -> None:
    start, end = nn.Linear(4, 1).double(), nn.Linear(4, 1).double()
    x, y = torch.randn(30, 4).double(), torch.randn(30, 1).double()
    alphas = torch.linspace(-1, 2, 7, dtype=torch.float64)
    states = start.state_dict(), end.state_dict()
    found = line(*states, alphas, nn.Linear(4, 1).double(), [(x, y)], F.mse_loss)
    r, s = (start(x) - y).detach(), (end(x) - start(x)).detach()
    expected = [(r + alpha * s).square().mean() for alpha in alphas]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-13, atol=0)


def test_the_nearest_point_of_a_line_is_a_projection() -> None:
    start, end, other = ({"w": torch.randn(3, 2), "b": torch.randn(4)} for _ in "abc")
    flat = [torch.cat([x.flatten() for x in w.values()]) for w in (start, end, other)]
    alpha = nearest_alpha(other, start, end)
    nearest = torch.lerp(flat[0], flat[1], alpha)
    assert torch.dot(flat[2] - nearest, flat[1] - flat[0]).abs() < 1e-5
    assert (nearest_alpha(start, start, end), nearest_alpha(end, start, end)) == (0, 1)
    assert nearest_alpha(other, start, start) == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_is(training: bool) -> None:
    batches = images()
    model = trained_a_little(Norms(), batches).train(training)
    before = [x.clone() for x in model.state_dict().values()]
    grads = [p.grad for p in model.parameters()]
    modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
    plane(model, batches, F.cross_entropy, num_points=3)
    losses_at([{"5.bias": torch.ones(5)}], model, batches, F.cross_entropy)
    assert all(map(torch.equal, model.state_dict().values(), before))
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: plane(Norms(), images(), F.cross_entropy, num_points=4),
            "must be odd",
        ),
        (lambda: random_direction(nn.BatchNorm1d(3), generator()), "no filters"),
    ],
)
def test_errors(call: Callable[[], Tensor], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()
