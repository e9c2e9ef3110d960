"""The loss of guessing, against closed forms."""

import functools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    l1_loss,
    mse_loss,
)

from minitrain.instruments.guessing import loss_of_guessing

LABELS = torch.tensor([0] * 6 + [1] * 3 + [2])
SHARES = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
ENTROPY = -(SHARES * SHARES.log()).sum().item()


def test_of_classes_it_is_the_entropy_of_their_frequencies() -> None:
    loss = loss_of_guessing(cross_entropy, torch.zeros(2, 3), LABELS)
    assert loss == pytest.approx(ENTROPY, rel=1e-6)
    uniform = loss_of_guessing(cross_entropy, torch.zeros(1, 3), torch.arange(30) % 3)
    assert uniform == pytest.approx(math.log(3), rel=1e-6)


def test_label_smoothing_counts() -> None:
    smooth = functools.partial(cross_entropy, label_smoothing=0.3)
    targets = 0.7 * SHARES + 0.3 / 3
    expected = -(targets * SHARES.log()).sum().item()
    loss = loss_of_guessing(smooth, torch.zeros(2, 3), LABELS)
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_classes_may_stand_in_the_second_dimension_or_in_the_last(last: bool) -> None:
    targets = LABELS.reshape(2, 5)

    def loss_fn(outputs, targets):
        return cross_entropy(outputs.mT if last else outputs, targets)

    outputs = torch.zeros(2, 5, 3) if last else torch.zeros(2, 3, 5)
    loss = loss_of_guessing(loss_fn, outputs, targets)
    assert loss == pytest.approx(ENTROPY, rel=1e-6)


def test_places_to_ignore_do_not_count() -> None:
    targets = torch.cat([LABELS, torch.full((7,), -100)])
    loss = loss_of_guessing(cross_entropy, torch.zeros(1, 3), targets)
    assert loss == pytest.approx(ENTROPY, rel=1e-6)


def test_of_real_targets_it_is_the_loss_of_their_mean() -> None:
    torch.manual_seed(0)
    targets = 40 + 70 * torch.randn(500, 2, dtype=torch.float64)
    outputs = torch.zeros(1, 2, dtype=torch.float64)
    variance = targets.var(dim=0, correction=0).mean().item()
    assert loss_of_guessing(mse_loss, outputs, targets) == pytest.approx(variance)
    distance = (targets - targets.mean(dim=0)).abs().mean().item()
    assert loss_of_guessing(l1_loss, outputs, targets) == pytest.approx(distance)


def test_of_probabilities_it_is_their_entropy_where_the_loss_takes_logits() -> None:
    targets = (torch.arange(10) < 2).float()
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    logits = loss_of_guessing(binary_cross_entropy_with_logits, torch.zeros(1), targets)
    assert logits == pytest.approx(entropy, rel=1e-6)
    column = loss_of_guessing(
        lambda outputs, t: binary_cross_entropy_with_logits(outputs, t[:, None]),
        torch.zeros(1, 1),
        targets,
    )
    assert column == pytest.approx(entropy, rel=1e-6)


def test_where_the_loss_takes_no_such_outputs_there_is_none() -> None:
    ctc = nn.CTCLoss()
    assert loss_of_guessing(cross_entropy, (torch.zeros(2, 3),), LABELS) is None
    assert loss_of_guessing(cross_entropy, torch.zeros(2, 3), {"y": LABELS}) is None
    assert loss_of_guessing(ctc, torch.zeros(2, 3), LABELS) is None
    assert loss_of_guessing(cross_entropy, torch.zeros(2, 3), torch.tensor(0)) is None


def test_targets_that_are_true_or_false_are_numbers() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(outputs[:, 0], targets.float())

    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    targets = torch.arange(10) < 2
    found = loss_of_guessing(loss, torch.zeros(1, 1), targets)
    assert found == pytest.approx(entropy, rel=1e-6)
    assert loss_of_guessing(loss, torch.zeros(1, 1), targets & False) is not None
