"""Noise scales against whole populations."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minitrain.instruments.layer_hooks import PerSampleNorms
from minitrain.instruments.noise import NoiseScale, noise_estimate


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_noise_estimates_are_unbiased_over_all_batches() -> None:
    """The mean over all pairs from a population, drawn independently, is exact."""
    grads = torch.randn(7, 3, dtype=torch.float64) + 1
    pairs = [torch.stack([a, b]) for a in grads for b in grads]
    estimates = [
        noise_estimate(
            pair.square().sum(1).mean().item(), pair.mean(0).square().sum().item(), 2
        )
        for pair in pairs
    ]
    square = sum(e.gradient_square for e in estimates) / len(pairs)
    trace = sum(e.trace for e in estimates) / len(pairs)
    assert square == pytest.approx(grads.mean(0).square().sum().item(), rel=1e-12)
    assert trace == pytest.approx(grads.var(0, correction=0).sum().item(), rel=1e-12)
    with pytest.raises(ValueError, match="num_samples = 1"):
        noise_estimate(1.0, 1.0, 1)


def test_noise_scale_is_that_of_the_whole_population() -> None:
    """Brute force: the gradients of all 2000 samples, their mean and covariance."""
    inputs = torch.randn(2000, 6)
    targets = (inputs[:, 0] + 2 * torch.randn(2000) > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        loss = F.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    grads = torch.stack(rows)
    exact = (grads.var(0, correction=0).sum() / grads.mean(0).square().sum()).item()

    noise = NoiseScale(decay=0.999)
    for _ in range(1500):
        batch = torch.randint(2000, (32,))
        model.zero_grad()
        with PerSampleNorms(model).watch(check=False) as norms:
            F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        square = sum(float(p.grad.square().sum()) for p in model.parameters())
        mean_square = norms.mean_square(32)
        assert mean_square is not None
        noise = noise.update(noise_estimate(mean_square, square, 32))
    assert noise.value == pytest.approx(exact, rel=0.1)


def test_averages_are_corrected_for_their_start_and_divided_last() -> None:
    noise = NoiseScale(decay=0.5)
    assert noise.value is None and noise.estimate is None
    assert noise.signal_share(1) is None
    batches = [(7.0, 5.0, 2), (9.0, 4.0, 4), (3.0, 1.0, 8)]
    each = [noise_estimate(*batch) for batch in batches]
    for estimate in each:
        noise = noise.update(estimate)
    weights = [1 / 7, 2 / 7, 4 / 7]
    square = sum(w * e.gradient_square for w, e in zip(weights, each, strict=True))
    trace = sum(w * e.trace for w, e in zip(weights, each, strict=True))
    assert noise.estimate is not None
    assert noise.estimate == pytest.approx((square, trace), rel=1e-14)
    assert noise.value == pytest.approx(trace / square, rel=1e-14)
    share = square / (square + trace / 8)
    assert noise.signal_share(8) == pytest.approx(share, rel=1e-14)


def test_an_unresolved_scale_is_none_and_what_tells_nothing_is_passed_over() -> None:
    noise = NoiseScale().update(noise_estimate(10.0, 1.0, 4))
    assert noise.estimate is not None and noise.estimate.gradient_square == -2
    assert noise.value is None and noise.signal_share(4) == 0
    for square in (float("nan"), float("inf")):
        assert noise.update(noise_estimate(square, 1.0, 4)) is noise
    with pytest.raises(ValueError, match="decay = 1"):
        NoiseScale(decay=1)


def test_equal_gradients_have_no_noise_even_after_rounding() -> None:
    noise = NoiseScale().update(noise_estimate(1.0, 1.0000001, 8))
    assert noise.value == 0 and noise.signal_share(8) == 1


def test_a_saved_state_goes_on_to_the_last_bit() -> None:
    whole, first = NoiseScale(0.9), NoiseScale(0.9)
    batches = [(x + 1.0, x * 0.7, 64) for x in torch.rand(20).tolist()]
    for batch in batches:
        whole = whole.update(noise_estimate(*batch))
    for batch in batches[:9]:
        first = first.update(noise_estimate(*batch))
    second = NoiseScale(**json.loads(json.dumps(first.state_dict())))
    for batch in batches[9:]:
        second = second.update(noise_estimate(*batch))
    assert second == whole and second.value == whole.value
