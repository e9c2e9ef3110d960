"""Every measurement against its definition, computed another way."""

import math

import pytest
import torch
from torch import nn

from minitrain.instruments import (
    fingerprint,
    grad_norm,
    grad_norms,
    length,
    worst_mistakes,
)


def test_grad_norm_is_the_length_of_the_whole_vector() -> None:
    """Not the sum of the parts' lengths, and not their mean."""
    torch.manual_seed(0)
    grads = [torch.randn(7, 5), torch.randn(()), torch.randn(0), torch.randn(11)]
    exact = math.sqrt(sum(x * x for g in grads for x in g.double().flatten().tolist()))
    assert grad_norm(grads).item() == pytest.approx(exact, rel=1e-6)
    assert grad_norm([torch.cat([g.flatten() for g in grads])]).item() == pytest.approx(
        exact, rel=1e-6
    )


@pytest.mark.parametrize("num", [1, 511, 512, 513, 100_000, 2**20 + 7])
def test_length_is_right_where_a_running_sum_is_not(num: int) -> None:
    """To 2e-7, against float64; torch's own norm misses that at a million elements."""
    x = torch.randn(num, generator=torch.Generator().manual_seed(0))
    exact = x.double().norm().item()
    assert length(x).item() == pytest.approx(exact, rel=2e-7)
    assert length(x).dtype == torch.float32 and length(x).shape == ()
    half = length(x.bfloat16()).item()
    assert half == pytest.approx(x.bfloat16().double().norm().item(), rel=2e-7)
    both = length(torch.complex(x, x)).item()
    assert both == pytest.approx(exact * math.sqrt(2), rel=3e-7)
    assert length(x.double()).item() == pytest.approx(exact, rel=1e-12)


def test_length_of_strided_and_sparse_tensors() -> None:
    x = torch.randn(30, 40)
    exact = x.double().norm().item()
    sparse = torch.sparse_coo_tensor(
        [[0, 0]], torch.tensor([3.0, 1.0]), (5,), check_invariants=True
    )
    assert length(x.t()).item() == pytest.approx(exact, rel=2e-7)
    assert length(sparse).item() == 4  # two entries of one element add up


def test_grad_norms_belong_to_their_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0](torch.randn(5, 4)).square().sum().backward()
    norms = grad_norms(model.parameters())
    assert norms[2:].tolist() == [0, 0]  # no gradient has reached them
    for norm, parameter in zip(norms[:2], model[0].parameters(), strict=True):
        exact = math.sqrt(sum(x * x for x in parameter.grad.flatten().tolist()))
        assert norm.item() == pytest.approx(exact, rel=1e-6)


def test_worst_mistakes_are_wrong_and_sorted() -> None:
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(200, 5), torch.randint(5, (200,))
    mistakes = worst_mistakes(logits, targets, num=20)
    assert len(mistakes) == 20
    wrong = {
        i: max(math.exp(x) for x in row) / sum(math.exp(x) for x in row)
        for i, row in enumerate(logits.tolist())
        if row.index(max(row)) != targets[i]
    }
    expected = sorted(wrong, key=lambda i: -wrong[i])[:20]
    assert [m.example for m in mistakes] == expected
    for m in mistakes:
        assert m.target == targets[m.example] and m.target != m.predicted
        assert m.probability == pytest.approx(wrong[m.example], rel=1e-5)
    assert worst_mistakes(torch.eye(3), torch.arange(3), num=5) == []


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.tensor([1.0, 2.0]), "n": [0.5, None]},
        {"w": torch.tensor([1.0, -0.0], dtype=torch.float64), "n": [0.5, None]},
        {"w": torch.tensor([[1.0, -0.0]]), "n": [0.5, None]},
        {"w": torch.tensor([1.0, 0.0]), "n": [0.5, None]},
        {"v": torch.tensor([1.0, -0.0]), "n": [0.5, None]},
        {"w": torch.tensor([1.0, -0.0]), "n": [0.5, 0.0]},
        {"w": torch.tensor([1.0, -0.0]), "n": [0.5]},
    ],
    ids=["value", "dtype", "shape", "sign of zero", "name", "number", "length"],
)
def test_fingerprint_sees_every_difference(other: dict) -> None:
    state = {"w": torch.tensor([1.0, -0.0]), "n": [0.5, None]}
    same = {"w": torch.tensor([[1.0], [-0.0]]).t()[0], "n": [0.5, None]}
    assert fingerprint(state) == fingerprint(same)
    assert fingerprint(state) != fingerprint(other)
