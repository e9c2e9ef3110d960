"""Batches: every sample once an epoch, in an order of seed and epoch alone."""

import random

import numpy
import pytest
import torch

from minitrain.batches import Batches


def batches_of(num: int, batch_size: int, seed: int | None = 0) -> Batches:
    return Batches(torch.arange(num) * 10, torch.arange(num), batch_size, seed)


def samples(batches: Batches, epoch: int) -> list[int]:
    inputs, targets = zip(*batches.epoch(epoch), strict=True)
    assert torch.equal(torch.cat(inputs), torch.cat(targets) * 10)  # still pairs
    return torch.cat(targets).tolist()


@pytest.mark.parametrize("seed", [0, 7, None])
@pytest.mark.parametrize(
    ("num", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (5, 5, [5]), (3, 1, [1, 1, 1]), (1, 1, [1])],
)
def test_every_sample_once_in_each_epoch(
    num: int, batch_size: int, sizes: list[int], seed: int | None
):
    batches = batches_of(num, batch_size, seed)
    for epoch in (1, 2, 3):
        assert sorted(samples(batches, epoch)) == list(range(num))
        assert [len(targets) for _, targets in batches.epoch(epoch)] == sizes
    assert len(batches) == len(sizes)


def test_order_depends_on_seed_and_epoch_alone():
    """Resuming in any epoch, in a new process, must find the same order."""
    batches = batches_of(100, 7)
    third = samples(batches, 3)
    half_read = batches.epoch(2)
    next(half_read)
    assert samples(batches, 3) == third == samples(batches_of(100, 30), 3)
    assert batches.order(3).tolist() == third
    assert len(list(half_read)) == len(batches) - 1


def test_every_seed_and_epoch_has_its_own_order():
    numbers = (0, 1, 2, 11, 12, 2**63 - 1)  # 1 and 12, 11 and 2: no mere joining
    orders = {
        tuple(samples(batches_of(100, 100, seed), epoch))
        for seed in numbers
        for epoch in numbers
    }
    assert len(orders) == len(numbers) ** 2 and tuple(range(100)) not in orders


def test_without_a_seed_the_order_is_that_of_the_tensors():
    assert samples(batches_of(10, 4, None), 1) == list(range(10))
    assert samples(batches_of(10, 4, None), 2) == list(range(10))


def test_order_neither_reads_nor_changes_global_random_states():
    def states() -> list[object]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            str(numpy.random.get_state()),
        ]

    before = samples(batches_of(20, 6), 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        kept = states()
        assert samples(batches_of(20, 6), 1) == before
        assert states() == kept


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_impossible_batch_sizes_are_refused(batch_size: int):
    with pytest.raises(ValueError, match=f"batch_size = {batch_size}: .*, 10$"):
        batches_of(10, batch_size)


def test_inputs_without_targets_are_refused():
    with pytest.raises(ValueError, match="3 inputs and 2 targets"):
        Batches(torch.zeros(3), torch.zeros(2), batch_size=1)
