"""Evaluation against the definitions of what it measures."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from harness.networks import network, tensors
from torch import Tensor, nn

from minitrain.batches import Batches
from minitrain.evaluation import evaluate, predict
from minitrain.metrics import accuracy

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


def by_hand(outputs: Tensor, targets: Tensor) -> float:
    """The accuracy counted place by place: outputs (N, C, ...), targets (N, ...)."""
    num_right = 0
    for index in product(*map(range, targets.shape)):
        scores = outputs[index[0], :, *index[1:]].tolist()
        num_right += scores.index(max(scores)) == targets[index].item()
    return num_right / targets.numel()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(7, 4), (7, 2), (7, 4, 5), (5, 4, 6, 3), (5, 3, 6, 3), (4, 3, 2, 3, 2)],
    ids=str,
)
def test_accuracy_is_the_share_of_places_that_are_right(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Of samples, of tokens, of pixels, also where an image is as wide as classes."""
    torch.manual_seed(0)
    outputs = torch.randn(shape)
    targets = torch.randint(shape[1], (shape[0], *shape[2:])).to(dtype)
    values = accuracy(outputs, targets)["accuracy"]
    assert values.shape == (shape[0],)
    assert values.mean().item() == pytest.approx(by_hand(outputs, targets), rel=1e-12)
    # In batches of unequal sizes the mean is still that over samples.
    batches = [(outputs[:2], targets[:2]), (outputs[2:], targets[2:])]
    result = evaluate(nn.Identity(), batches, lambda x, y: x.mean())
    assert result.accuracy == pytest.approx(by_hand(outputs, targets), rel=1e-12)
    assert result.loss == pytest.approx(outputs.double().mean().item(), abs=1e-6)


CLASSES = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.randn(4, 1), CLASSES),  # the logit of a binary model
        (torch.randn(4, 1), torch.zeros(4).long()),
        (torch.randn(4, 1), CLASSES[:, None].float()),
        (torch.randn(4), CLASSES),
        (torch.randn(4, 5, 2), torch.ones(4, 5).long()),  # (N, L, V)
        (torch.randn(4, 5, 5), torch.ones(4, 5).long()),  # V == L: which is which?
        (torch.randn(4, 3, 3, 3), torch.ones(4, 3, 3).long()),
        (torch.randn(4, 2), CLASSES.float()),
        (torch.randn(4, 2), CLASSES.bool()),
        (torch.randn(4, 2), torch.rand(4, 2)),  # soft labels
        (torch.randn(4, 2), torch.ones(4, 2).long()),  # several labels each
        (torch.randn(4, 2), torch.tensor([0, 1, 2, 0])),  # of three classes
        (torch.randn(4, 2), torch.tensor([0, 1, -100, 0])),  # one is to be ignored
        (torch.randn(20, 2), torch.ones(4, 5).long()),  # flattened by the model
        ((torch.randn(4, 2),), CLASSES),
        (torch.randn(4, 2), {"class": CLASSES}),
        (torch.randn(4, 2), None),
    ],
)
def test_where_accuracy_has_no_meaning_there_is_none(
    outputs: Any, targets: Any
) -> None:
    assert accuracy(outputs, targets) == {}
    result = evaluate(
        nn.Identity(), [(outputs, targets)], lambda x, y: torch.tensor(0.5)
    )
    assert result.loss == 0.5 and math.isnan(result.accuracy) and result.metrics == {}


def test_an_accuracy_of_some_batches_alone_is_none() -> None:
    """A mean over the samples that happen to have one would mean another thing."""
    outputs = torch.eye(2)[CLASSES]
    batches = [(outputs, CLASSES), (outputs, torch.tensor([0, 1, -100, 1]))]
    whole = evaluate(nn.Identity(), batches[:1], cross_entropy)
    assert whole.accuracy == 1.0
    assert "accuracy" not in evaluate(nn.Identity(), batches, cross_entropy).metrics


def test_metrics_of_ones_own_are_averaged_over_samples() -> None:
    """In batches of 5, 5, 5, 5 and 3, under the names they were given."""
    inputs, targets = tensors()

    def metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {
            "top 2": (outputs.topk(2).indices == targets[:, None]).any(dim=1),
            "margin": outputs.amax(dim=1) - outputs.mean(dim=1),
            "target": targets,
        }

    model = network().eval()
    batches = Batches(inputs, targets, batch_size=5)
    result = evaluate(model, batches, cross_entropy, metrics)
    outputs = model(inputs).tolist()
    pairs = list(zip(outputs, targets.tolist(), strict=True))
    top_2 = [y in sorted(range(4), key=row.__getitem__)[2:] for row, y in pairs]
    margin = [max(row) - sum(row) / 4 for row in outputs]
    expected = {
        "top 2": sum(top_2) / 23,
        "margin": sum(margin) / 23,
        "target": sum(targets.tolist()) / 23,
    }
    assert result.metrics == pytest.approx(expected, rel=1e-6)
    assert math.isnan(result.accuracy)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.tensor(0.5), r"\(\) for 5 samples"),
        (torch.zeros(4), r"\(4,\) for 5 samples"),
        (torch.zeros(5, 1), r"\(5, 1\) for 5 samples"),
        (0.5, "float for 5 samples"),
    ],
    ids=str,
)
def test_a_metric_of_another_shape_is_named(value: Any, what: str) -> None:
    batches = Batches(*tensors(), batch_size=5)
    with pytest.raises(ValueError, match=f"metric 'mine' is {what}: .*one number"):
        evaluate(network(), batches, cross_entropy, lambda x, y: {"mine": value})
