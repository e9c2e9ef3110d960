"""Training that is continued after k updates: the bits of one that never stopped."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from harness.names import named
from harness.networks import network, tensors
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from minitrain.batches import Batches
from minitrain.fingerprint import fingerprint
from minitrain.loading import DatasetBatches
from minitrain.sgd import SGD
from minitrain.training import train

cross_entropy = nn.functional.cross_entropy
inputs, targets = tensors()  # 23 samples are 5 batches


class Own:
    """Batches of one's own, whose epochs have no length and skip nothing unasked."""

    def __init__(self) -> None:
        self.batches = Batches(inputs, targets, batch_size=5, seed=3)

    def epoch(self, epoch: int) -> Iterator[Any]:
        return self.batches.epoch(epoch)


SOURCES: dict[str, Callable[[], Any]] = {
    "Batches": lambda: Batches(inputs, targets, batch_size=5, seed=3),
    "DatasetBatches": lambda: DatasetBatches(
        TensorDataset(inputs, targets), batch_size=5, seed=3
    ),
    "list": lambda: list(Batches(inputs, targets, batch_size=5).epoch(1)),
    "tuple": lambda: tuple(Batches(inputs, targets, batch_size=5).epoch(1)),
    "own": Own,
}


def make() -> tuple[nn.Module, SGD]:
    model = network(dropout=0.5)
    return model, SGD(model.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize(("accumulate", "per_epoch"), [(1, 5), (2, 3), (7, 1)])
@pytest.mark.parametrize("source", SOURCES)
def test_any_step_is_a_place_to_go_on(
    source: str, accumulate: int, per_epoch: int
) -> None:
    """In mid-epoch, at its border and at the very end, with dropout and momentum."""

    def steps(model: nn.Module, optimizer: SGD, start: int = 0) -> Iterator[Any]:
        return train(
            model,
            optimizer,
            SOURCES[source](),
            cross_entropy,
            epochs=3,
            accumulate=accumulate,
            start=start,
        )

    def state(model: nn.Module, optimizer: SGD) -> Any:
        parts = model.state_dict(), optimizer.state_dict(), torch.get_rng_state()
        return copy.deepcopy(parts)

    model, optimizer = make()
    kept = [state(model, optimizer)]
    whole = []
    for step in steps(model, optimizer):
        whole.append(step)
        kept.append(state(model, optimizer))
    assert len(whole) == 3 * per_epoch
    expected = fingerprint(model.state_dict(), optimizer.state_dict())
    for start in range(1, len(whole) + 1):
        model, optimizer = make()
        model.load_state_dict(kept[start][0])
        optimizer.load_state_dict(kept[start][1])
        torch.set_rng_state(kept[start][2])
        assert [*map(str, steps(model, optimizer, start))] == [*map(str, whole[start:])]
        assert fingerprint(model.state_dict(), optimizer.state_dict()) == expected


def test_what_is_passed_over_is_not_made() -> None:
    asked = []

    class Counting(Batches):
        def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
            for batch in super().epoch(epoch, skip):
                asked.append(epoch)
                yield batch

    batches = Counting(inputs, targets, batch_size=5, seed=3)
    list(train(*make(), batches, cross_entropy, epochs=3, start=12))
    assert asked == [3, 3, 3]


@pytest.mark.parametrize("source", SOURCES)
def test_a_start_beyond_the_end_is_refused(source: str) -> None:
    model, optimizer = make()
    steps = train(
        model, optimizer, SOURCES[source](), cross_entropy, epochs=2, start=11
    )
    message = "start = 11: 2 epochs have no more than 10 updates"
    with pytest.raises(ValueError, match=message):
        list(steps)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(TensorDataset(inputs, targets))


class Unknown:
    def __iter__(self) -> Iterator[Any]:
        return iter([(inputs, targets)])


@pytest.mark.parametrize(
    ("batches", "name"),
    [
        (DataLoader(TensorDataset(inputs, targets)), "DataLoader"),
        (iter([(inputs, targets)]), "list_iterator"),
        ((batch for batch in [(inputs, targets)]), "generator"),
        (Unknown(), "Unknown"),
    ],
    ids=named,
)
def test_where_the_order_is_not_known_nothing_goes_on(
    batches: Iterable[Any], name: str
) -> None:
    model, optimizer = make()
    steps = train(model, optimizer, batches, cross_entropy, start=1)
    with pytest.raises(ValueError, match=f"start = 1: the batches of a {name} may be"):
        next(steps)
    with pytest.raises(ValueError, match="start = -1: must be at least 0"):
        next(train(model, optimizer, [(inputs, targets)], cross_entropy, start=-1))


def test_the_loader_of_a_stream_trains() -> None:
    """It has no length, and only the last of its batches ends the epoch."""
    model, optimizer = make()
    loader = DataLoader(Stream(), batch_size=5)
    steps = list(train(model, optimizer, loader, cross_entropy, epochs=2))
    assert [step.ends_epoch for step in steps] == [False, False, False, False, True] * 2
    assert [step.num_samples for step in steps] == [5, 5, 5, 5, 3] * 2


@pytest.mark.parametrize("schedule", ["falling", "warm-up from 0"])
def test_groups_keep_their_proportions_when_a_run_goes_on(schedule: str) -> None:
    """Also where the schedule was at 0, and against torch's own LambdaLR."""

    def lr(step: int) -> float:
        return 0.3 / (step + 1) if schedule == "falling" else 0.07 * step

    def two_groups() -> tuple[nn.Module, list[dict[str, Any]]]:
        model = network()
        first, second = model[0].parameters(), model[3].parameters()
        return model, [{"params": first, "lr": 0.3}, {"params": second, "lr": 0.07}]

    def rates(optimizer: torch.optim.Optimizer) -> list[float]:
        return [float(group["lr"]) for group in optimizer.param_groups]

    batches = SOURCES["Batches"]()
    model, groups = two_groups()
    optimizer = SGD(groups, momentum=0.9)
    _, groups = two_groups()
    theirs = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, lambda n: lr(n) / 0.3)
    kept = []
    for _ in train(model, optimizer, batches, cross_entropy, epochs=2, lr=lr):
        assert rates(optimizer) == pytest.approx(rates(theirs), rel=1e-12)
        kept.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
        theirs.step()
        scheduler.step()
    expected = fingerprint(model.state_dict(), optimizer.state_dict())
    for start, (weights, state) in enumerate(kept, 1):
        model, groups = two_groups()
        optimizer = SGD(groups, momentum=0.9)
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        list(
            train(
                model, optimizer, batches, cross_entropy, epochs=2, lr=lr, start=start
            )
        )
        assert fingerprint(model.state_dict(), optimizer.state_dict()) == expected


def test_a_new_training_takes_the_proportions_anew() -> None:
    model = network()
    groups = [
        {"params": model[0].parameters(), "lr": 0.4},
        {"params": model[3].parameters(), "lr": 0.1},
    ]
    optimizer = SGD(groups)
    batches = [(inputs, targets)]
    for first, second in ((0.4, 0.1), (0.2, 0.4), (0.3, 0.3)):
        for group, value in zip(optimizer.param_groups, (first, second), strict=True):
            group["lr"] = value
        list(train(model, optimizer, batches, cross_entropy, lr=lambda _: 0.8))
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.8, 0.8 * second / first])
    assert "lr_ratio" not in optimizer.state_dict()["param_groups"][1]
    later = {"params": [nn.Parameter(torch.zeros(1))], "lr": 5.0}
    for _ in train(model, optimizer, batches * 2, cross_entropy, lr=lambda _: 0.8):
        if later:
            optimizer.add_param_group(later)
            later = {}
    assert optimizer.param_groups[2]["lr"] == 0.8
