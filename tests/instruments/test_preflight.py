"""The look before the first step: each check on a planted fault and on healthy ones."""

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from minitrain import SGD, Batches, ParameterVector
from minitrain.instruments.findings import Findings
from minitrain.instruments.neighbors import agreement, find_neighbors
from minitrain.instruments.preflight import preflight

NUM, NUM_CLASSES = 1200, 4


def clusters(num: int = NUM) -> tuple[Tensor, Tensor]:
    """Four clouds in six dimensions, of mean 0 and about unit size."""
    torch.manual_seed(0)
    centers = 2 * torch.randn(NUM_CLASSES, 6)
    labels = torch.randint(NUM_CLASSES, (num,))
    return centers[labels] + 0.5 * torch.randn(num, 6), labels


def network(*last: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, NUM_CLASSES), *last)


def kinds(
    model: nn.Module | None = None,
    data: tuple[Any, Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] = cross_entropy,
    seed: int | None = 0,
) -> list[str]:
    batches = Batches(*(data or clusters()), batch_size=32, seed=seed)
    found = preflight(model or network(), loss_fn, batches)
    assert all(finding.step == 0 for finding in found)
    run = Findings(num_steps=10, batch_size=32)  # leaves out what follows
    return [finding.kind for finding in run.take(found)]


class NormalizedOverBatch(nn.Module):
    """A softmax over the wrong dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.softmax(dim=0)


def scaled(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def between_0_and_1() -> nn.Module:
    model = network()
    with torch.no_grad():
        [*model.parameters()][-2].mul_(0.01)
        [*model.parameters()][-1].fill_(0.5)
    return model


def real_targets(offset: float = 0.0) -> tuple[Tensor, Tensor]:
    x, _ = clusters()
    return x, x[:, :1].sin() + x[:, 1:2] / 2 + offset


def one_output() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))


def text() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    letters = torch.randint(12, (300, 9)).sort(dim=1).values
    return letters[:, :-1], letters[:, 1:]


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(12, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.letters(x))[0])


def language_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs.flatten(0, 1), targets.flatten())


binary_loss = nn.functional.binary_cross_entropy_with_logits
HEALTHY: dict[str, Callable[[], list[str]]] = {
    "classes": kinds,
    "batch normalization": lambda: kinds(
        nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    ),
    "dropout": lambda: kinds(network(nn.Dropout(0.5))),
    "label smoothing": lambda: kinds(
        loss_fn=functools.partial(cross_entropy, label_smoothing=0.1)
    ),
    "class weights": lambda: kinds(
        loss_fn=functools.partial(cross_entropy, weight=torch.tensor([1.0, 2, 3, 4]))
    ),
    "log-probabilities": lambda: kinds(
        network(nn.LogSoftmax(1)), loss_fn=nn.functional.nll_loss
    ),
    "regression": lambda: kinds(one_output(), real_targets(), mse_loss),
    "small targets": lambda: kinds(
        one_output(), (clusters()[0], 0.02 * real_targets()[1]), mse_loss
    ),
    "large targets": lambda: kinds(
        one_output(), (clusters()[0], 70 * real_targets()[1]), mse_loss
    ),
    "two classes": lambda: kinds(
        one_output(),
        (clusters()[0], (clusters()[1] > 1).float()[:, None]),
        binary_loss,
    ),
    "probabilities and their own loss": lambda: kinds(
        nn.Sequential(one_output(), nn.Sigmoid()),
        (clusters()[0], (clusters()[1] > 1).float()[:, None]),
        nn.functional.binary_cross_entropy,
    ),
    "language": lambda: kinds(Language(), text(), language_loss),
    "a random task": lambda: kinds(
        data=(torch.randn(NUM, 6), torch.randint(4, (NUM,)))
    ),
    "outputs that are between 0 and 1 by chance": lambda: kinds(between_0_and_1()),
    "two inputs": lambda: kinds(
        Pair(), ({"a": clusters()[0], "b": clusters()[0]}, clusters()[1])
    ),
}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.inner(x["a"] + x["b"])


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_healthy_gives_no_finding(name: str) -> None:
    assert HEALTHY[name]() == []


def sorted_by_class() -> tuple[Tensor, Tensor]:
    x, labels = clusters()
    order = labels.argsort()
    return x[order], labels[order]


def spoiled(how: Callable[[Tensor, Tensor], object]) -> tuple[Tensor, Tensor]:
    x, labels = clusters()
    how(x, labels)
    return x, labels


def zero_half(x: Tensor, labels: Tensor) -> None:
    x[::2] = 0


def randomize_class(x: Tensor, labels: Tensor) -> None:
    labels[labels == 2] = torch.randint(NUM_CLASSES, (int((labels == 2).sum()),))


def put_nan(x: Tensor, labels: Tensor) -> None:
    x[777, 3] = torch.nan


def mostly_one(x: Tensor, labels: Tensor) -> None:
    labels[: int(0.9 * NUM)] = 1


def repeat(x: Tensor, labels: Tensor) -> None:
    x[NUM // 2 :], labels[NUM // 2 :] = x[: NUM // 2], labels[: NUM // 2]


def frozen_at_zero() -> nn.Module:
    model = scaled(network(), 0.0)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() > 1)
    return model


PLANTED: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "nan": ("samples not finite", lambda: kinds(data=spoiled(put_nan))),
    "bytes": (
        "inputs not normalized",
        lambda: kinds(data=(80 * clusters()[0] + 30, clusters()[1])),
    ),
    "zeros": ("constant samples", lambda: kinds(data=spoiled(zero_half))),
    "copies": ("repeated samples", lambda: kinds(data=spoiled(repeat))),
    "imbalance": ("classes out of balance", lambda: kinds(data=spoiled(mostly_one))),
    "sorted": ("samples in order", lambda: kinds(data=sorted_by_class(), seed=None)),
    "sorted targets": (
        "samples in order",
        lambda: kinds(
            one_output(),
            (x := real_targets()[0], x[:, :1].sort(dim=0).values),
            mse_loss,
            seed=None,
        ),
    ),
    "shifted": (
        "labels shifted",
        lambda: kinds(data=(clusters()[0], clusters()[1].roll(1))),
    ),
    "shifted targets": (
        "labels shifted",
        lambda: kinds(
            one_output(), (real_targets()[0], real_targets()[1].roll(-2, 0)), mse_loss
        ),
    ),
    "random class": (
        "labels of a class contradicted",
        lambda: kinds(data=spoiled(randomize_class)),
    ),
    "targets off": (
        "targets not normalized",
        lambda: kinds(one_output(), real_targets(100.0), mse_loss),
    ),
    "softmax twice": (
        "probabilities instead of logits",
        lambda: kinds(network(nn.Softmax(1))),
    ),
    "sigmoid": (
        "probabilities instead of logits",
        lambda: kinds(network(nn.Sigmoid())),
    ),
    "sigmoid twice": (
        "probabilities instead of logits",
        lambda: kinds(
            nn.Sequential(one_output(), nn.Sigmoid()),
            (clusters()[0], (clusters()[1] > 1).float()[:, None]),
            binary_loss,
        ),
    ),
    "sum": (
        "loss is a sum",
        lambda: kinds(loss_fn=functools.partial(cross_entropy, reduction="sum")),
    ),
    "mixed": (
        "samples depend on each other",
        lambda: kinds(network(NormalizedOverBatch())),
    ),
    "large weights": ("exploding gradient", lambda: kinds(scaled(network(), 20.0))),
    "large outputs": (
        "exploding gradient",
        lambda: kinds(scaled(one_output(), 20.0), real_targets(), mse_loss),
    ),
    "zero weights": ("one batch cannot be learned", lambda: kinds(frozen_at_zero())),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found_and_nothing_else(name: str) -> None:
    kind, find = PLANTED[name]
    assert find() == [kind]


def test_an_order_by_class_is_harmless_where_batches_are_shuffled() -> None:
    assert kinds(data=sorted_by_class(), seed=0) == []


def test_the_class_and_the_sample_are_named() -> None:
    x, labels = clusters()
    randomize_class(x, labels)
    (found,) = preflight(network(), cross_entropy, Batches(x, labels, 32, seed=0))
    assert "class 2" in found.text
    put_nan(x, labels)
    (found,) = preflight(network(), cross_entropy, Batches(x, labels, 32, seed=0))
    assert "sample 777" in found.text


def test_findings_take_them_once_and_nothing_that_follows() -> None:
    run = Findings(num_steps=10, batch_size=32, guessing=1.4, num_classes=4)
    model, loss_fn = network(), functools.partial(cross_entropy, reduction="sum")
    found = preflight(model, loss_fn, Batches(*clusters(), 32, seed=0))
    assert [finding.kind for finding in run.take(found)] == ["loss is a sum"]
    assert run.take(found) == []
    assert run.note(1, {"loss/train": 90.0, "update_norm/global": 1.0}) == []


class Noisy(nn.Module):
    """Draws from every generator, and counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = network(nn.Dropout(0.5)), nn.BatchNorm1d(6)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x + 1e-3 * (random.random() + numpy.random.rand() + torch.rand(()))
        return self.inner(self.norm(x))


def everything(model: nn.Module, optimizer: SGD, loader: DataLoader) -> list[Tensor]:
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    bufs = [s["momentum_buffer"] for s in optimizer.state.values()]
    generator = loader.generator
    assert isinstance(generator, torch.Generator) and len(grads) > 0
    of_numpy: Any = numpy.random.get_state()
    return [
        *model.state_dict().values(), *grads, *bufs, torch.get_rng_state(),
        generator.get_state(), torch.tensor([random.getstate()[1]]),
        torch.from_numpy(of_numpy[1].astype("int64")),
        torch.tensor([module.training for module in model.modules()]),
    ]  # fmt: skip


@pytest.mark.parametrize("as_vector", [False, True])
def test_it_leaves_no_trace(as_vector: bool) -> None:
    model = Noisy()
    weights = ParameterVector(model) if as_vector else model.parameters()
    optimizer = SGD(weights, lr=0.1, momentum=0.9)
    dataset = TensorDataset(*clusters())
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(dataset, 32, shuffle=True, generator=generator)
    cross_entropy(model(dataset.tensors[0]), dataset.tensors[1]).backward()
    optimizer.step()
    next(model.inner.children()).eval()
    before = [x.clone() for x in everything(model, optimizer, loader)]
    ids = [id(p) for p in model.parameters()]
    assert preflight(model, cross_entropy, loader) == []
    after = everything(model, optimizer, loader)
    assert all(map(torch.equal, before, after)) and len(before) == len(after)
    assert ids == [id(p) for p in model.parameters()]


def test_what_can_be_iterated_once_is_left_alone() -> None:
    batches = iter(Batches(*clusters(), 32).epoch(1))
    assert preflight(network(), cross_entropy, batches) == []
    assert torch.equal(next(batches)[1], clusters()[1][:32])


def test_texts_of_many_lengths_are_looked_at_as_far_as_they_fit_together() -> None:
    x, y = text()
    batches = [(x[:50], y[:50]), (x[50:90, :5], y[50:90, :5])]
    assert preflight(Language(), language_loss, batches) == []
    with pytest.raises(ValueError, match="no batch"):
        preflight(Language(), language_loss, [])


def test_it_looks_at_no_more_than_it_says() -> None:
    seen = []

    class Endless:
        def __iter__(self):
            while True:
                seen.append(len(seen))
                yield clusters(64)

    found = preflight(network(), cross_entropy, Endless())
    assert [finding.kind for finding in found] == ["repeated samples"]
    assert len(seen) == 4096 / 64


def test_what_cannot_be_copied_or_called_is_left_to_the_training() -> None:
    class Odd(nn.Module):
        def __deepcopy__(self, memo: dict) -> "Odd":
            raise RuntimeError("cannot be copied")

    assert kinds(Odd()) == []
    assert kinds(nn.Linear(5, 4)) == []


def test_neighbors_agree_with_a_search_through_all_pairs() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 3, dtype=torch.float64), torch.randint(3, (60,))
    nearest = find_neighbors(x)
    for i in range(60):
        others = [j for j in range(60) if j != i]
        others.sort(key=lambda j: float((x[i] - x[j]).norm()))
        assert set(nearest[i].tolist()) == set(others[:5])
    same = [float(y[i] == y[j]) for i in range(60) for j in nearest[i].tolist()]
    shares = [float((y == c).double().mean()) for c in range(3)]
    chance = sum(share**2 for share in shares)
    expected = (sum(same) / len(same) - chance) / (1 - chance)
    assert agreement(nearest, y) == pytest.approx(expected)
    targets = copy.deepcopy(x[:, 0])
    rest = [float(targets[nearest[i]].mean() - targets[i]) ** 2 for i in range(60)]
    explained = 1 - sum(rest) / 60 / float(targets.var(correction=0))
    assert agreement(nearest, targets) == pytest.approx(explained)


@pytest.mark.parametrize("shift", [2.0, 7.0])
@pytest.mark.parametrize("least", [-10.0, 0.0])
def test_losses_of_zero_and_below_are_not_judged_by_ratios(shift, least) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (cross_entropy(outputs, targets) - shift).clamp(min=least)

    assert kinds(loss_fn=loss) == []
