"""The loop: the same numbers as a plain loop, whatever is asked of it."""

import copy
import math
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from harness.names import named
from harness.networks import network, tensors
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from minitrain.batches import Batches
from minitrain.evaluation import evaluate, predict
from minitrain.fingerprint import fingerprint
from minitrain.gradients import check_gradient, gradient
from minitrain.sgd import SGD
from minitrain.training import NotFiniteError, train
from minitrain.vector import ParameterVector

cross_entropy = nn.functional.cross_entropy


def bare_loop(model: nn.Module, batches, epochs: int, **options) -> list[float]:
    """What train() is compared with: plain PyTorch, with torch's own SGD."""
    optimizer = torch.optim.SGD(model.parameters(), **options)
    norms = []
    for epoch in range(1, epochs + 1):
        source = batches.epoch(epoch) if isinstance(batches, Batches) else batches
        for inputs, targets in source:
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            grads = [p.grad.flatten() for p in model.parameters()]
            norms.append(torch.cat(grads).norm().item())
            optimizer.step()
    return norms


OPTIONS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


@pytest.mark.parametrize("flat", [True, False], ids=["vector", "list"])
@pytest.mark.parametrize("source", ["tensors", "loader", "list", "generator"])
def test_train_equals_a_bare_loop(source: str, flat: bool) -> None:
    """Bit for bit, dropout and shuffling included, for every kind of batches."""
    inputs, targets = tensors()

    def batches():
        if source == "tensors":
            return Batches(inputs, targets, batch_size=5, seed=3)
        if source == "loader":
            generator = torch.Generator().manual_seed(5)
            data = TensorDataset(inputs, targets)
            return DataLoader(data, batch_size=5, shuffle=True, generator=generator)
        pairs = list(Batches(inputs, targets, batch_size=5).epoch(1))
        return pairs if source == "list" else iter(pairs)

    epochs = 1 if source == "generator" else 3
    ours, theirs = network(dropout=0.5), network(dropout=0.5)
    torch.manual_seed(7)
    norms = bare_loop(theirs, batches(), epochs, **OPTIONS)
    torch.manual_seed(7)
    optimizer = SGD(ParameterVector(ours) if flat else ours.parameters(), **OPTIONS)
    steps = list(train(ours, optimizer, batches(), cross_entropy, epochs=epochs))

    assert fingerprint(ours.state_dict()) == fingerprint(theirs.state_dict())
    assert [s.number for s in steps] == list(range(1, 5 * epochs + 1))
    assert [s.epoch for s in steps] == [
        e for e in range(1, epochs + 1) for _ in "12345"
    ]
    assert [s.ends_epoch for s in steps] == [False, False, False, False, True] * epochs
    assert [s.num_samples for s in steps] == [5, 5, 5, 5, 3] * epochs
    torch.testing.assert_close([s.grad_norm for s in steps], norms)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_two_vectors_train_as_two_lists_of_torch(clip_norm: float | None) -> None:
    """Bit for bit without clipping, whose norm sums in another order."""
    ours, theirs = network(), network()
    rest = {"weight_decay": 0.0}
    vectors = [
        {"params": ParameterVector(ours, only=lambda name, p: p.dim() > 1)},
        {"params": ParameterVector(ours, only=lambda name, p: p.dim() <= 1)} | rest,
    ]
    lists = [
        {"params": [p for p in theirs.parameters() if p.dim() > 1]},
        {"params": [p for p in theirs.parameters() if p.dim() <= 1]} | rest,
    ]
    inputs, targets = tensors()
    runs = [
        list(
            train(
                model,
                optimizer,
                Batches(inputs, targets, 5),
                cross_entropy,
                epochs=3,
                clip_norm=clip_norm,
            )
        )
        for model, optimizer in (
            (ours, SGD(vectors, **OPTIONS)),
            (theirs, torch.optim.SGD(lists, foreach=False, **OPTIONS)),
        )
    ]
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        if clip_norm is None:
            assert torch.equal(p, q)
        torch.testing.assert_close(p, q)
    for a, b in zip(*runs, strict=True):
        assert a.grad_norms is not None and a.grad_norms.keys() == b.grad_norms.keys()
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)


def test_the_loss_of_a_step_is_that_before_its_update() -> None:
    inputs, targets = tensors(8)
    model = network()
    before = copy.deepcopy(model)
    (step,) = train(
        model, SGD(model.parameters(), lr=0.1), [(inputs, targets)], cross_entropy
    )
    assert step.loss == cross_entropy(before(inputs), targets).item()


@pytest.mark.parametrize("batch_size", [4, 5], ids=["even", "ragged"])
def test_accumulated_batches_equal_the_large_one(batch_size: int) -> None:
    """Weighted by samples: also for a ragged last batch and a ragged last window."""
    inputs, targets = (t.double() if t.is_floating_point() else t for t in tensors(22))
    large, small = network().double(), network().double()
    one = Batches(inputs, targets, batch_size * 3)
    many = Batches(inputs, targets, batch_size)
    steps = []
    for model, batches, accumulate in ((large, one, 1), (small, many, 3)):
        optimizer = SGD(ParameterVector(model), **OPTIONS)
        steps.append(
            list(train(model, optimizer, batches, cross_entropy, accumulate=accumulate))
        )
    for a, b in zip(*steps, strict=True):
        assert a.num_samples == b.num_samples
        torch.testing.assert_close(a.loss, b.loss)
        torch.testing.assert_close(a.grad_norm, b.grad_norm)
    for p, q in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_clipping_limits_the_update_and_reports_the_norm_before_it() -> None:
    inputs, targets = tensors(8)
    model = network()
    vector = ParameterVector(model)
    start = vector.theta.detach().clone()
    batches = [(inputs, targets)]
    (step,) = train(model, SGD(vector, lr=1.0), batches, cross_entropy, clip_norm=1e-3)
    update = vector.theta.detach() - start
    assert update.norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert step.grad_norm > 0.1
    assert step.grad_norms is not None
    assert math.hypot(*step.grad_norms.values()) == pytest.approx(step.grad_norm)
    # A bound that is not reached changes nothing.
    free, bound = network(), network()
    for other, clip_norm in ((free, None), (bound, 1e6)):
        optimizer = SGD(other.parameters(), lr=0.1)
        list(train(other, optimizer, batches, cross_entropy, clip_norm=clip_norm))
    assert fingerprint(free.state_dict()) == fingerprint(bound.state_dict())


def test_the_schedule_sets_the_learning_rate_of_every_group() -> None:
    model = network()
    groups = [{"params": [p], "lr": 9.0} for p in model.parameters()]
    groups[0]["lr"] = torch.tensor(9.0)
    batches = Batches(*tensors(), batch_size=5)
    schedule = [0.5, 0.4, 0.3, 0.2, 0.1]
    optimizer = SGD(groups)
    for step in train(
        model, optimizer, batches, cross_entropy, lr=schedule.__getitem__
    ):
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        assert rates == pytest.approx([schedule[step.number - 1]] * len(groups))
        assert float(step.lr) == pytest.approx(schedule[step.number - 1])


def test_first_last_and_every_third_step_are_measured() -> None:
    model = network()
    batches = Batches(*tensors(), batch_size=3)
    steps = train(
        model, SGD(ParameterVector(model)), batches, cross_entropy, measure_every=3
    )
    measured = [s.number for s in steps if s.grad_norms is not None]
    assert measured == [1, 3, 6, 8]


def test_bfloat16_is_used_in_the_forward_pass_alone() -> None:
    seen = set()
    model = network()
    model[0].register_forward_hook(lambda *args: seen.add(args[2].dtype))
    batches = Batches(*tensors(), batch_size=5)
    optimizer = SGD(ParameterVector(model), lr=0.1)
    for step in train(
        model, optimizer, batches, cross_entropy, autocast=torch.bfloat16
    ):
        assert torch.tensor(step.loss).bfloat16().item() != step.loss
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_watching_changes_nothing() -> None:
    """Every measurement, evaluation and reading of gradients, against none."""

    def run(watch: bool) -> str:
        model = nn.Sequential(network(dropout=0.5), nn.BatchNorm1d(4))
        torch.manual_seed(2)
        batches = Batches(*tensors(), batch_size=5, seed=1)
        optimizer = SGD(ParameterVector(model), **OPTIONS)
        every = 1 if watch else 1000
        for step in train(
            model, optimizer, batches, cross_entropy, epochs=5, measure_every=every
        ):
            if watch:
                evaluate(model, batches, cross_entropy)
                predict(model, tensors()[0])
                assert math.isfinite(step.loss)
        state = {"rng": torch.get_rng_state()}
        return fingerprint(model.state_dict(), optimizer.state_dict(), state)

    assert run(watch=True) == run(watch=False)


def test_the_caller_owns_the_loop() -> None:
    """It can stop after any step, with gradients and gradient mode as usual."""
    model, epoch = network(), 0
    for step in train(
        model,
        SGD(ParameterVector(model), lr=0.1),
        Batches(*tensors(), batch_size=5),
        cross_entropy,
        epochs=100,
    ):
        assert torch.is_grad_enabled()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        torch.testing.assert_close(norm.item(), step.grad_norm)
        if step.number == 7:
            epoch = step.epoch
            break
    assert epoch == 2


def test_parameters_added_while_training_are_trained() -> None:
    model = network()
    optimizer = SGD(model[3].parameters(), lr=0.1)
    weight = next(model.parameters())
    first = weight.detach().clone()
    batches = Batches(*tensors(), batch_size=5)
    for step in train(model, optimizer, batches, cross_entropy):
        if step.number == 2:
            assert torch.equal(weight, first)
            optimizer.add_param_group({"params": model[0].parameters()})
    assert not torch.equal(weight, first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "epoch 1 yielded no batch"),
        ({"batches": iter([tensors()]), "epochs": 2}, "epoch 2 yielded no batch"),
        ({"epochs": 0}, "epochs = 0"),
        ({"accumulate": 0}, "accumulate = 0"),
        ({"measure_every": 0}, "measure_every = 0"),
        ({"clip_norm": 0.0}, r"clip_norm = 0.0"),
        ({"clip_norm": math.nan}, "clip_norm = nan"),
    ],
    ids=named,
)
def test_what_cannot_be_trained_is_an_error(arguments: dict, message: str) -> None:
    model = network()
    arguments = {"batches": [tensors()], **arguments}
    with pytest.raises(ValueError, match=message):
        list(train(model, SGD(model.parameters()), loss_fn=cross_entropy, **arguments))


def test_a_watcher_sees_every_step_and_none_without_one() -> None:
    """It is told the loss, the samples and the clipping before the update is made."""
    model, seen = network(), []
    vector = ParameterVector(model)
    batches = Batches(*tensors(), batch_size=5)

    class Watching:
        def __init__(self) -> None:
            self.readings = {"seen": 1.0}

        @contextmanager
        def step(self, number, loss_of, *, is_last=False, autocast=None):
            self.theta = vector.theta.detach().clone()
            self.loss = loss_of().item()
            yield self
            assert not torch.equal(self.theta, vector.theta)
            seen.append((number, is_last))

        def read_shard(self, num_samples):
            raise AssertionError("the batch is whole")

        def note_shards(self, mean):
            raise AssertionError("the batch is whole")

        def before_update(self, loss, num_samples, clip_factor):
            assert torch.equal(self.theta, vector.theta)
            assert vector.theta.grad.norm().item() <= 0.1 + 1e-6
            assert loss == pytest.approx(self.loss) and 0 < clip_factor < 1
            self.num_samples = num_samples

    watcher = Watching()
    steps = train(
        model, SGD(vector), batches, cross_entropy, clip_norm=0.1, watcher=watcher
    )
    for step in steps:
        assert step.readings == {"seen": 1.0}
        assert step.num_samples == watcher.num_samples
    assert seen == [(n, n == 5) for n in range(1, 6)]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_made(where: str) -> None:
    model = network()
    inputs, targets = tensors(8)
    if where == "gradient":
        model[3].get_parameter("weight").register_hook(lambda grad: grad * math.inf)
    bad = [(inputs, targets), (inputs * (math.nan if where == "loss" else 1), targets)]
    before = None
    optimizer = SGD(model.parameters(), lr=0.25)
    with pytest.raises(NotFiniteError) as caught:
        for _ in train(model, optimizer, bad, cross_entropy):
            before = fingerprint(model.state_dict(), optimizer.state_dict())
    error = caught.value
    expected_step = 2 if where == "loss" else 1
    assert error.step == expected_step and error.lr == 0.25
    assert error.parameter == ("0.weight" if where == "loss" else "3.weight")
    assert math.isnan(error.loss) == (where == "loss")
    assert not math.isfinite(error.grad_norm)
    if before is not None:
        assert fingerprint(model.state_dict(), optimizer.state_dict()) == before
    assert str(error).startswith(f"step {expected_step} is not finite, first in the")


def test_after_backward_the_gradient_is_that_of_calculus() -> None:
    """theta.grad is gradient(L)(theta), for the loss L as a function of theta."""
    model = network().double()
    inputs, targets = tensors(8)
    inputs = inputs.double()
    vector = ParameterVector(model)
    theta = vector.theta.detach().clone()

    def loss(point: Tensor) -> Tensor:
        values = dict(zip(vector.names, vector.split(point), strict=True))
        outputs = torch.func.functional_call(model, values, (inputs,))
        return cross_entropy(outputs, targets)

    expected = gradient(loss)(theta)
    assert isinstance(expected, Tensor)
    next(train(model, SGD(vector, lr=0.1), [(inputs, targets)], cross_entropy))
    assert vector.theta.grad is not None
    assert torch.equal(vector.theta.grad, expected)
    assert torch.equal(vector.theta, theta.add(expected, alpha=-0.1))
    assert check_gradient(loss, theta).relative_difference < 1e-6
