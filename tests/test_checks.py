"""What cannot be trained is refused in a sentence, and nothing has changed."""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness.networks import network, tensors
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from minitrain.batches import Batches
from minitrain.evaluation import evaluate
from minitrain.fingerprint import fingerprint
from minitrain.loading import DatasetBatches
from minitrain.sgd import SGD
from minitrain.training import train
from minitrain.vector import ParameterVector

cross_entropy = nn.functional.cross_entropy
PAIR = tensors()
BATCHES = Batches(*PAIR, batch_size=5)


def each_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="none")


def refused(error: type[Exception], message: str, **arguments: Any) -> None:
    """Train with these arguments; it must be refused, and change no bit."""
    model = network()
    defaults = {
        "model": model,
        "optimizer": SGD(model.parameters(), lr=0.1, momentum=0.9),
        "batches": BATCHES,
        "loss_fn": cross_entropy,
    }
    given: Any = defaults | arguments
    model, optimizer = given["model"].eval(), given["optimizer"]
    before = fingerprint(model.state_dict(), optimizer.state_dict())
    with pytest.raises(error, match=message):
        list(train(**given))
    assert fingerprint(model.state_dict(), optimizer.state_dict()) == before


def test_a_number_for_the_learning_rate() -> None:
    refused(TypeError, r"lr = 0.1: it is a function of the number of completed", lr=0.1)
    refused(TypeError, "leave lr out", lr=torch.tensor(0.1))


def test_an_optimizer_that_makes_passes_of_its_own() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters())
    message = r"LBFGS.step needs a closure.*Call it in a loop of your own"
    refused(TypeError, message, model=model, optimizer=optimizer)


def test_a_first_learning_rate_of_zero_has_no_proportions() -> None:
    model = network()
    groups = [{"params": [p], "lr": 0.1 * i} for i, p in enumerate(model.parameters())]
    optimizer = SGD(groups)
    message = "the learning rate of the first group is 0"
    refused(ValueError, message, model=model, optimizer=optimizer, lr=lambda _: 0.1)
    list(train(model, optimizer, BATCHES, cross_entropy))  # they are its own: fine
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    list(train(model, optimizer, BATCHES, cross_entropy, lr=lambda _: 0.1))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1] * 4


@pytest.mark.parametrize(
    "params_of",
    [ParameterVector, lambda m: list(m.parameters())],
    ids=["vector", "list"],
)
def test_the_optimizer_of_another_model(params_of: Callable[[nn.Module], Any]) -> None:
    optimizer = SGD(params_of(network()))
    refused(ValueError, "updates no parameter of the model", optimizer=optimizer)


def test_a_vector_for_an_optimizer_of_torch() -> None:
    """Its zero_grad would replace theta.grad by None, and nothing would be trained."""
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = torch.optim.Adam(ParameterVector(model))
    batches, loss_fn = [(torch.ones(1, 2), torch.ones(1, 1))], nn.functional.mse_loss
    with pytest.raises(ValueError, match=r"Adam cuts .* give it model.parameters\(\)"):
        next(iter(train(model, optimizer, batches, loss_fn)))
    assert torch.equal(model.weight, before)


def test_a_model_without_parameters() -> None:
    refused(ValueError, "the model has no parameters", model=nn.Identity())


def test_a_data_set_in_the_place_of_batches() -> None:
    data: Any = TensorDataset(*PAIR)
    message = r"batches = TensorDataset: .* give DatasetBatches\(dataset, batch_size\)"
    refused(TypeError, message, batches=data)
    with pytest.raises(TypeError, match=message):
        evaluate(network(), data, cross_entropy)
    batches = DatasetBatches(data, 5)
    assert len(list(train(*parts(), batches, cross_entropy))) == 5


def parts() -> tuple[nn.Module, SGD]:
    model = network()
    return model, SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (each_loss, r"the loss is a tensor of shape \(5,\): .*reduction='none'"),
        (lambda outputs, targets: 0.5, "the loss is float: it must be a tensor of"),
        (lambda outputs, targets: (outputs.sum(), 1), "the loss is tuple"),
    ],
)
def test_a_loss_that_is_not_one_number(loss_fn: Any, message: str) -> None:
    refused(ValueError, message, loss_fn=loss_fn)
    with pytest.raises(ValueError, match=message):
        evaluate(network(), BATCHES, loss_fn)


@pytest.mark.parametrize("flat", [True, False], ids=["vector", "list"])
def test_a_loss_that_depends_on_no_parameter(flat: bool) -> None:
    """On no parameter at all, or on none that the optimizer has."""
    message = "the loss depends on no parameter that the optimizer updates"

    def make() -> dict[str, Any]:
        model = network()
        optimizer = SGD(ParameterVector(model) if flat else model.parameters())
        return {"model": model, "optimizer": optimizer}

    def detached(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs.detach(), targets)

    refused(ValueError, message, loss_fn=detached, **make())
    with torch.no_grad():
        refused(ValueError, message, **make())
    frozen = network()
    optimizer = SGD(frozen.parameters())
    frozen.requires_grad_(False)
    refused(ValueError, message, model=frozen, optimizer=optimizer)
    two = nn.ModuleList([network(), network()])
    two.forward = two[0].forward  # type: ignore
    optimizer = SGD(two[1].parameters())  # a vector would have a gradient of zeros
    refused(ValueError, message, model=two, optimizer=optimizer)


def test_a_loss_of_shape_1_is_a_number() -> None:
    losses = []
    for shape in ((), (1,), (1, 1)):
        steps = train(
            *parts(), BATCHES, lambda x, y, s=shape: cross_entropy(x, y).reshape(s)
        )
        losses.append([step.loss for step in steps])
        result = evaluate(
            network(), BATCHES, lambda x, y, s=shape: cross_entropy(x, y).reshape(s)
        )
        assert result == evaluate(network(), BATCHES, cross_entropy)
    assert losses[0] == losses[1] == losses[2]


def test_a_model_left_in_evaluation_mode_is_told_of_once() -> None:
    """At the line of the loop, whatever Python's filter for repeated warnings is."""
    model, optimizer = parts()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in train(model, optimizer, BATCHES, cross_entropy, epochs=2):
            model.eval()
    assert [str(each.message).partition(":")[0] for each in caught] == [
        "the model is in evaluation mode"
    ]
    assert caught[0].filename == __file__


def test_modes_that_are_meant_are_not_told_of() -> None:
    """Of a part alone, of evaluating between, or after the end: warnings are errors."""
    model, optimizer = parts()
    for step in train(model, optimizer, BATCHES, cross_entropy):
        model[0].eval()  # type: ignore
        evaluate(model, BATCHES, cross_entropy)
        if step.number == 5:
            model.eval()
    model.eval()
    list(train(model, optimizer, BATCHES, cross_entropy))
    assert model.training


def test_a_training_that_nobody_asks_for_steps_is_told_of() -> None:
    with pytest.warns(UserWarning, match=r"^train\(...\) did nothing") as caught:
        train(*parts(), BATCHES, cross_entropy)
        gc.collect()
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_training_that_is_used_or_closed_is_not_told_of() -> None:
    steps: Any = train(*parts(), BATCHES, cross_entropy)
    next(steps)
    steps.close()
    assert list(steps) == []
    closed: Any = train(*parts(), BATCHES, cross_entropy)
    closed.close()
    failed = train(*parts(), [], cross_entropy)
    with pytest.raises(ValueError, match=r"epoch 1 yielded no batch to train on$"):
        next(failed)
    del steps, closed, failed
    gc.collect()


def test_a_generator_is_used_up_in_the_second_epoch() -> None:
    batches = (batch for batch in BATCHES.epoch(1))
    steps = train(*parts(), batches, cross_entropy, epochs=2)
    for number in range(1, 6):
        assert next(steps).number == number
    with pytest.raises(ValueError, match=r"epoch 2 .*: what can be iterated only once"):
        next(steps)
