"""Every measurement against its definition, computed another way."""

import math

import pytest
import torch
from torch import nn

from minitrain.instruments import fingerprint, grad_norm, grad_norms, worst_mistakes


def test_grad_norm_is_the_length_of_the_whole_vector() -> None:
    """Not the sum of the parts' lengths, and not their mean."""
    torch.manual_seed(0)
    grads = [torch.randn(7, 5), torch.randn(()), torch.randn(0), torch.randn(11)]
    exact = math.sqrt(sum(x * x for g in grads for x in g.double().flatten().tolist()))
    assert grad_norm(grads).item() == pytest.approx(exact, rel=1e-6)
    assert grad_norm([torch.cat([g.flatten() for g in grads])]).item() == pytest.approx(
        exact, rel=1e-6
    )


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
