"""Models of nested inputs and targets, trained and measured as by hand."""

from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from minitrain.batches import Batches
from minitrain.epochs import size_of
from minitrain.evaluation import evaluate, predict
from minitrain.fingerprint import fingerprint
from minitrain.loading import DatasetBatches
from minitrain.sgd import SGD
from minitrain.training import train
from minitrain.vector import ParameterVector

NUM = 23
generator = torch.Generator().manual_seed(0)
LEFT = torch.randn(NUM, 6, generator=generator)
RIGHT = torch.randn(NUM, 3, generator=generator)
CLASS = torch.randint(4, (NUM,), generator=generator)
VALUE = torch.randn(NUM, generator=generator)
OPTIONS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}

Sides = namedtuple("Sides", "left right")


class TwoSided(nn.Module):
    """Of a left and a right side, given in any form, it makes classes and a value."""

    def __init__(self, take: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.take = take
        self.left, self.right = nn.Linear(6, 5), nn.Linear(3, 5)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(5, 5)

    def forward(self, inputs: Any) -> dict[str, Any]:
        left, right = self.take(inputs)
        both = self.drop(torch.tanh(self.left(left) + self.right(right)))
        classes, value = self.head(both).split([4, 1], dim=1)
        return {"classes": classes, "others": (value.squeeze(1), None)}


def both_losses(outputs: Any, classes: Tensor, values: Tensor) -> Tensor:
    value, _ = outputs["others"]
    first = nn.functional.cross_entropy(outputs["classes"], classes)
    return first + nn.functional.mse_loss(value, values)


class Case(NamedTuple):
    """A form of inputs and targets, and what takes them apart."""

    inputs: Any
    targets: Any
    take: Callable[[Any], tuple[Tensor, Tensor]]
    loss: Callable[[Any, Any], Tensor]
    rows: Callable[[Tensor], tuple[Any, Any]]
    """Indexes inputs and targets, written out by hand."""


CASES = {
    "tuples": Case(
        (LEFT, RIGHT),
        (CLASS, VALUE),
        lambda x: x,
        lambda outputs, y: both_losses(outputs, *y),
        lambda i: ((LEFT[i], RIGHT[i]), (CLASS[i], VALUE[i])),
    ),
    "named tuple, list": Case(
        Sides(LEFT, RIGHT),
        [CLASS, VALUE],
        lambda x: (x.left, x.right),
        lambda outputs, y: both_losses(outputs, *y),
        lambda i: (Sides(LEFT[i], RIGHT[i]), [CLASS[i], VALUE[i]]),
    ),
    "dicts": Case(
        {"left": LEFT, "right": RIGHT, "mask": None},
        {"class": CLASS, "value": VALUE},
        lambda x: (x["left"], x["right"]),
        lambda outputs, y: both_losses(outputs, y["class"], y["value"]),
        lambda i: (
            {"left": LEFT[i], "right": RIGHT[i], "mask": None},
            {"class": CLASS[i], "value": VALUE[i]},
        ),
    ),
    "dict in tuple, no targets": Case(
        ({"left": LEFT}, RIGHT),
        None,
        lambda x: (x[0]["left"], x[1]),
        lambda outputs, _: outputs["classes"].square().mean(),
        lambda i: (({"left": LEFT[i]}, RIGHT[i]), None),
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def loop_by_hand(
    model: nn.Module, case: Case, orders: list[list[Tensor]], accumulate: int
) -> None:
    """Plain PyTorch, with torch's own SGD, on indices of the samples."""
    optimizer = torch.optim.SGD(model.parameters(), **OPTIONS)
    for batches in orders:
        for k in range(0, len(batches), accumulate):
            window = batches[k : k + accumulate]
            num_samples = sum(map(len, window))
            optimizer.zero_grad()
            for indices in window:
                inputs, targets = case.rows(indices)
                loss = case.loss(model(inputs), targets)
                if len(window) > 1:
                    loss = loss * (len(indices) / num_samples)
                loss.backward()
            optimizer.step()


@each_case
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("flat", [True, False], ids=["vector", "list"])
def test_training_equals_a_loop_by_hand(
    case: Case, accumulate: int, flat: bool
) -> None:
    batches = Batches(case.inputs, case.targets, batch_size=5, seed=3)
    assert batches.num_samples == NUM
    orders = [list(batches.order(epoch).split(5)) for epoch in (1, 2)]
    ours, theirs = TwoSided(case.take), TwoSided(case.take)
    torch.manual_seed(7)
    loop_by_hand(theirs, case, orders, accumulate)
    torch.manual_seed(7)
    optimizer = SGD(ParameterVector(ours) if flat else ours.parameters(), **OPTIONS)
    steps = train(ours, optimizer, batches, case.loss, epochs=2, accumulate=accumulate)
    sizes = [5, 5, 5, 5, 3] if accumulate == 1 else [15, 8]
    assert [step.num_samples for step in steps] == sizes * 2
    assert fingerprint(ours.state_dict()) == fingerprint(theirs.state_dict())


@pytest.mark.parametrize("source", ["DataLoader", "DatasetBatches", "list"])
@pytest.mark.parametrize("name", ["tuples", "dicts"])
def test_loaders_of_nested_samples_train_as_well(name: str, source: str) -> None:
    """A collated batch of items is what indexing the whole gives."""
    case = CASES[name]
    rows = [case.rows(torch.tensor(i)) for i in range(NUM)]
    if name == "dicts":  # torch collates no None
        rows = [({k: x[k] for k in ("left", "right")}, y) for x, y in rows]
    order = list(torch.arange(NUM).split(5))
    batches: Any = [case.rows(indices) for indices in order]
    if source == "DataLoader":
        batches = DataLoader(rows, batch_size=5)  # pyright: ignore[reportArgumentType]
    if source == "DatasetBatches":
        batches = DatasetBatches(rows, 5)
    ours, theirs = TwoSided(case.take), TwoSided(case.take)
    if source == "DataLoader":  # which draws a seed of its own in every epoch
        ours.drop.p = theirs.drop.p = 0.0
    torch.manual_seed(7)
    loop_by_hand(theirs, case, [order] * 2, accumulate=1)
    torch.manual_seed(7)
    optimizer = SGD(ours.parameters(), **OPTIONS)
    list(train(ours, optimizer, batches, case.loss, epochs=2))
    assert fingerprint(ours.state_dict()) == fingerprint(theirs.state_dict())


@each_case
def test_evaluation_is_the_mean_over_samples(case: Case) -> None:
    model = TwoSided(case.take)

    def metrics(outputs: Any, targets: Any) -> dict[str, Tensor]:
        return {"value": outputs["others"][0]}

    batches = Batches(case.inputs, case.targets, batch_size=5)
    result = evaluate(model, batches, case.loss, metrics)
    inputs, targets = case.rows(torch.arange(NUM))
    model.eval()
    outputs = model(inputs)
    assert result.loss == pytest.approx(case.loss(outputs, targets).item(), rel=1e-5)
    value = outputs["others"][0].double().mean().item()
    assert result.metrics == {"value": pytest.approx(value, rel=1e-5)}
    assert set(evaluate(model, batches, case.loss).metrics) == set()


@each_case
@pytest.mark.parametrize("batch_size", [7, 23, 1000])
def test_predictions_have_the_form_of_the_outputs(case: Case, batch_size: int) -> None:
    model = TwoSided(case.take)
    outputs = predict(model, case.inputs, batch_size)
    assert model.training and not outputs["classes"].requires_grad
    expected = model.eval()(case.rows(torch.arange(NUM))[0])
    torch.testing.assert_close(outputs["classes"], expected["classes"])
    torch.testing.assert_close(outputs["others"][0], expected["others"][0])
    assert outputs.keys() == expected.keys() and outputs["others"][1] is None


def test_predictions_of_no_samples_are_none() -> None:
    assert predict(nn.Linear(6, 4), LEFT[:0]).shape == (0, 4)
    assert predict(nn.Identity(), LEFT).shape == LEFT.shape  # without parameters


def test_outputs_that_are_not_one_for_each_input_are_refused() -> None:
    """Joined along the first dimension, a state (layers, N, H) would be nonsense."""
    lstm = nn.LSTM(6, 4, num_layers=2, batch_first=True)
    with pytest.raises(ValueError, match=r"tensors of \[2, 23\] samples together"):
        predict(lstm, LEFT[:, None])
    with pytest.raises(ValueError, match="138 outputs of 23 inputs"):
        predict(nn.Flatten(0), LEFT)


def test_batches_of_targets_that_do_not_fit_are_refused() -> None:
    for targets, message in (
        ((CLASS, VALUE[:3]), r"tensors of \[3, 23\] samples together"),
        ({"class": CLASS[:3]}, "23 inputs and 3 targets"),
        ([1] * NUM, "^list: samples are a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            Batches((LEFT, RIGHT), targets, batch_size=5)
    with pytest.raises(ValueError, match="NoneType: samples are a tensor"):
        Batches(None, CLASS, batch_size=5)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (LEFT, "a batch is of type Tensor and length 23: it must be a pair"),
        ((LEFT,), "a batch is of type tuple and length 1: it must be"),
        (
            [LEFT, RIGHT, CLASS],
            "a batch is of type list and length 3: it must be",
        ),
        (
            {"x": LEFT, "y": CLASS},
            "a batch is of type dict and length 2: it must be",
        ),
        (3, "a batch is of type int: it must be a pair"),
        ((1.0, None), "float: samples are a tensor"),
        ((LEFT, VALUE.mean()), "a tensor has no dimension"),
    ],
    ids=str,
)
def test_a_batch_that_is_no_pair_is_refused(batch: Any, message: str) -> None:
    model = nn.Linear(6, 4)
    optimizer = SGD(model.parameters())
    loss_fn = nn.functional.cross_entropy
    for call in (
        lambda: size_of(batch),
        lambda: list(train(model, optimizer, [batch], loss_fn)),
        lambda: evaluate(model, [batch], loss_fn),
    ):
        with pytest.raises(ValueError, match=message):
            call()
