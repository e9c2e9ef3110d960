"""The largest eigenvalue against the whole Hessian, and what must stay untouched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional as F

from minitrain.instruments.sharpness import largest_eigenvalue, sharpness


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def exact(
    model: nn.Module, x: Any, y: Tensor, loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """From all second derivatives."""
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in trainable.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        pairs = zip(trainable.items(), parts, strict=True)
        parameters = {name: part.view_as(p) for (name, p), part in pairs}
        return loss_fn(functional_call(model, parameters, (x,)), y)

    theta = torch.cat([p.flatten() for p in trainable.values()])
    return torch.linalg.eigvalsh(hessian(loss, theta))[-1].item()


def tanh_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


@pytest.mark.parametrize(
    ("dtype", "num_iterations", "rel"),
    [(torch.float64, 66, 1e-10), (torch.float64, 12, 0.02), (torch.float32, 40, 1e-5)],
)
def test_sharpness_is_the_largest_eigenvalue_of_the_whole_hessian(
    dtype: torch.dtype, num_iterations: int, rel: float
) -> None:
    model = tanh_net().to(dtype)
    x, y = torch.randn(50, 5, dtype=dtype), torch.randint(3, (50,))
    value = sharpness(model, x, y, F.cross_entropy, num_iterations=num_iterations)
    expected = exact(model, x, y, F.cross_entropy)
    assert value == pytest.approx(expected, rel=rel)
    assert value <= expected * (1 + 1e-5)  # it comes from below


def test_frozen_parameters_are_no_variables() -> None:
    model = tanh_net().double()
    model[0].requires_grad_(False)
    x, y = torch.randn(50, 5).double(), torch.randint(3, (50,))
    value = sharpness(model, x, y, F.cross_entropy, num_iterations=24)
    assert value == pytest.approx(exact(model, x, y, F.cross_entropy), rel=1e-10)


@pytest.mark.parametrize(
    ("scales", "largest"),
    [
        ([1.0, 1.0], 2.0),  # x^2 + y^2
        ([1.0, -3.0], 2.0),  # a saddle: not the largest in magnitude
        ([-1.0, -3.0], -2.0),  # a maximum
        ([0.0, 0.0], 0.0),
        ([5.0], 10.0),
    ],
)
def test_quadratic_functions(scales: list[float], largest: float) -> None:
    point = torch.randn(len(scales), dtype=torch.float64)
    factors = torch.tensor(scales, dtype=torch.float64)
    value = largest_eigenvalue(lambda p: (factors * p**2).sum(), point)
    assert value == pytest.approx(largest, abs=1e-14)
    if scales == [1.0, 1.0]:
        assert value == 2


def test_a_linear_function_and_an_unused_component_do_not_curve() -> None:
    assert largest_eigenvalue(lambda p: p.sum(), torch.ones(3)) == 0
    value = largest_eigenvalue(lambda p: (p[:3] ** 2).sum(), torch.ones(5))
    assert value == pytest.approx(2, rel=1e-6)


def test_more_iterations_than_needed_do_no_harm() -> None:
    scales = torch.cat([torch.linspace(0, 1, 200), torch.tensor([50.0, 49.0])])
    found = largest_eigenvalue(
        lambda p: (scales * p**2).sum() / 2, torch.zeros(202), num_iterations=150
    )
    assert found == pytest.approx(50, rel=1e-5)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(), nn.Linear(7, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("training", [True, False])
def test_everything_stays_as_it_was_and_the_result_is_the_same_again(
    training: bool,
) -> None:
    model = Noisy().train(training)
    model.layers[1].train(not training)  # a mode of its own
    x, y = torch.randn(50, 5), torch.randint(3, (50,))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    before = [t.clone() for t in (*model.state_dict().values(), *grads)]
    modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
    values = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            values.append(sharpness(model, x, y, F.cross_entropy))
        assert torch.equal(torch.get_rng_state(), rng)
        torch.rand(3)  # what has been drawn before plays no part
        rng = torch.get_rng_state()
    assert values[0] == values[1] > 0
    after = (*model.state_dict().values(), *grads)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert [m.training for m in model.modules()] == modes


def test_errors() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        sharpness(frozen, torch.ones(1, 2), torch.ones(1, 2), F.mse_loss)
    with pytest.raises(ValueError, match="num_iterations = 0"):
        largest_eigenvalue(lambda p: (p**2).sum(), torch.ones(2), num_iterations=0)


class Attention(nn.Module):
    """Scaled dot product attention over three places, of inputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        query, key, value = self.linear(inputs["x"]).chunk(3, dim=-1)
        return self.head(F.scaled_dot_product_attention(query, key, value).mean(1))


def test_attention_and_nested_inputs_have_a_sharpness() -> None:
    """Of the kernels of attention one alone can be differentiated twice."""
    model = Attention().double()
    inputs = {"x": torch.randn(9, 3, 4, dtype=torch.float64)}
    y = torch.randint(2, (9,))
    value = sharpness(model, inputs, y, F.cross_entropy, num_iterations=70)

    def by_formula(inputs: dict[str, Tensor]) -> Tensor:
        query, key, value = model.linear(inputs["x"]).chunk(3, dim=-1)
        weights = (query @ key.transpose(1, 2) / 2).softmax(dim=-1)
        return model.head((weights @ value).mean(1))

    model.forward = by_formula
    assert value == pytest.approx(exact(model, inputs, y, F.cross_entropy), rel=1e-9)
