"""Norms against their definition, computed another way."""

import math

import pytest
import torch
from torch import nn

from minitrain.norms import clip_factor, grad_norms, norm, norms


def test_the_norm_is_that_of_the_whole_vector() -> None:
    """Not the sum of the parts' lengths, and not their mean."""
    torch.manual_seed(0)
    grads = [torch.randn(7, 5), torch.randn(()), torch.randn(0), torch.randn(11)]
    exact = math.sqrt(sum(x * x for g in grads for x in g.double().flatten().tolist()))
    assert norm(grads).item() == pytest.approx(exact, rel=1e-6)
    assert norm([torch.cat([g.flatten() for g in grads])]).item() == pytest.approx(
        exact, rel=1e-6
    )


@pytest.mark.parametrize("num", [1, 511, 512, 513, 100_000, 2**20 + 7])
def test_the_norm_is_right_where_a_running_sum_is_not(num: int) -> None:
    """To 2e-7, against float64; torch's own norm misses that at a million elements."""
    x = torch.randn(num, generator=torch.Generator().manual_seed(0))
    exact = x.double().norm().item()
    assert norm(x).item() == pytest.approx(exact, rel=2e-7)
    assert norm(x).dtype == torch.float32 and norm(x).shape == ()
    half = norm(x.bfloat16()).item()
    assert half == pytest.approx(x.bfloat16().double().norm().item(), rel=2e-7)
    both = norm(torch.complex(x, x)).item()
    assert both == pytest.approx(exact * math.sqrt(2), rel=3e-7)
    assert norm(x.double()).item() == pytest.approx(exact, rel=1e-12)


def test_the_norm_of_strided_and_sparse_tensors() -> None:
    x = torch.randn(30, 40)
    exact = x.double().norm().item()
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 0]]), torch.tensor([3.0, 1.0]), (5,), check_invariants=True
    )
    assert norm(x.t()).item() == pytest.approx(exact, rel=2e-7)
    assert norm(sparse).item() == 4  # two entries of one element add up


def test_grad_norms_belong_to_their_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0](torch.randn(5, 4)).square().sum().backward()
    found = grad_norms(model.parameters())
    assert found[2:].tolist() == [0, 0]  # no gradient has reached them
    for size, parameter in zip(found[:2], model[0].parameters(), strict=True):
        exact = math.sqrt(sum(x * x for x in parameter.grad.flatten().tolist()))
        assert size.item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 2.0, 1e9])
@pytest.mark.parametrize("size", [0.0, 1e-8, 0.5, 3.0, 1e6])
def test_clipping_is_torchs(size: float, clip_norm: float) -> None:
    """The same factor, to the bit, as torch multiplies a gradient by."""
    total = torch.tensor(size)
    theirs = torch.zeros(1, requires_grad=True)
    theirs.grad = torch.ones(1)
    nn.utils.clip_grads_with_norm_([theirs], clip_norm, total)
    assert torch.equal(clip_factor(total, clip_norm), theirs.grad[0])


def test_the_norms_of_parts_make_that_of_the_whole() -> None:
    parts = [torch.randn(3, 5), torch.randn(7)]
    exact = [math.sqrt(p.double().square().sum().item()) for p in parts]
    assert norms(parts).tolist() == pytest.approx(exact, rel=1e-6)
    assert norm(parts).item() == pytest.approx(math.hypot(*exact), rel=1e-6)
