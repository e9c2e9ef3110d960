"""Evaluation against the definitions of what it measures."""

import math

import pytest
import torch
from harness.networks import network, tensors
from torch import nn

from minitrain.batches import Batches
from minitrain.evaluation import evaluate, predict

cross_entropy = nn.functional.cross_entropy


def test_evaluate_averages_over_samples_and_restores_every_mode() -> None:
    inputs, targets = tensors()
    model = network(dropout=0.5)
    model[2].eval()
    modes = [module.training for module in model.modules()]
    result = evaluate(model, Batches(inputs, targets, batch_size=5), cross_entropy)
    assert [module.training for module in model.modules()] == modes
    model.eval()
    logits = model(inputs)
    assert result.loss == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-6)
    assert result.accuracy == (logits.argmax(1) == targets).double().mean().item()
    # Another batch size may sum the products in another order.
    torch.testing.assert_close(predict(model, inputs, batch_size=7), logits)


def test_evaluate_of_a_regression_has_no_accuracy() -> None:
    inputs = torch.randn(6, 6)
    result = evaluate(network(), [(inputs, torch.zeros(6, 4))], nn.functional.mse_loss)
    assert math.isfinite(result.loss) and math.isnan(result.accuracy)
    with pytest.raises(ValueError, match="no batch"):
        evaluate(network(), [], cross_entropy)
