"""Data sets in batches: the same bits in every process, order and life."""

import copy
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import sys
import warnings
from typing import Any

import numpy
import pytest
import torch
from harness.names import named
from harness.networks import network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, get_worker_info

from minitrain import loading
from minitrain.fingerprint import fingerprint
from minitrain.loading import DatasetBatches
from minitrain.randomness import RandomStates
from minitrain.samples import tensors_in
from minitrain.sgd import SGD
from minitrain.training import train

# A machine of one core warns of two workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Noisy:
    """Samples of noise from all three libraries, with the number as the target."""

    def __init__(self, num: int = 11) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
        return {
            "torch": torch.randn(3),
            "others": (random.random(), numpy.random.standard_normal()),
        }, index


def drawn(batches: DatasetBatches, epoch: int, skip: int = 0) -> list[list[Tensor]]:
    """The tensors of each batch."""
    return [list(tensors_in(batch)) for batch in batches.epoch(epoch, skip)]


def same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    if [len(batch) for batch in a] != [len(batch) for batch in b]:
        return False
    pairs = zip(itertools.chain(*a), itertools.chain(*b), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def random_states() -> list[object]:
    numpy_state = [str(part) for part in numpy.random.get_state(legacy=True)]
    return [torch.get_rng_state().tolist(), random.getstate(), numpy_state]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_sample_is_a_function_of_seed_epoch_and_number(num_workers: int) -> None:
    """Whatever the workers, the batch size, the states and the part that is asked."""
    here = drawn(DatasetBatches(Noisy(), 4, seed=3), 2)
    torch.manual_seed(99)
    random.seed(99)
    numpy.random.seed(99)
    kept = random_states()
    batches = DatasetBatches(Noisy(), 4, seed=3, num_workers=num_workers)
    assert same(drawn(batches, 2), here) and len(here) == len(batches) == 3
    for skip in (1, 2, 3, 4):
        assert same(drawn(batches, 2, skip), here[skip:])
    assert random_states() == kept
    single = DatasetBatches(Noisy(), 1, seed=3, num_workers=num_workers)
    whole = [torch.cat(column) for column in zip(*here, strict=True)]
    ones = [torch.cat(column) for column in zip(*drawn(single, 2), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(whole, ones, strict=True))


def test_what_is_drawn_differs_by_seed_epoch_and_sample() -> None:
    """Of 11 samples in two epochs with three seeds no two drew the same number."""
    seen = set()
    for seed in (0, 1, None):
        for epoch in (1, 2):
            batches = DatasetBatches(Noisy(), 4, seed=seed)
            for batch in drawn(batches, epoch):
                for column in batch[:3]:
                    seen |= {tuple(row.flatten().tolist()) for row in column}
    assert len(seen) == 11 * 2 * 3 * 3


def test_the_order_is_a_permutation_or_that_of_the_data_set() -> None:
    def order(seed: int | None, epoch: int) -> list[int]:
        return torch.cat(
            [targets for _, targets in DatasetBatches(Noisy(), 4, seed).epoch(epoch)]
        ).tolist()

    assert order(None, 1) == order(None, 2) == list(range(11))
    orders = {tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4 and all(sorted(each) == list(range(11)) for each in orders)
    assert order(0, 1) == DatasetBatches(Noisy(), 2, 0).order(1).tolist()


def test_the_first_samples_are_those_of_the_data_set() -> None:
    _, targets = DatasetBatches(Noisy(), 4, seed=3).first(5)
    assert targets.tolist() == [0, 1, 2, 3, 4]
    assert len(DatasetBatches(Noisy(), 4, seed=3).first(99)[1]) == 11


def test_random_states_stay_between_batches_and_after_an_error() -> None:
    class Failing(Noisy):
        def __getitem__(self, index: int) -> Any:
            item = super().__getitem__(index)
            if index == 6:
                raise KeyError("no such file")
            return item

    numpy.random.standard_normal()  # one of a pair: the other is kept in the state
    kept = random_states()
    batches = DatasetBatches(Failing(), 2)
    with pytest.raises(KeyError, match="no such file"):
        for _ in batches.epoch(1):
            assert random_states() == kept
    assert random_states() == kept


def test_batches_are_those_of_a_loader() -> None:
    """Where nothing is drawn, a DataLoader in the order of the data is the oracle."""
    data = TensorDataset(torch.randn(7, 2), torch.arange(7))
    ours = drawn(DatasetBatches(data, 3), 1)
    assert same(ours, [list(batch) for batch in DataLoader(data, batch_size=3)])


def test_targets_may_be_none() -> None:
    """Of all samples, that is; of some it is an error."""
    batches = DatasetBatches([(torch.ones(2), None)] * 3, 2)
    assert [targets for _, targets in batches.epoch(1)] == [None, None]
    with pytest.raises(ValueError, match=r"cannot be one batch: .*NoneType"):
        list(DatasetBatches([(1.0, None), (1.0, 2)], 2).epoch(1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_training_ends_in_the_same_bits(num_workers: int) -> None:
    """In mid-epoch, with dropout, from the state that a run's checkpoint holds."""

    class Blurred(Noisy):
        def __getitem__(self, index: int) -> Any:
            return torch.randn(6) + random.random() + numpy.random.rand(), index % 4

    def parts() -> tuple[nn.Module, SGD]:
        model = network(dropout=0.5)
        return model, SGD(model.parameters(), lr=0.1, momentum=0.9)

    def steps(model: nn.Module, optimizer: SGD, workers: int, start: int = 0) -> Any:
        batches: Any = DatasetBatches(Blurred(), 4, seed=1, num_workers=workers)
        loss_fn = nn.functional.cross_entropy
        return train(model, optimizer, batches, loss_fn, epochs=3, start=start)

    model, optimizer = parts()
    states = RandomStates(torch.device("cpu"))
    kept: Any = None
    for step in steps(model, optimizer, workers=0):
        if step.number == 4:  # the first of three in the second epoch
            kept = [copy.deepcopy(p.state_dict()) for p in (model, optimizer, states)]
    expected = fingerprint(model.state_dict(), states.state_dict())

    model, optimizer = parts()
    for part, state in zip((model, optimizer, states), kept, strict=True):
        part.load_state_dict(state)
    resumed = list(steps(model, optimizer, num_workers, start=4))
    assert [step.number for step in resumed] == [5, 6, 7, 8, 9]
    assert fingerprint(model.state_dict(), states.state_dict()) == expected


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(1.0, 2), 3.0], "an item of the data set is of type float: .* pair"),
        ([(1.0, 2, 3)], "an item of the data set is of type tuple: .* pair"),
        ([("a", "b")], "tuple: samples are a tensor"),
        (
            [(torch.zeros(2), 0), (torch.zeros(3), 0)],
            r"cannot be one batch: .*\[2\].*\[3\]",
        ),
        ([({"a": 1}, 0), ({"b": 1}, 0)], "cannot be one batch: 'a'"),
        ([(object(), 0)], "cannot be one batch: .*object"),
    ],
    ids=named,
)
def test_items_that_make_no_batch(items: list, message: str, num_workers: int) -> None:
    batches = DatasetBatches(items, len(items), num_workers=num_workers)
    with pytest.raises(ValueError, match=message):
        list(batches.epoch(1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_names_the_sample(num_workers: int) -> None:
    class Failing(Noisy):
        def __getitem__(self, index: int) -> Any:
            if index == 6:
                raise OSError("cannot read the image")
            return super().__getitem__(index)

    batches = DatasetBatches(Failing(), 2, num_workers=num_workers)
    with pytest.raises(OSError, match="cannot read the image") as caught:
        list(batches.epoch(1))
    assert not multiprocessing.active_children()  # though the error is still held
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert told.count("while making sample 6 of the data set") == 1


@pytest.mark.parametrize("batch_size", [0, 12])
def test_impossible_batch_sizes_are_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size = {batch_size}: .* samples, 11"):
        DatasetBatches(Noisy(), batch_size)
    with pytest.raises(ValueError, match="number of samples, 0"):
        DatasetBatches([], 1)


def test_a_killed_worker_is_an_error() -> None:
    class Deadly(Noisy):
        def __getitem__(self, index: int) -> Any:
            if index == 6:
                assert get_worker_info() is not None
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed|exited)"):
        list(DatasetBatches(Deadly(), 7, num_workers=1).epoch(1))
    # Of batches that it made before, the tensors may be lost on their way.
    with pytest.raises((RuntimeError, OSError, EOFError)):
        list(DatasetBatches(Deadly(), 2, num_workers=1).epoch(1))
    assert not multiprocessing.active_children()


def test_workers_end_with_the_loop() -> None:
    batches = DatasetBatches(Noisy(), 2, num_workers=2)
    for _ in batches.epoch(1):
        assert len(multiprocessing.active_children()) == 2
        break
    assert not multiprocessing.active_children()


def test_workers_are_forks_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 and later warns of every fork in a process with threads."""
    forks, fork = [], os.fork

    def warning_fork() -> int:
        warnings.warn(
            f"This process (pid={os.getpid()}) is multi-threaded, use of fork() may "
            "lead to deadlocks in the child.",
            DeprecationWarning,
            stacklevel=1,
        )
        forks.append(1)
        return fork()

    if sys.platform != "linux":
        pytest.skip("workers are forks on Linux alone")
    monkeypatch.setattr(os, "fork", warning_fork)
    batches = DatasetBatches(Noisy(), 4, num_workers=2)
    assert len(list(batches.epoch(1))) == 3 and len(forks) == 2
    list(batches.epoch(1, skip=3))
    assert len(forks) == 2  # nothing is left to make
    with pytest.warns(DeprecationWarning, match="multi-threaded"):
        os.waitpid(os.fork() or os._exit(0), 0)  # everybody else is still told


def test_elsewhere_workers_start_as_torch_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there is no fork, what a worker is given must be picklable."""
    given: dict[str, Any] = {}

    def loader(dataset: Any, **options: Any) -> list:
        given.update(options, dataset=dataset)
        return []

    monkeypatch.setattr(loading, "DataLoader", loader)
    monkeypatch.setattr(sys, "platform", "darwin")
    data = TensorDataset(torch.arange(3), torch.arange(3))
    list(DatasetBatches(data, 2, num_workers=2).epoch(1))
    assert given["multiprocessing_context"] is None
    sent = pickle.loads(pickle.dumps((given["dataset"], given["collate_fn"])))
    _, targets = sent[1](sent[0].__getitems__([2, 0]))
    assert targets.tolist() == [2, 0]
